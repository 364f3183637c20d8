"""How a restore went, as text for people."""

from __future__ import annotations

from memvm.recording.restored import RestoreReport
from memvm.report.table import pairs
from memvm.units import format_duration, format_size


def restore_text(report: RestoreReport) -> str:
    """Names and values, a line each."""
    what = f"ran {report.responsive_share_ratio:.0%} of {format_duration(report.responsive_window_seconds)}"
    faults = f"{report.demand_faults:,}, for which it waited {format_duration(report.waited_seconds)} in all"
    if report.demand_faults_until_responsive is not None and report.demand_faults:
        faults += f"; {report.demand_faults_until_responsive:,} until it was responsive"
    prefetched = (
        f"{report.prefetched_pages:,} pages in {format_duration(report.prefetch_seconds)}, "
        f"with {report.prefetch_reads:,} reads of {format_size(report.bytes_prefetched)}"
    )
    rows = [
        ("policy", report.policy),
        ("first instruction", _time(report.first_instruction_seconds)),
        ("first output", _time(report.first_output_seconds)),
        ("responsive", f"{_time(report.responsive_seconds)} ({what})"),
        ("demand faults", faults),
        ("prefetched", prefetched),
    ]
    if report.used_pages is not None:
        rows.append(("used", f"{report.used_pages:,} pages in the first {format_duration(report.window_seconds)}"))
        rows.append(("precision", f"{_share(report.precision_ratio)} of what was prefetched was used"))
        rows.append(("recall", f"{_share(report.recall_ratio)} of what was used had been prefetched"))
        rows.append(("pollution", f"{report.pollution_pages or 0:,} pages were prefetched in vain"))
    if report.recorded_pages is not None:
        rows.append(("recorded", f"{report.recorded_pages:,} pages, for the next restore"))
    return pairs(rows)


def _time(seconds: float | None) -> str:
    return "not yet" if seconds is None else f"after {format_duration(seconds)}"


def _share(ratio: float | None) -> str:
    return "nothing" if ratio is None else f"{ratio:.1%}"
