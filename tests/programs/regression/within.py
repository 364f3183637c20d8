"""Runs modules of python3's own regression tests, in the python3 that is to be tested, and prints what came of each.

    python3 -c "$(cat within.py)" test_math test_json ...

It is given to python3 as a guest, and to the same python3 without memvm, and imports nothing but what comes with it. A
test that would start another process or open a socket is skipped, by the means that the tests have for systems without.
Standard output has one JSON object a line for each module: its name, and the outcome of each of its tests by name.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import posix
import socket
import subprocess
import sys
import time
import unittest
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from typing import Any, NoReturn

from test import support  # type: ignore[import-not-found]
from test.support import os_helper, socket_helper  # type: ignore[import-not-found]


def main(names: list[str]) -> None:
    """Run these modules, one after the other."""
    for name in names:
        began = time.monotonic()
        outcomes = Outcomes()
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said), os_helper.temp_cwd("regression", quiet=True):
            run(name, outcomes)
        line = {"module": name, "by_name": outcomes.by_name, "words": outcomes.words}
        sys.stdout.write(json.dumps({**line, "seconds": time.monotonic() - began}) + "\n")
        sys.stdout.flush()


def run(name: str, outcomes: Outcomes) -> None:
    """Run one module's tests."""
    try:
        module = importlib.import_module(f"test.{name}")
        if hasattr(module, "test_main"):  # it puts its suite together by itself
            support._run_suite = lambda suite: suite.run(outcomes)
            module.test_main()
        else:
            unittest.defaultTestLoader.loadTestsFromModule(module).run(outcomes)
    except unittest.SkipTest as reason:
        outcomes.note(name, "skipped", str(reason))


class Outcomes(unittest.TestResult):
    """Remembers what came of each test, and the last words of those that failed."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name: dict[str, str] = {}
        self.words: dict[str, str] = {}

    def note(self, name: str, outcome: str, words: str = "") -> None:
        """A failure is not overwritten by what comes of the test's other parts."""
        if self.by_name.get(name) != "failed":
            self.by_name[name] = outcome
            if words:
                self.words[name] = words

    def addSuccess(self, test: unittest.TestCase) -> None:
        self.note(str(test), "passed")

    def addExpectedFailure(self, test: unittest.TestCase, err: Any) -> None:
        self.note(str(test), "passed")

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self.note(str(test), "skipped", reason)

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        self.note(str(test), "failed", self._exc_info_to_string(err, test)[-2000:])  # type: ignore[attr-defined]

    addFailure = addError

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        if err is not None:
            self.addError(test, err)

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        self.note(str(test), "failed", "it was expected to fail")


def refusing(what: str) -> Callable[..., NoReturn]:
    """A function that skips the test which calls it."""

    def refuse(*_arguments: object, **_options: object) -> NoReturn:
        raise unittest.SkipTest(what)

    return refuse


def refuse_what_guests_cannot() -> None:
    """Have tests skipped that need other processes, or sockets."""
    support.use_resources = []  # neither the network, nor minutes, nor gigabytes
    support.has_fork_support = support.has_subprocess_support = support.has_socket_support = False
    for module in (os, posix):
        for name in ("fork", "forkpty", "posix_spawn", "posix_spawnp", "execv", "execve", "system"):
            if hasattr(module, name):
                setattr(module, name, refusing("needs another process"))
    subprocess._fork_exec = refusing("needs another process")  # type: ignore[attr-defined]
    subprocess._USE_POSIX_SPAWN = False  # type: ignore[misc]

    class NoSocket(socket.socket):
        __init__ = refusing("needs a socket")

    socket.socket = NoSocket  # type: ignore[misc]
    socket.socketpair = refusing("needs a socket")
    socket_helper.has_gethostname = False


if __name__ == "__main__":
    refuse_what_guests_cannot()
    main(sys.argv[1:])
