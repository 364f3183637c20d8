"""All guests at a glance, as wide and as high as the terminal is: lines of styled text, which rich draws.

On a narrow terminal columns are left out, the least important first; nothing ever wraps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from memvm.report.rates import GuestActivity
from memvm.report.table import printable
from memvm.units import format_duration, format_size

if TYPE_CHECKING:
    from rich.text import Text

UNKNOWN = "-"
_STATE_STYLES = {"running": "green", "paused": "yellow", "starting": "cyan", "ended": "dim", "no answer": "bold red"}


class Span(NamedTuple):
    """Some text in one of rich's styles."""

    text: str
    style: str = ""


Line = list[Span]


@dataclass(frozen=True)
class Column:
    """A column; of two that do not both fit, the one with the higher `rank` is left out."""

    heading: str
    rank: int
    show: Callable[[GuestActivity], str]
    right: bool = True
    shortest: int = 0
    """Letters to which it may be shortened, if it may be."""


@dataclass(frozen=True)
class Order:
    """What the guests can be ordered by: a key to press, and a number to order by, the highest first."""

    key: str
    word: str
    value: Callable[[GuestActivity], float | None]


@dataclass(frozen=True)
class ViewState:
    """What the person at the terminal chose."""

    order: str = "n"
    """The key of an Order, or n for the names."""
    paused: bool = False


def _size(value: float | None) -> str:
    return UNKNOWN if value is None else format_size(value).replace(" ", "").replace("iB", "")


def _duration(value: float | None) -> str:
    return UNKNOWN if value is None else format_duration(value).replace(" ", "")


def _share(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.0%}"


def _rate(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.0f}" if value >= 9.5 or not value else f"{value:.1f}"


COLUMNS = (
    Column("NAME", 0, lambda guest: printable(guest.name), right=False, shortest=12),
    Column("STATE", 1, lambda guest: guest.state, right=False),
    Column("CPU", 3, lambda guest: _share(guest.cpu_ratio)),
    Column("TOUCHED", 2, lambda guest: _size(guest.ram_touched)),
    Column("OF RAM", 11, lambda guest: _size(guest.ram_size)),
    Column("LOADED", 8, lambda guest: _share(guest.loaded_ratio)),
    Column("DEFERRED", 7, lambda guest: _size(guest.ram_deferred)),
    Column("DIRTY/s", 6, lambda guest: _size(guest.dirty_rate)),
    Column("WORKSET", 5, lambda guest: _size(guest.working_set)),
    Column("FAULTS/s", 4, lambda guest: _rate(guest.fault_rate)),
    Column("P50", 10, lambda guest: _duration(guest.fault_p50)),
    Column("P99", 9, lambda guest: _duration(guest.fault_p99)),
    Column("CALLS/s", 4, lambda guest: _rate(guest.hypercall_rate)),
    Column("UP", 12, lambda guest: _duration(guest.uptime)),
    Column("PROGRAM", 13, lambda guest: printable(guest.program), right=False, shortest=10),
)
ORDERS = (
    Order("c", "cpu", lambda guest: guest.cpu_ratio),
    Order("t", "touched", lambda guest: guest.ram_touched),
    Order("d", "dirty", lambda guest: guest.dirty_rate),
    Order("w", "workset", lambda guest: guest.working_set),
    Order("f", "faults", lambda guest: guest.fault_rate),
    Order("h", "hypercalls", lambda guest: guest.hypercall_rate),
)


def pressed(state: ViewState, key: str) -> ViewState | None:
    """The state after a key was pressed; None to end."""
    if key in ("q", "Q", "\x03", "\x04"):
        return None
    if key in ("p", " "):
        return ViewState(state.order, not state.paused)
    if key == "n" or key in {order.key for order in ORDERS}:
        return ViewState(key, state.paused)
    return state


def ordered(guests: Iterable[GuestActivity], order: str) -> list[GuestActivity]:
    """Guests by name, or the highest figure first and those without one last."""
    by_name = sorted(guests, key=lambda guest: guest.name)
    chosen = next((known for known in ORDERS if known.key == order), None)
    if chosen is None:
        return by_name
    value = chosen.value
    return sorted(by_name, key=lambda guest: -1.0 if (figure := value(guest)) is None else figure, reverse=True)


