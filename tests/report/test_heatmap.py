"""Pictures of heat maps, as text and as SVG."""

from __future__ import annotations

import itertools
import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memvm.memory.events import Access
from memvm.recording.heatmap import HeatMap, HeatRow
from memvm.report.heat import level_names, level_starts, mark_text, time_marks
from memvm.report.heatmap_svg import heatmap_svg
from memvm.report.heatmap_text import ASCII, UNICODE, columns_for, heatmap_text

BASE = 0x200000
ROWS = (
    HeatRow(BASE, 16, "image", False, (1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 100)),
    HeatRow(BASE + 0x10000, 16, "image", False, (0, 5, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)),
    HeatRow(0x40000000, 9, "<st\x1bck>", True, (0,) * 14),
)
HEAT = HeatMap("hub", Access(3), 126, 120, 6, 33, 0, "", 0.0, 0.1, 16, ROWS)
EMPTY = HeatMap("hub", Access(1), 0, 0, 0, 0, 7, "it was cut short", 0.0, 0.1, 0, ())


def test_a_map_as_text() -> None:
    assert heatmap_text(HEAT, UNICODE) == (
        "hub: accesses by address and time\n"
        "120 reads and 6 writes of 33 pages (132.0 KiB) in 1.40 s\n"
        "\n"
        "40000000 │              │<st\\x1bck>\n"
        "         ┈┈┈┈┈┈┈┈┈┈┈┈┈┈┈┈\n"
        "  210000 │ ▒▓           │image\n"
        "  200000 │░            █│\n"
        "         └┴─────────────┘\n"
        "          0 ms\n"
        "\n"
        "a row is 16 pages (64.0 KiB), a column 100.0 ms\n"
        "░ 1-3  ▒ 4-9  ▓ 10-31  █ 32-100"
    )


def test_a_map_in_ascii() -> None:
    text = heatmap_text(HEAT, ASCII)
    assert text.isascii()
    assert "  210000 | :*           |image" in text.splitlines()


def test_a_map_of_nothing() -> None:
    text = "hub: reads by address and time\n0 reads and 0 writes of 0 pages (0 B) in 0 µs\n"
    assert heatmap_text(EMPTY, UNICODE) == f"{text}7 more were lost while it was recorded\nit was cut short"
    assert ElementTree.fromstring(heatmap_svg(EMPTY)) is not None


def test_the_picture_is_accessible_and_has_what_the_text_has() -> None:
    svg = heatmap_svg(HEAT)
    root = ElementTree.fromstring(svg)
    name = "{http://www.w3.org/2000/svg}"
    assert (root.get("role"), root.get("aria-labelledby")) == ("img", "title description")
    assert root.findtext(f"{name}title") == "hub: accesses by address and time"
    assert "120 reads and 6 writes" in (root.findtext(f"{name}desc") or "")
    texts = [text.text for text in root.iter(f"{name}text")]
    assert {"0x200000", "0x40000000", "image", "<st\\x1bck>", "0 ms", "200 ms", "time since the recording began"} <= {
        *texts
    }


def test_what_is_drawn_is_inside() -> None:
    svg = heatmap_svg(HEAT)
    width, height = map(float, re.findall(r'viewBox="0 0 (\d+) (\d+)"', svg)[0])
    for x, y in re.findall(r"M([\d.]+) ([\d.]+)", svg):
        assert 0 <= float(x) <= width and 0 <= float(y) <= height
    cells = re.findall(r"M[\d. ]+H[\d.]+V[\d.]+H[\d.]+Z", svg)
    assert len(cells) == 4


@given(st.integers(0, 10**9), st.integers(1, 8))
def test_levels_cover_every_count(peak: int, levels: int) -> None:
    starts = level_starts(peak, levels)
    assert starts == sorted(set(starts)) and len(starts) <= levels
    if peak:
        assert starts[0] == 1 and starts[-1] <= peak
        assert len(level_names(starts, peak)) == len(starts)


@given(st.floats(0, 1e6), st.floats(1e-6, 1e6), st.integers(1, 20))
def test_marks_are_round_and_inside(start: float, length: float, most: int) -> None:
    marks = time_marks(start, start + length, most)
    assert len(marks) <= most
    # Of a short time that begins late, a millionth is less than what lies between two floats.
    beside = 1e-6 * length + 4 * math.ulp(start + length)
    assert all(start - beside <= mark <= start + length + beside for mark in marks)
    assert all(one < other for one, other in itertools.pairwise(marks))


@pytest.mark.parametrize(
    ("mark", "step", "text"),
    [(3.0, 1.0, "3 s"), (0.25, 0.05, "250 ms"), (1.25, 0.05, "1.25 s"), (2e-5, 1e-5, "20 µs"), (10.0, 5.0, "10 s")],
)
def test_times_have_the_digits_that_they_need(mark: float, step: float, text: str) -> None:
    assert mark_text(mark, step) == text


def test_a_narrow_terminal_still_has_columns() -> None:
    assert columns_for(80, 0x40200000) == 59
    assert columns_for(5, 0x40200000) == 10
