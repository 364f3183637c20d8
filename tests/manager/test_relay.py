"""The line relay: whole lines, with a name in front, whatever pieces they come in."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memvm.manager.relay import LONGEST_LINE, LineRelay


class Pipes:
    """A relay of two writers, and what it has written."""

    def __init__(self) -> None:
        self._reading, target = os.pipe()
        self._target = target
        self.relay = LineRelay(target)
        self.writers = {}
        self.readers = {}
        for name in ("a", "b"):
            self.readers[name], self.writers[name] = os.pipe()
            self.relay.add(self.readers[name], name)

    def write(self, name: str, data: bytes) -> None:
        """A writer writes, and the relay reads."""
        os.write(self.writers[name], data)
        self.relay.ready(self.readers[name])

    def finish(self, name: str) -> None:
        os.close(self.writers.pop(name))
        self.relay.ready(self.readers[name])

    def read(self) -> bytes:
        return os.read(self._reading, 1 << 20)

    def break_target(self) -> None:
        os.close(self._reading)

    def close(self) -> None:
        self.relay.close()
        for fd in self.writers.values():
            os.close(fd)
        os.close(self._target)


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    pipes = Pipes()
    yield pipes
    pipes.close()
    try:
        pipes.break_target()
    except OSError:  # the test has done it
        return


def test_lines_of_several_writers_do_not_mix(pipes: Pipes) -> None:
    pipes.write("a", b"one ")
    pipes.write("b", b"two\nthree")
    pipes.write("a", b"half\n\n")
    pipes.finish("b")
    assert pipes.read() == b"[b] two\n[a] one half\n[a] \n[b] three\n"
    assert pipes.relay.pipes == [pipes.readers["a"]]


def test_a_line_without_end_is_broken(pipes: Pipes) -> None:
    for _ in range(2):
        pipes.write("a", b"x" * (LONGEST_LINE // 2))
    assert pipes.read() == b"[a] " + b"x" * LONGEST_LINE + b"\n"


def test_writers_hear_of_a_target_that_nobody_reads(pipes: Pipes) -> None:
    pipes.break_target()
    pipes.write("a", b"for nobody\n")
    assert pipes.relay.pipes == []
    for writer in pipes.writers.values():
        with pytest.raises(BrokenPipeError):
            os.write(writer, b"more\n")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.lists(st.binary(min_size=1, max_size=40), max_size=10))
def test_all_that_is_written_arrives(pieces: list[bytes]) -> None:
    pipes = Pipes()
    for piece in pieces:
        pipes.write("a", piece)
    pipes.finish("a")
    written = b"".join(pieces)
    wanted = written.split(b"\n")
    if not wanted[-1]:
        wanted.pop()
    os.write(pipes._target, b".")
    assert pipes.read() == b"".join(b"[a] %b\n" % line for line in wanted) + b"."
    pipes.close()
    pipes.break_target()
