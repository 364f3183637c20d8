"""What the fuzzers have in common: their options, how long they go on, and how they say what did harm."""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from memvm.units import PAGE_SIZE

_Result = TypeVar("_Result")


class Fuzzed(NamedTuple):
    """What is tried, in words."""

    unit: str
    """What is counted: files, or messages."""
    taken: str
    """What becomes of those that are not refused."""
    tool: str
    """The module that is run."""


def options(what: Fuzzed, description: str) -> argparse.ArgumentParser:
    """The options that each fuzzer has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seconds", type=float, default=60, help="how long to try (default: 60)")
    parser.add_argument(f"--{what.unit}", type=int, default=None, help="how many to try, whatever the time")
    parser.add_argument("--seed", type=int, default=None, help="seed of the first one (default: random)")
    return parser


def fuzz(
    what: Fuzzed, arguments: argparse.Namespace, try_one: Callable[[int], bool], operands: Sequence[Path] = ()
) -> int:
    """Try one seed after the other; the exit status. `try_one` tells whether what it made of a seed was taken.

    Raises what it raises, after saying how that is made again, with the same `operands`.
    """
    first = arguments.seed if arguments.seed is not None else int.from_bytes(os.urandom(4), "little")
    most, deadline = getattr(arguments, what.unit), time.monotonic() + arguments.seconds
    tried = taken = 0
    while tried != most and (most is not None or time.monotonic() < deadline):
        seed = first + tried
        try:
            taken += try_one(seed)
        except Exception:
            again = " ".join([f"python3 -m {what.tool} --{what.unit} 1 --seed {seed}", *map(str, operands)])
            print(f"this one did harm; to make it again: {again}", file=sys.stderr)
            raise
        tried += 1
    print(f"{tried} {what.unit} from seed {first}: {taken} {what.taken}, the rest refused; all well")
    return 0


def in_time(limit: float, check: Callable[[], _Result]) -> _Result:
    """What `check` returns or raises, if it does so within that many seconds of processor time; else AssertionError."""
    started = time.process_time()
    try:
        return check()
    finally:
        took = time.process_time() - started
        assert took < limit, f"it took {took:.1f} s"


@contextmanager
def memory_limit(more: int) -> Iterator[None]:
    """While this is entered, the process may have so many bytes more than it has."""
    pages_in_use = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages_in_use * PAGE_SIZE + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
