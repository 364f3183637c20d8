"""How soon a guest that uses a tenth of its memory is responsive again, by each policy of a restore.

The guests are those of the benchmark "save", saved live, and busybox sort, saved while it sorts so many lines that this
machine takes some seconds for them; its output is read by nobody, so that it does not end before a restore is measured.
The file is not in the page cache, as after a reboot, and nothing is loaded in the background: that would hide what the
policies do. Times are from the opening of the file to the beginning of the first 50 ms of which the guest ran 80 %, and
waited for pages for the rest. Recall and precision are of restores of their own, since tracing slows the guest.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path
from statistics import median
from typing import IO, NamedTuple

import memvm
from memvm.checkpoint.hint_file import hint_path
from memvm.manager.protocol import DEFAULT_BLOCK_SIZE
from memvm.recording.restored import RestoreReport
from memvm.units import MIB
from tools.benchmarks.figures import Figure, Limit, Reference
from tools.benchmarks.guest_process import GuestProcess
from tools.benchmarks.saving import GUESTS, RAM_MIB
from tools.benchmarks.setting import BenchmarkError, Setting, warm_memory

TO_DEMAND, TO_EAGER, TO_ACTIVE = Limit(ratio_at_most=1 / 3), Limit(ratio_at_most=1 / 5), Limit(ratio_at_most=1.1)
FAULTS = Limit(ratio_at_most=0.1)
RECALL, PRECISION = Limit(value_at_least=90), Limit(value_at_least=80)
POLICIES = ("demand", "active", "recorded", "eager")
_CONSTANT_READS = 16
"""Reads beyond the set's size divided by a block's: every CPU reads a few times, and a set may be torn in places."""
_WARM_UP = 1.0
"""Seconds for which a guest works before it is saved."""
_WINDOW = 2.0
"""Seconds in which the pages that a restored guest uses are noted."""
_SORT_WINDOW = 0.5
"""The same of sort, which is done after some seconds."""
_CLOSING = 0.5
"""Seconds that lifting the traces and writing a hint may take."""
_POLL = 0.05
_TIMEOUT = 60.0
_SORT_SECONDS = 4.0
"""CPU time that sorting takes at least, outside of a guest: more than what passes before the save, and the window."""
_FEWEST_LINES, _MOST_LINES = 1_500_000, 8_000_000
_LINE_TOUCHED = 64
"""Bytes of memory that sort has for each line, more or less."""

Found = dict[str, list[RestoreReport]]
"""What the restores by each policy reported."""


class Scored(NamedTuple):
    """One guest's restores."""

    by_policy: Found
    active: RestoreReport
    """With recall and precision."""


def measure(setting: Setting) -> list[Figure]:
    """Medians of the times."""
    figures: list[Figure] = []
    for guest, arguments in GUESTS.items():
        words = ["--ram", f"{RAM_MIB}M", "--", setting.guest(guest), *arguments]
        scored = _restore_all(setting, guest, words, _has_warmed_up)
        figures += _figures(guest, scored, whole=True)
    if (busybox := shutil.which("busybox")) is not None:
        words = ["--ram", "1G", "--", busybox, "sort"]
        with _lines(setting.directory / "lines", busybox) as lines:
            found = _restore_all(setting, "sort", words, _has_read, lines, _SORT_WINDOW, subprocess.PIPE)
            figures += _figures("sort", found, whole=False)
    return figures


def _restore_all(
    setting: Setting,
    guest: str,
    words: Sequence[str],
    warm_up: Callable[[GuestProcess], None],
    stdin: IO[bytes] | None = None,
    window: float = _WINDOW,
    stdout: int = subprocess.DEVNULL,
) -> Scored:
    """Save a guest, and restore it by every policy. With PIPE for `stdout`, it waits once it has said much."""
    file = setting.directory / f"{guest}.ckpt"
    warm_memory((RAM_MIB + 128) * MIB)
    with GuestProcess(f"bench-{guest}", "run", words, stdin) as process:
        warm_up(process)
        with process.client() as client:
            client.checkpoint(file, live=True)
    _restore(file, "demand", window, stdout, record=True)
    found: Found = {policy: [] for policy in POLICIES}
    for run in range(setting.runs):
        for policy in POLICIES if run % 2 == 0 else reversed(POLICIES):
            found[policy].append(_restore(file, policy, window, stdout))
    scored = _restore(file, "active", window, stdout, score=True)
    for path in (file, hint_path(file)):
        path.unlink()
    return Scored(found, scored)


def _has_warmed_up(process: GuestProcess) -> None:
    process.wait_for_lines(100)
    time.sleep(_WARM_UP)


