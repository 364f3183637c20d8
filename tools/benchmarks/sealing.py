"""What it costs that a guest is sealed: its page faults, and its checkpoints, beside those of an open guest.

Sealed and open are the same program, saved and restored by the same commands, in turn. A fault is that of a page which
is still in the checkpoint, read one after the other; a sealed one is decrypted on its way. Checkpoints are of 1 GiB of
memory, and their times those that the manager reports.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from tempfile import mkdtemp

from tests.sealed.lab import SealedLab
from tests.support import MemvmCli
from tools.benchmarks.figures import Figure, Limit, Reference
from tools.benchmarks.guest_process import GuestProcess, save
from tools.benchmarks.setting import BenchmarkError, Setting, in_turn, warm_file, warm_memory
from tools.benchmarks.ticking import RAM_MIB, TOTAL_MIB, WARM

FAULT = Limit(ratio_at_most=3.0)
SAVE = Limit(ratio_at_most=1.3)
PAGES = 10_000
_STRIDE = 16
"""Pages between two that are read: each is in another chunk, and nobody else's fault brings it."""
_FAULT_RAM = "1G"
_FIGURES = re.compile(r"p50 (\d+) p90 (\d+) p99 (\d+) ns")
_AGAIN = 'fork = "warning"\nrollback = "warning"\n'
"""What is measured several times is restored from one checkpoint several times."""
_SIDES = ("open", "sealed")


def measure(setting: Setting) -> list[Figure]:
    """Medians over the runs."""
    return [*_faults(setting), *_saves(setting)]


@contextmanager
def _lab(setting: Setting, program: str, arguments: Sequence[str], ram: str) -> Iterator[SealedLab]:
    folder = Path(mkdtemp(dir=setting.directory, prefix="sealed-"))
    with SealedLab(folder, MemvmCli(1.0), Path(program), arguments, ram=ram, policy=_AGAIN).served() as lab:
        os.environ.update(lab.environment)
        yield lab


def _words(lab: SealedLab, side: str) -> list[str]:
    """How to run its program."""
    words = [word for word in lab.words if side == "sealed" or not ("sealed" in word or "keeper" in word)]
    return [*words, "--", *lab.command]


def _faults(setting: Setting) -> list[Figure]:
    numbers = [str(PAGES), str(_STRIDE), "again"]
    newline = setting.directory / "newline"
    newline.write_text("\n")
    files = {side: setting.directory / f"faults-{side}.ckpt" for side in _SIDES}
    times: dict[str, list[tuple[float, ...]]] = {side: [] for side in _SIDES}
    with _lab(setting, setting.guest("faultbench"), numbers, _FAULT_RAM) as lab:
        for side in _SIDES:
            with GuestProcess(f"bench-{side}", "run", _words(lab, side)) as guest:
                guest.wait_for_lines(1)
                save(guest.name, files[side])
        for run in range(setting.runs):
            for side in in_turn(run, *_SIDES):
                warm_file(files[side])
                warm_memory(PAGES * _STRIDE * 4096)
                times[side].append(_restored(lab, files[side], newline, sealed=side == "sealed"))
    return [
        Figure(
            name,
            f"{what} of the time a sealed guest waits for a page of its checkpoint",
            median(each[place] for each in times["sealed"]),
            "µs",
            Reference(median(each[place] for each in times["open"]), "an open guest, the same program"),
            FAULT if place == 0 else Limit(),
            tuple(each[place] for each in times["sealed"]),
        )
        for place, (name, what) in enumerate([("sealed", "median"), ("sealed.p90", "90th percentile")])
    ]


def _restored(lab: SealedLab, file: Path, newline: Path, *, sealed: bool) -> tuple[float, ...]:
    how = ["--policy=demand", "--no-background"]
    words = list(map(str, lab.restoring(file, *how))) if sealed else [*how, str(file)]
    with newline.open("rb") as stdin, GuestProcess("bench-faults", "restore", words, stdin) as guest:
        guest.wait_for(lambda lines: any(_FIGURES.search(line.text) for line in lines))
        for line in guest.lines:
            if match := _FIGURES.search(line.text):
                return tuple(int(text) / 1000 for text in match.groups())
    raise BenchmarkError("the guest of the sealed faults said nothing")


def _saves(setting: Setting) -> list[Figure]:
    numbers = [str(TOTAL_MIB), "1", "60000", "0", "touched"]
    times: dict[tuple[str, str], list[float]] = {(side, how): [] for side in _SIDES for how in ("live", "stopped")}
    with _lab(setting, setting.guest("ticker"), numbers, f"{RAM_MIB}M") as lab, ExitStack() as running:
        guests = {}
        for side in _SIDES:
            warm_memory(WARM)
            guest = running.enter_context(GuestProcess(f"bench-{side}", "run", _words(lab, side)))
            guest.wait_for_lines(1)
            guests[side] = guest
        for run in range(setting.runs):
            for how in ("live", "stopped"):
                for side in in_turn(run, *_SIDES):
                    warm_memory(WARM)
                    file = setting.directory / f"save-{side}.ckpt"
                    report = save(guests[side].name, file, *(["--live"] if how == "live" else []))
                    times[side, how].append(report["seconds"])
    return [
        Figure(
            name,
            f"a {how} checkpoint of a sealed guest that waits",
            median(times["sealed", how]),
            "s",
            Reference(median(times["open", how]), "of an open one"),
            SAVE,
            tuple(times["sealed", how]),
        )
        for name, how in (("sealed.save", "live"), ("sealed.save.stopped", "stopped"))
    ]
