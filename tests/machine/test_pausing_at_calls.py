"""A guest that is paused when it has made so many hypercalls, and goes on for so many more."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import memvm
from tests.checkpoint.lives import PATIENCE, SCALE
from tests.machine.conftest import CProgram
from tests.support import MemvmCli

ENGINES = ("userfaultfd", "mprotect")


class Traced:
    """A guest whose calls are noted in a file, one a line."""

    def __init__(self, guest: memvm.Guest, trace: Path) -> None:
        self.guest, self._trace = guest, trace

    def calls(self) -> list[str]:
        """Those that it has made, by name."""
        return [line.partition("(")[0] for line in self._trace.read_text().splitlines()]

    def await_pause(self) -> list[str]:
        """Wait until it stands still; what it has made by then."""
        status = self.guest.wait_until_paused(PATIENCE * SCALE)
        made = self.calls()
        assert 0 <= status.hypercalls - len(made) <= 1, "one may wait for its answer"
        return made


@contextmanager
def traced(argv: list[str | Path], folder: Path, engine: str, calls: int, stdin: int | None = None) -> Iterator[Traced]:
    trace = folder / "trace"
    options: dict[str, Any] = {"strace": True, "engine": engine, "pause_after_calls": calls}
    with (
        trace.open("wb") as told,
        memvm.Guest(argv, env={}, stdin=stdin, stdout=subprocess.DEVNULL, stderr=told, **options) as guest,
    ):
        yield Traced(guest, trace)


@pytest.mark.parametrize("engine", ENGINES)
def test_stops_after_each_of_its_calls(busybox: Path, tmp_path: Path, engine: str) -> None:
    argv: list[str | Path] = [busybox, "echo", "word"]
    with traced(argv, tmp_path, engine, 0) as undisturbed:
        assert undisturbed.guest.wait(PATIENCE * SCALE).code == 0
    expected = undisturbed.calls()
    assert {"brk", "write"} <= set(expected), "it makes both kinds of calls: stops, and notifications"
    with traced(argv, tmp_path, engine, 1) as stepped:
        for count in range(1, len(expected)):
            assert stepped.await_pause() == expected[:count]
            stepped.guest.resume(calls=1)
        assert stepped.guest.wait(PATIENCE * SCALE).code == 0
    assert stepped.calls() == expected


def test_a_resume_without_a_number_is_for_good(busybox: Path, tmp_path: Path) -> None:
    with traced([busybox, "seq", "100"], tmp_path, "auto", 3) as guest:
        assert len(guest.await_pause()) == 3
        guest.guest.resume(calls=2)
        assert len(guest.await_pause()) == 5
        guest.guest.resume()
        assert guest.guest.wait(PATIENCE * SCALE).code == 0


def test_a_pause_by_hand_does_not_undo_it(tmp_path: Path, c_program: CProgram) -> None:
    """It has not made so many calls by then: it waits for its input, of which each byte is a call."""
    with traced([c_program("steps")], tmp_path, "auto", 40, subprocess.PIPE) as guest:
        guest.guest.pause()
        guest.guest.resume()
        assert guest.guest.stdin is not None
        guest.guest.stdin.write(b"".join(b"%07d\n" % line for line in range(1, 11)))
        guest.guest.stdin.flush()
        assert len(guest.await_pause()) >= 39


def test_a_restored_guest_counts_anew(busybox: Path, tmp_path: Path) -> None:
    path = tmp_path / "seq.ckpt"
    with traced([busybox, "seq", "5000"], tmp_path, "auto", 10) as guest:
        guest.await_pause()
        guest.guest.checkpoint(path)
        guest.guest.kill()
    with memvm.restore(path, stdout=subprocess.DEVNULL, pause_after_calls=2) as restored:
        again = Traced(restored, tmp_path / "none")
        again._trace.write_text("a\nb\n")
        again.await_pause()
        restored.resume()
        assert restored.wait(PATIENCE * SCALE).code == 0


def test_who_waits_for_a_pause_hears_of_the_end_and_of_the_time(busybox: Path) -> None:
    with memvm.Guest([busybox, "sleep", "1000"]) as guest:
        with pytest.raises(TimeoutError, match=r"not paused within 0\.01 s"):
            guest.wait_until_paused(0.01)
        killer = threading.Timer(0.05, guest.kill)
        killer.start()
        with pytest.raises(memvm.GuestStateError):
            guest.wait_until_paused(PATIENCE * SCALE)
        killer.join()


@pytest.mark.parametrize("number", ["0", "-1", "many"])
def test_nonsense_is_refused(memvm_cli: MemvmCli, number: str) -> None:
    result = memvm_cli("run", f"--pause-after-calls={number}", "--", "/bin/true", code=64)
    assert f"cannot be paused after '{number}' system calls" in result.err
