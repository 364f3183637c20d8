"""Aligned text: tables, and names with values. Nothing that needs a terminal, so it goes through pipes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[str] = ()) -> str:
    """Columns two spaces apart; those whose headings are in `right` are aligned to the right."""
    lines = [list(headings), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = (
        "  ".join(
            cell.rjust(width) if heading in right else cell.ljust(width)
            for heading, cell, width in zip(headings, line, widths, strict=True)
        ).rstrip()
        for line in lines
    )
    return "\n".join(aligned)


def pairs(values: Iterable[tuple[str, str]], indent: str = "") -> str:
    """A name and a value a line, the values in one column."""
    lines = list(values)
    width = max((len(name) for name, _ in lines), default=0)
    return "\n".join(f"{indent}{name.ljust(width)}  {value}".rstrip() for name, value in lines)


def printable(text: str) -> str:
    """Text that anybody may have written, as from a file: nothing in it moves a terminal's cursor."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
