"""How a restore went: what it reports, made of what was noted while it did.

Named tuples, since every client that may ask for a report imports this.
"""

from typing import NamedTuple


class RestoreReport(NamedTuple):
    """A restore, from the moment at which its file was opened; the guest may still be under way.

    None stands for what has not come yet, and for what nobody asked to be noted.
    """

    policy: str
    """Which pages were loaded before the guest ran."""
    began: float
    """When it began: seconds of the host's CLOCK_MONOTONIC. The next three count from there."""
    first_instruction_seconds: float | None
    first_output_seconds: float | None
    """Until the guest first wrote to a stream."""
    responsive_seconds: float | None
    """Until the beginning of the first window in which the guest ran, and did not wait for pages, for more than
    `responsive_share_ratio` of the time."""
    responsive_window_seconds: float
    responsive_share_ratio: float
    demand_faults: int
    """Page faults at which the guest waited for a page that was still in the file."""
    demand_faults_until_responsive: int | None
    waited_seconds: float
    """What they took, all together."""
    prefetch_seconds: float
    """What loading pages before the guest ran took."""
    prefetched_pages: int
    """Pages that were loaded before the guest ran, or at a fault since the policy named them."""
    prefetch_reads: int
    """Reads of the file before the guest ran."""
    bytes_prefetched: int
    """What they read."""
    window_seconds: float
    """How long it was noted which pages the guest used."""
    used_pages: int | None = None
    """Pages, of those in the file, that the guest used in this window."""
    precision_ratio: float | None = None
    """The share of the prefetched pages that it used."""
    recall_ratio: float | None = None
    """The share of the pages that it used that were prefetched."""
    pollution_pages: int | None = None
    """Prefetched pages that it did not use."""
    recorded_pages: int | None = None
    """Pages of the hint that was written for the next restore."""
