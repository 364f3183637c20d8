"""What each policy would have done, side by side."""

from __future__ import annotations

from dataclasses import dataclass

from memvm.recording.replay import CostModel, Replayed
from memvm.report.table import table
from memvm.units import PAGE_SIZE, format_duration, format_size

_RIGHT = ("FAULTS", "LOADED", "PREFETCHED", "PRECISION", "RECALL", "IN VAIN", "STARTS", "STALLS", "RESPONSIVE")


@dataclass(frozen=True)
class Comparison:
    """Several policies on one recording."""

    recording: str
    saved_seconds: float
    """How long of the recording is taken for the save: what was seen then is active."""
    replayed_seconds: float
    """How long of it is taken for the run after the restore."""
    active_pages: int
    recorded_pages: int
    data_pages: int
    data_from: str
    """Where it is known from which pages have data."""
    costs: CostModel
    dropped: int
    flaw: str
    policies: tuple[Replayed, ...]


def comparison_text(comparison: Comparison) -> str:
    """What was assumed, and a line a policy."""
    costs = comparison.costs
    lines = [
        f"{comparison.recording}: saved during the first {format_duration(comparison.saved_seconds)}, "
        f"then restored and run for {format_duration(comparison.replayed_seconds)}",
        f"  {_pages(comparison.data_pages)} of data ({comparison.data_from}), "
        f"{_pages(comparison.active_pages)} active, {_pages(comparison.recorded_pages)} recorded",
        f"  a demand fault costs {format_duration(costs.fault)}, a page {format_duration(costs.page)}",
    ]
    if comparison.flaw:
        lines.append(f"  {comparison.flaw}")
    if comparison.dropped:
        lines.append(f"  {comparison.dropped:,} events were lost: what is below is too good by those")
    rows = [_row(replayed) for replayed in comparison.policies]
    return "\n".join([*lines, "", table(("POLICY", *_RIGHT), rows, right=_RIGHT)])


def _row(replayed: Replayed) -> list[str]:
    responsive = replayed.responsive_seconds
    return [
        replayed.policy,
        f"{replayed.demand_faults:,}",
        f"{replayed.pages_loaded:,}",
        f"{replayed.pages_prefetched:,}",
        _share(replayed.precision),
        _share(replayed.recall),
        f"{replayed.pollution:,}",
        format_duration(replayed.start_seconds),
        format_duration(replayed.stall_seconds),
        "-" if responsive is None else format_duration(responsive),
    ]


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _pages(count: int) -> str:
    return f"{count:,} pages ({format_size(count * PAGE_SIZE)})"
