"""What benchmarks reckon with, without running them."""

from __future__ import annotations

from tools.benchmarks.restoring import lines_to_sort


def test_a_faster_machine_sorts_more_lines() -> None:
    """So that the guest sorts as long as it is measured, however fast the machine is."""
    assert [lines_to_sort(seconds) for seconds in (40.0, 4.0, 2.0, 1.0)] == [1_500_000, 1_500_000, 3_000_000, 6_000_000]
    assert lines_to_sort(0.1) == lines_to_sort(0.0) == 8_000_000, "there is no memory for more"