def screen(guests: Sequence[GuestActivity], state: ViewState, width: int, height: int) -> list[Line]:
    """What is on the screen: a title, the table, and the keys; no line is longer than `width`."""
    running = sum(guest.state == "running" for guest in guests)
    order = next((known.word for known in ORDERS if known.key == state.order), "name")
    title = [
        Span("memvm top", "bold"),
        Span(f"  {len(guests)} guest{'' if len(guests) == 1 else 's'}, {running} running, by {order}"),
    ]
    if state.paused:
        title.insert(1, Span("  paused", "bold yellow"))
    rows = ordered(guests, state.order)
    room = max(1, height - 4)  # beside title, headings, an empty line and the keys
    if len(rows) > room:
        room = max(1, room - 1)
    table = table_lines(rows[:room], width)
    if not guests:
        table.append([Span("no guest is running; `memvm run` starts one", "dim")])
    elif len(rows) > room:
        table.append([Span(f"and {len(rows) - room} more", "dim")])
    keys = [Span("q", "bold"), Span(" quit  "), Span("p", "bold"), Span(" go on" if state.paused else " pause")]
    keys.append(Span("  by:", "dim"))
    for key, word in (("n", "name"), *((known.key, known.word) for known in ORDERS)):
        keys += [Span(f" {key}", "bold"), Span(f" {word}", "dim")]
    return [cut(line, width) for line in (title, *table, [], keys)]


def table_lines(guests: Sequence[GuestActivity], width: int) -> list[Line]:
    """Headings and a line a guest, of as many columns as there is room for."""
    cells = {column: [column.show(guest) for guest in guests] for column in COLUMNS}
    widths = {column: max(map(len, [column.heading, *cells[column]])) for column in COLUMNS}
    columns = _fitting(cells, widths, width)
    heading = [Span(_aligned(column.heading, column, widths[column]), "bold") for column in columns]
    lines = [_joined(heading)]
    for number, guest in enumerate(guests):
        styles = {"STATE": _STATE_STYLES.get(guest.state, "")}
        quiet = "" if guest.state != "no answer" else "dim"
        spans = [
            Span(_aligned(cells[column][number], column, widths[column]), styles.get(column.heading, quiet))
            for column in columns
        ]
        lines.append(_joined(spans))
    return lines


def _fitting(cells: dict[Column, list[str]], widths: dict[Column, int], width: int) -> list[Column]:
    """The columns that there is room for; the widths of those that may be shortened are made to fit."""
    columns = list(COLUMNS)
    least = {column: min(widths[column], column.shortest or widths[column]) for column in columns}

    def spare() -> int:
        return width - sum(least[column] for column in columns) - 2 * (len(columns) - 1)

    while len(columns) > 1 and spare() < 0:
        unknown = [column for column in columns[1:] if cells[column] and set(cells[column]) <= {UNKNOWN}]
        columns.remove(max(unknown or columns, key=lambda column: column.rank))
    for column in columns:
        more = max(0, min(widths[column] - least[column], spare()))
        least[column] += more
    widths.update(least)
    return columns


def _aligned(text: str, column: Column, width: int) -> str:
    if len(text) > width:
        text = f"{text[: width - 1]}~"
    return text.rjust(width) if column.right else text.ljust(width)


def _joined(spans: Sequence[Span]) -> Line:
    return [Span(span.text if number == 0 else f"  {span.text}", span.style) for number, span in enumerate(spans)]


def cut(line: Line, width: int) -> Line:
    """As much of a line as there is room for."""
    kept = []
    for span in line:
        kept.append(Span(span.text[:width], span.style))
        width -= len(span.text)
        if width <= 0:
            break
    return kept


def text_of(lines: Iterable[Line]) -> str:
    """Lines without their styles."""
    return "\n".join("".join(span.text for span in line).rstrip() for line in lines)


def drawing_of(lines: Iterable[Line]) -> Text:
    """Lines as rich draws them."""
    from rich.text import Text

    drawn = Text(no_wrap=True, overflow="crop", end="")
    for number, line in enumerate(lines):
        drawn.append("\n" if number else "")
        for span in line:
            drawn.append(span.text, span.style)
    return drawn
