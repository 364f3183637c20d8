"""The demonstration: a guest is saved while it runs, killed, and comes back, eagerly and lazily.

The guest is an ordinary static program, guests/ticker: it holds a gibibyte of memory, prints a numbered line every few
milliseconds, says by how much each line is late, and checks the part of its memory that it works on before each line.
The demonstration checks that the lines go on where they were, without a gap, and exits with 1 if they do not.
"""

from __future__ import annotations

import argparse
import queue
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import memvm
from memvm.units import PAGE_SIZE, format_duration, format_size

TICKER = Path(__file__).resolve().parents[1] / "guests" / "build" / "ticker"
HOT_MIB, PERIOD_MS = 16, 5
WATCHED_LINES = 200


@dataclass(frozen=True)
class Tick:
    """One line of the guest's: its number, by how much it was late, and when it came, in seconds."""

    number: int
    late: float
    came: float


class Ticks:
    """The lines of one ticker, read as they come."""

    def __init__(self, guest: memvm.Guest) -> None:
        assert guest.stdout is not None
        self._stream = guest.stdout
        self._lines: queue.SimpleQueue[Tick | None] = queue.SimpleQueue()
        self.seen: list[Tick] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._stream:
            came = time.monotonic()
            words = line.split()
            if words[:1] == [b"tick"] and words[2:3] == [b"late_us"]:
                self._lines.put(Tick(int(words[1]), int(words[3]) / 1e6, came))
            elif words[:1] != [b"ready"]:
                print(f"  the guest said: {line.decode().rstrip()}")
        self._lines.put(None)

    def next(self) -> Tick:
        """The next line; ends the demonstration if there is none."""
        tick = self._lines.get(timeout=60)
        if tick is None:
            sys.exit("demo: the guest ended before its time")
        self.seen.append(tick)
        return tick

    def collect(self, count: int) -> list[Tick]:
        """So many lines more."""
        return [self.next() for _ in range(count)]

    def rest(self) -> None:
        """What was printed until the guest ended."""
        while (tick := self._lines.get(timeout=60)) is not None:
            self.seen.append(tick)


@dataclass(frozen=True)
class Comeback:
    """What one restore did. Times in seconds."""

    ticks: list[Tick]
    first_line: float
    loaded: int
    """Pages that were there at the first line."""
    faulted: int
    all_loaded: float
    latest: float


def main() -> int:
    """Run the demonstration; 0 if the guest went on as if nothing had happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024, help="how much memory the guest holds (1024)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="memvm-demo-", dir="/var/tmp") as folder:
        path = Path(folder) / "ticker.ckpt"
        before = _run_and_save(path, arguments.mib)
        eager = _come_back(path, lazy=False)
        lazy = _come_back(path, lazy=True)
    _compare(eager, lazy)
    return _judge(before, eager, lazy)


def _run_and_save(path: Path, mib: int) -> list[Tick]:
    ram = f"{mib + 64}M"
    print(f"1. A guest runs: ticker, a static program, with {mib} MiB of memory, a line every {PERIOD_MS} ms")
    print(f"   $ memvm run --ram {ram} --name ticker -- ./ticker {mib} {HOT_MIB} {PERIOD_MS}")
    command = [str(TICKER), str(mib), str(HOT_MIB), str(PERIOD_MS)]
    with memvm.Guest(command, ram=ram, stdout=subprocess.PIPE) as guest:
        ticks = Ticks(guest)
        for tick in ticks.collect(WATCHED_LINES)[-3:]:
            print(f"     tick {tick.number}, late by {format_duration(tick.late)}")
        print("\n2. It is saved while it runs")
        print("   $ memvm checkpoint --live ticker ticker.ckpt")
        first = len(ticks.seen)
        report = guest.checkpoint(path, live=True)
        ticks.collect(WATCHED_LINES)
        guest.kill()
        ticks.rest()
    during = ticks.seen[first:]
    print(
        f"     {format_size(report.bytes_raw)} of memory in a file of {format_size(report.bytes_file)},",
        end=" ",
    )
    print(f"in {format_duration(report.seconds)}")
    print(f"     frozen for {format_duration(report.frozen_seconds)}; meanwhile", end=" ")
    print(f"no line was later than {format_duration(max(tick.late for tick in during))}")
    print(f"\n3. It is killed, after tick {ticks.seen[-1].number}\n   $ memvm kill ticker")
    return ticks.seen


def _come_back(path: Path, *, lazy: bool) -> Comeback:
    how = "lazy" if lazy else "eager"
    print(f"\n{'5' if lazy else '4'}. It comes back, {'with only the pages that it needs' if lazy else 'whole'}")
    print(f"   $ memvm restore --{how} ticker.ckpt")
    began = time.monotonic()
    with memvm.restore(path, lazy=lazy, stdout=subprocess.PIPE) as guest:
        ticks = Ticks(guest)
        first = ticks.next()
        status = guest.status()
        total = status.ram_touched + status.ram_deferred
        all_loaded = time.monotonic()
        while guest.status().ram_deferred:
            time.sleep(0.01)
            all_loaded = time.monotonic()
        ticks.collect(WATCHED_LINES)
        guest.kill()
        ticks.rest()
    for tick in ticks.seen[:3]:
        print(f"     tick {tick.number}, late by {format_duration(tick.late)}")
    return Comeback(
        ticks=ticks.seen,
        first_line=first.came - began,
        loaded=(total - status.first_output_deferred) // PAGE_SIZE,
        faulted=status.first_output_faults,
        all_loaded=all_loaded - began,
        latest=max(tick.late for tick in ticks.seen[1:]),
    )


def _compare(eager: Comeback, lazy: Comeback) -> None:
    print("\n6. Side by side")
    rows = [
        ("", "eager", "lazy"),
        ("first new line after", *(format_duration(it.first_line) for it in (eager, lazy))),
        ("pages loaded by then", *(f"{it.loaded:,}" for it in (eager, lazy))),
        ("page faults answered by then", *(f"{it.faulted:,}" for it in (eager, lazy))),
        ("all pages loaded after", *(format_duration(it.all_loaded) for it in (eager, lazy))),
        ("latest line after the first", *(format_duration(it.latest) for it in (eager, lazy))),
    ]
    for row in rows:
        print(f"   {row[0]:30}{row[1]:>12}{row[2]:>12}")
    print(f"   the lazy restore was there {eager.first_line / lazy.first_line:.1f} times sooner")


def _judge(before: list[Tick], eager: Comeback, lazy: Comeback) -> int:
    """The lines of each restore must begin right after a line that was printed, and have no gap."""
    print()
    last = before[-1].number
    for name, comeback in (("eager", eager), ("lazy", lazy)):
        numbers = [tick.number for tick in comeback.ticks]
        whole = numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        if not whole or not 1 < numbers[0] <= last + 1 or numbers[0] != eager.ticks[0].number:
            print(f"WRONG: the {name} restore printed ticks {numbers[0]} to {numbers[-1]}, with gaps")
            return 1
    print(f"Right: both went on with tick {eager.ticks[0].number}, without a gap, and the guest, which checks")
    print("its memory before each line, found nothing changed.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
