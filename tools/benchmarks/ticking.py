"""The guest that most benchmarks use: 1 GiB of touched memory, a quarter of it zero, and a line every 5 ms.

The ticker reads, checks and writes each page of its hot set before each line. The hot set is what makes a save and
a lazy restore hard: each of its pages is waited for. 32 MiB of it are 8,192 pages.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from memvm.units import MIB
from tools.benchmarks.guest_process import GuestProcess
from tools.benchmarks.setting import Setting, warm_memory

TOTAL_MIB = 1024
HOT_MIB = 32
PERIOD = 0.005
RAM_MIB = 1152
"""The memory, and room for the program itself."""
WARM = (RAM_MIB + 128) * MIB


@contextmanager
def ticker(
    setting: Setting, name: str = "bench-ticker", period: float = PERIOD, hot_mib: int = HOT_MIB
) -> Iterator[GuestProcess]:
    """The running guest, once it has touched its memory and settled down."""
    warm_memory(WARM)
    numbers = [str(TOTAL_MIB), str(hot_mib), str(round(period * 1000)), "0"]
    words = ["--ram", f"{RAM_MIB}M", "--", setting.guest("ticker"), *numbers, "touched"]
    with GuestProcess(name, "run", words) as guest:
        guest.wait_for_lines(1 if period > 1 else 50)
        yield guest
