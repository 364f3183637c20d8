"""The progress bar is seen by people who wait, and by nobody else."""

from __future__ import annotations

import io
import sys

import pytest

from memvm.report import progress
from memvm.report.progress import ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(stderr: io.StringIO | None, patience: float) -> None:
    """Some work with a bar. The stream is exchanged here, because pytest exchanges it between its phases."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        patch.setattr(progress, "PATIENCE", patience)
        patch.setenv("TERM", "xterm")
        with ProgressBar("saving hub") as bar:
            bar(1 << 20, 4 << 20)
            bar(4 << 20, 4 << 20)


def test_long_work_on_a_terminal_has_a_bar() -> None:
    terminal = Terminal()
    work(terminal, patience=0)
    assert "saving hub" in terminal.getvalue()
    assert "4.0/4.0 MiB" in terminal.getvalue()


def test_short_work_has_none() -> None:
    terminal = Terminal()
    work(terminal, patience=1000)
    assert terminal.getvalue() == ""


def test_no_terminal_has_none() -> None:
    stream = io.StringIO()
    work(stream, patience=0)
    work(None, patience=0)
    assert stream.getvalue() == ""
