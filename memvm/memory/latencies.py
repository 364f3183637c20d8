"""How long faults took to be answered: a histogram by powers of two, cheap enough for the fault path.

A fault counts from the moment at which its message was read to the moment at which its answer had been given. What the
kernel takes before and after is not in it.
"""

from __future__ import annotations

_BUCKETS = 64


class Latencies:
    """Counts of durations; bucket `n` has those of 2^(n-1) to 2^n - 1 ns."""

    def __init__(self) -> None:
        self.buckets = [0] * _BUCKETS
        """Whoever measures adds 1 to bucket `nanoseconds.bit_length()`: a call would cost more than that."""

    def quantile(self, share: float) -> float | None:
        """The duration in seconds that this share (0 to 1) of the faults stayed below; None before the first.

        Within a bucket durations are taken to be spread evenly, so the answer is off by a third at most.
        """
        counts = list(self.buckets)
        wanted = share * sum(counts)
        if not wanted:
            return None
        before = 0
        for bucket, count in enumerate(counts):
            if before + count >= wanted:
                low = (1 << bucket) >> 1
                return low * (1 + (wanted - before) / count) / 1e9 if bucket else 0.0
            before += count
        raise AssertionError("the counts add up to less than their sum")
