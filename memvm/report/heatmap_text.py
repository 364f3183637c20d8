"""A heat map as text, for any terminal: shades or plain letters, no colours."""

from __future__ import annotations

from dataclasses import dataclass

from memvm.recording.heatmap import HeatMap
from memvm.report.heat import facts, level_names, level_starts, mark_text, scale, time_marks, title
from memvm.report.table import printable

MOST_REGION = 10
"""Letters of a region's name that are shown."""


@dataclass(frozen=True)
class Glyphs:
    """What a heat map is drawn with; `shades` from cold to hot."""

    shades: str
    side: str
    corner: str
    bottom: str
    tick: str
    end: str
    gap: str


UNICODE = Glyphs("░▒▓█", "│", "└", "─", "┴", "┘", "┈")
ASCII = Glyphs(".:*#", "|", "+", "-", "+", "+", "~")


def columns_for(width: int, highest_address: int) -> int:
    """How many columns a heat map may have on so many characters; at least 10."""
    return max(10, width - len(f"{highest_address:x}") - len(" ||") - MOST_REGION)


def heatmap_text(heat: HeatMap, glyphs: Glyphs) -> str:
    """The map, the highest addresses on top as they are drawn by custom; or a sentence if there is nothing in it."""
    if not heat.rows:
        return "\n".join([title(heat), *facts(heat)])
    starts = level_starts(heat.peak, len(glyphs.shades))
    # few levels are told apart best if they are far apart
    shades = [glyphs.shades[-1 - (len(starts) - 1 - i) * len(glyphs.shades) // len(starts)] for i in range(len(starts))]
    label = max(len(f"{row.address:x}") for row in heat.rows)
    lines = [title(heat), *facts(heat), ""]
    above = None
    for row in reversed(heat.rows):
        region = printable(row.region)[:MOST_REGION] if above is None or above.region != row.region else ""
        cells = "".join(_shade(count, starts, shades) for count in row.counts)
        lines.append(f"{row.address:{label}x} {glyphs.side}{cells}{glyphs.side}{region}".rstrip())
        if row.gap_below:
            lines.append(f"{'':{label}} {glyphs.gap * (heat.columns + 2)}")
        above = row
    lines += _time_axis(heat, glyphs, label + 1)
    legend = "  ".join(f"{shade} {name}" for shade, name in zip(shades, level_names(starts, heat.peak), strict=True))
    return "\n".join([*lines, "", scale(heat), legend])


def _shade(count: int, starts: list[int], shades: list[str]) -> str:
    hot = " "
    for start, shade in zip(starts, shades, strict=True):
        if count >= start:
            hot = shade
    return hot


def _time_axis(heat: HeatMap, glyphs: Glyphs, indent: int) -> list[str]:
    """The axis with its marks, and their times below it."""
    start, columns = heat.start_seconds, heat.columns
    marks = time_marks(start, start + columns * heat.column_seconds, max(1, columns // 12))
    step = marks[1] - marks[0] if len(marks) > 1 else heat.column_seconds
    axis = [glyphs.bottom] * columns
    words = ""
    for mark in marks:
        place = min(columns - 1, int((mark - start) / heat.column_seconds + 1e-9))
        axis[place] = glyphs.tick
        text = mark_text(mark, step)
        at = place + 1
        if at >= len(words) + (1 if words else 0) and at + len(text) <= columns + 8:
            words = words.ljust(at) + text
    line = " " * indent + glyphs.corner + "".join(axis) + glyphs.end
    return [line, (" " * indent + words).rstrip()]