def _has_read(process: GuestProcess) -> None:
    """Sort has its lines in memory, and has begun to sort: it prints nothing before the end."""
    deadline = time.monotonic() + _TIMEOUT
    touched = 0
    while time.monotonic() < deadline:
        time.sleep(0.25)
        with process.client() as client:
            before, touched = touched, client.status().ram_touched
        if touched == before > _FEWEST_LINES * _LINE_TOUCHED / 2:
            return
    raise BenchmarkError("sort did not read its lines")


def _lines(path: Path, busybox: str) -> IO[bytes]:
    """An open file to be sorted."""
    chance = random.Random(1)
    with path.open("w") as file:
        file.writelines(f"{chance.getrandbits(96):024x}\n" for _ in range(_FEWEST_LINES))
        file.flush()
        more = lines_to_sort(_seconds_to_sort(path, busybox)) - _FEWEST_LINES
        file.writelines(f"{chance.getrandbits(96):024x}\n" for _ in range(more))
    return path.open("rb")


def _seconds_to_sort(path: Path, busybox: str) -> float:
    """CPU time that a file takes: unlike the time that passes, it is about the same on a busy machine."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    with path.open("rb") as lines:
        subprocess.run([busybox, "sort"], stdin=lines, stdout=subprocess.DEVNULL, check=True)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


def lines_to_sort(seconds: float) -> int:
    """How many there have to be, if the fewest take so long; with more of them, each takes a little longer."""
    return round(min(_MOST_LINES, _FEWEST_LINES * max(1.0, _SORT_SECONDS / max(seconds, 0.01))))


def _restore(
    file: Path, policy: str, window: float, stdout: int, *, record: bool = False, score: bool = False
) -> RestoreReport:
    """One restore until the guest is responsive; with traces until their window is over."""
    _forget_file(file)
    warm_memory((RAM_MIB + 128) * MIB)
    with memvm.restore(
        file,
        policy=policy,
        background=False,
        record=record,
        report=True,
        score=score,
        window=window,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
    ) as guest:
        deadline = time.monotonic() + _TIMEOUT
        while time.monotonic() < deadline:
            report = guest.restore_report()
            lasting = time.monotonic() - report.began - (report.first_instruction_seconds or 0.0)
            if report.responsive_seconds is not None and (not (record or score) or lasting > window + _CLOSING):
                return report
            time.sleep(_POLL)
    raise BenchmarkError(f"a guest restored with {policy} was not responsive within {_TIMEOUT:.0f} s")


def _forget_file(path: Path) -> None:
    """Drop a file from the page cache."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def _figures(guest: str, scored: Scored, *, whole: bool) -> list[Figure]:
    """`whole`: the guest has much more memory than it uses, so that an eager restore has much more to do."""
    found = scored.by_policy

    def times(policy: str) -> tuple[float, ...]:
        return tuple((report.responsive_seconds or 0.0) * 1000 for report in found[policy])

    def figure(name: str, policy: str, reference: str, limit: Limit) -> Figure:
        return Figure(
            f"restore.{name}.{guest}",
            f"{guest} restored with {policy}, until it is responsive",
            median(times(policy)),
            "ms",
            Reference(median(times(reference)), f"with {reference}"),
            limit,
            times(policy),
        )

    faults = {policy: median(report.demand_faults for report in found[policy]) for policy in POLICIES}
    active, reads = scored.active, found["active"][0]
    blocks = ceil(reads.bytes_prefetched / DEFAULT_BLOCK_SIZE)
    return [
        figure("responsive", "active", "demand", TO_DEMAND),
        figure("eager", "active", "eager", TO_EAGER if whole else Limit()),
        figure("recorded", "recorded", "active", TO_ACTIVE),
        Figure(
            f"restore.faults.{guest}",
            f"demand faults of {guest} restored with active",
            faults["active"],
            "",
            Reference(faults["demand"], "with demand"),
            FAULTS,
        ),
        _share("recall", f"pages that {guest} used, and active had brought", guest, active.recall_ratio, RECALL),
        _share(
            "precision", f"pages that active had brought, and {guest} used", guest, active.precision_ratio, PRECISION
        ),
        Figure(
            f"restore.reads.{guest}",
            f"reads ({reads.prefetch_reads}) beyond the set's size divided by a storage block's",
            reads.prefetch_reads - blocks,
            "reads",
            limit=Limit(value_at_most=_CONSTANT_READS),
        ),
    ]


def _share(name: str, what: str, guest: str, ratio: float | None, limit: Limit) -> Figure:
    return Figure(f"restore.{name}.{guest}", what, 100 * (ratio or 0.0), "%", limit=limit)
