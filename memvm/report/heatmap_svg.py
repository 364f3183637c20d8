"""A heat map as an SVG file that stands by itself: for browsers, documents, and screen readers.

A cell is drawn with the colour of its level; neighbours of one level in a row are one rectangle, so that a file has
only as many as there is to see.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from xml.sax.saxutils import escape

from memvm.recording.heatmap import HeatMap
from memvm.report.heat import facts, level_names, level_starts, mark_text, scale, time_marks, title
from memvm.report.table import printable

COLOURS = ("#fde3c1", "#fdc48a", "#fb9d59", "#f0703b", "#d3422f", "#a11d3b", "#64103f", "#2c0a2e")
"""From cold to hot, darker and darker, so that they are told apart in grey as well."""
_WIDTH, _HEIGHT = 800.0, 440.0
_LEFT, _TOP, _RIGHT, _BOTTOM = 130.0, 92.0, 110.0, 112.0
_GAP = 10.0
_STYLE = """\
    text { font-family: system-ui, "DejaVu Sans", Helvetica, Arial, sans-serif; font-size: 12px; fill: #2b2b33 }
    .title { font-size: 17px; font-weight: 600 }
    .note { fill: #5d5d68 }
    .address { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, monospace; font-size: 11px }
    .axis { stroke: #5d5d68; stroke-width: 1; fill: none }
    .grid { stroke: #2b2b33; stroke-opacity: .12; stroke-width: 1 }
    .gap { stroke: #5d5d68; stroke-width: 1; stroke-dasharray: 2 4 }"""


def heatmap_svg(heat: HeatMap) -> str:
    """The picture, the highest addresses on top."""
    starts = level_starts(heat.peak, len(COLOURS))
    colours = [COLOURS[round(i * (len(COLOURS) - 1) / max(1, len(starts) - 1))] for i in range(len(starts))]
    notes = facts(heat)
    tops = _row_tops(heat)
    bottom = max((top + height for top, height in tops), default=_TOP)
    total_height = bottom + _BOTTOM
    words = ". ".join([*notes, scale(heat)]) if heat.rows else notes[0]
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + _RIGHT:.0f} {total_height:.0f}" '
        'role="img" aria-labelledby="title description">',
        f'  <title id="title">{escape(title(heat))}</title>',
        f'  <desc id="description">{escape(words)}</desc>',
        "  <style>",
        _STYLE,
        "  </style>",
        '  <rect width="100%" height="100%" fill="#ffffff"/>',
        f'  <text class="title" x="{_LEFT:.0f}" y="30">{escape(title(heat))}</text>',
        *(
            f'  <text class="note" x="{_LEFT:.0f}" y="{50 + 15 * number}">{escape(note)}</text>'
            for number, note in enumerate(notes)
        ),
    ]
    if heat.rows:
        lines += [
            f'  <rect x="{_LEFT:.0f}" y="{_TOP:.0f}" width="{_WIDTH:.0f}" height="{bottom - _TOP:.1f}" '
            'fill="#f6f5f3"/>',
            *_cells(heat, tops, starts, colours),
            *_time_axis(heat, bottom),
            *_address_axis(heat, tops, bottom),
            *_legend(heat, starts, colours, bottom),
        ]
    return "\n".join([*lines, "</svg>", ""])


def _row_tops(heat: HeatMap) -> list[tuple[float, float]]:
    """Where each row is: its upper edge and its height, as wide as its share of the pages."""
    gaps = sum(row.gap_below for row in heat.rows)
    unit = (_HEIGHT - gaps * _GAP) / max(1, sum(row.pages for row in heat.rows))
    places = []
    top = _TOP
    for row in reversed(heat.rows):
        height = row.pages * unit
        places.append((top, height))
        top += height + (_GAP if row.gap_below else 0)
    return places[::-1]


def _cells(heat: HeatMap, tops: list[tuple[float, float]], starts: list[int], colours: list[str]) -> Iterator[str]:
    width = _WIDTH / heat.columns
    shapes: list[list[str]] = [[] for _ in colours]
    for row, (top, height) in zip(heat.rows, tops, strict=True):
        column = 0
        for level, cells in groupby(sum(count >= start for start in starts) for count in row.counts):
            length = len(list(cells))
            if level:
                x, right = _LEFT + column * width, _LEFT + (column + length) * width
                shapes[level - 1].append(f"M{x:.2f} {top:.2f}H{right:.2f}V{top + height:.2f}H{x:.2f}Z")
            column += length
    yield '  <g shape-rendering="crispEdges">'
    for colour, paths, name in zip(colours, shapes, level_names(starts, heat.peak), strict=True):
        if paths:
            yield f'    <path fill="{colour}" d="{"".join(paths)}"><title>{name} times</title></path>'
    yield "  </g>"


def _time_axis(heat: HeatMap, bottom: float) -> Iterator[str]:
    start = heat.start_seconds
    length = heat.columns * heat.column_seconds
    marks = time_marks(start, start + length, 10)
    step = marks[1] - marks[0] if len(marks) > 1 else heat.column_seconds
    yield f'  <path class="axis" d="M{_LEFT:.0f} {bottom + 0.5:.1f}H{_LEFT + _WIDTH:.0f}"/>'
    for mark in marks:
        x = _LEFT + (mark - start) / length * _WIDTH
        yield f'  <path class="grid" d="M{x:.1f} {_TOP:.0f}V{bottom:.1f}"/>'
        yield f'  <path class="axis" d="M{x:.1f} {bottom:.1f}v5"/>'
        yield f'  <text x="{x:.1f}" y="{bottom + 20:.1f}" text-anchor="middle">{mark_text(mark, step)}</text>'
    yield (
        f'  <text class="note" x="{_LEFT + _WIDTH / 2:.0f}" y="{bottom + 40:.1f}" text-anchor="middle">'
        "time since the recording began</text>"
    )


def _address_axis(heat: HeatMap, tops: list[tuple[float, float]], bottom: float) -> Iterator[str]:
    """Addresses to the left where there is room, regions to the right, and lines through what is left out."""
    yield f'  <path class="axis" d="M{_LEFT - 0.5:.1f} {_TOP:.0f}V{bottom:.1f}"/>'
    last = bottom + 100
    for row, (top, height) in zip(heat.rows, tops, strict=True):
        edge = top + height
        if row.gap_below:
            middle = edge + _GAP / 2
            yield f'  <rect x="{_LEFT:.0f}" y="{edge:.2f}" width="{_WIDTH:.0f}" height="{_GAP:.0f}" fill="#ffffff"/>'
            yield f'  <path class="gap" d="M{_LEFT - 10:.0f} {middle:.1f}H{_LEFT + _WIDTH + 10:.0f}"/>'
        if last - edge >= 14 and (row.gap_below or last > bottom or last - edge >= 40):
            last = edge
            yield f'  <path class="axis" d="M{_LEFT:.0f} {edge:.1f}h-5"/>'
            yield (
                f'  <text class="address" x="{_LEFT - 9:.0f}" y="{edge + 2:.1f}" text-anchor="end">'
                f"{row.address:#x}</text>"
            )
    last = bottom + 100
    for name, group in groupby(zip(heat.rows, tops, strict=True), key=lambda pair: pair[0].region):
        places = [place for _, place in group]
        upper, lower = places[-1][0], places[0][0] + places[0][1]
        if not name:
            continue
        x = _LEFT + _WIDTH + 6
        yield f'  <path class="axis" d="M{x:.0f} {upper + 1:.1f}h4V{max(upper + 1, lower - 1):.1f}h-4"/>'
        middle = min((upper + lower) / 2 + 4, last - 13)
        last = middle
        yield f'  <text class="note" x="{x + 9:.0f}" y="{middle:.1f}">{escape(printable(name)[:14])}</text>'
    x = 22
    yield (
        f'  <text class="note" x="{x}" y="{(_TOP + bottom) / 2:.0f}" text-anchor="middle" '
        f'transform="rotate(-90 {x} {(_TOP + bottom) / 2:.0f})">guest address</text>'
    )


def _legend(heat: HeatMap, starts: list[int], colours: list[str], bottom: float) -> Iterator[str]:
    y = bottom + 62
    x = _LEFT
    yield f'  <text class="note" x="{x:.0f}" y="{y + 10:.1f}">times in a cell</text>'
    x += 104
    for colour, name in zip(colours, level_names(starts, heat.peak), strict=True):
        yield f'  <rect x="{x:.0f}" y="{y:.1f}" width="12" height="12" fill="{colour}"/>'
        yield f'  <text x="{x + 17:.0f}" y="{y + 10:.1f}">{name}</text>'
        x += 34 + 7.2 * len(name)
    yield f'  <text class="note" x="{_LEFT:.0f}" y="{y + 32:.1f}">{escape(scale(heat))}</text>'
