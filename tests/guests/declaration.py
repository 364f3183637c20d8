"""What each demo guest declares of itself in its expected.json, and whether a run of it kept to that.

guests/README.md describes the format. It is checked strictly: a field that is misspelt must not pass for an
expectation that holds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

from tools.build_guests import GUESTS, LIBRARIES, VARIANTS, guest_names, missing_libraries


class Where(StrEnum):
    """Where a guest runs: the two may be declared to differ."""

    NATIVE = "native"
    MEMVM = "memvm"


@dataclass(frozen=True)
class Run:
    """One run of a guest: how to start it, and what must come of it."""

    guest: str
    name: str
    variants: tuple[str, ...]
    """The programs to run, as tools.build_guests.build() names them."""
    args: tuple[str, ...] = ()
    stdin: bytes = b""
    stdout: bytes | None = None
    """The whole of standard output; of an endless guest its beginning."""
    stdout_lines: tuple[str, ...] | None = None
    """A regular expression for each line of it, instead."""
    stdout_has: tuple[str, ...] = ()
    stdout_lacks: tuple[str, ...] = ()
    exit: tuple[int, ...] = (0,)
    """The exit statuses that are right, as a shell tells them: 128 + number for a signal."""
    endless: bool = False
    report: tuple[str, ...] = ()
    """Words that memvm's report of a guest that went wrong must have."""

    @property
    def beginning(self) -> int:
        """How many lines of an endless guest's output are declared."""
        if self.stdout is not None:
            return self.stdout.count(b"\n")
        return len(self.stdout_lines or ())

    def complaints(self, stdout: bytes, code: int | None) -> list[str]:
        """What is wrong with a run that printed this and ended so; empty if all is right.

        `code` is the exit status as a shell tells it, and None for a guest that still ran and was ended.
        """
        found = [*self._complaints_of_stdout(stdout)]
        if self.endless and code is not None:
            found.append(f"it ended, with {code}, and should run for ever")
        if not self.endless and code not in self.exit:
            found.append(f"its exit status is {code}, and should be {' or '.join(map(str, self.exit))}")
        return found

    def _complaints_of_stdout(self, stdout: bytes) -> Iterator[str]:
        if self.stdout is not None:
            judged = stdout[: len(self.stdout)] if self.endless else stdout
            if judged != self.stdout:
                yield f"its output is {judged!r}, and should be {self.stdout!r}"
        if self.stdout_lines is not None:
            lines = stdout.decode(errors="replace").splitlines()
            count = len(self.stdout_lines)
            if len(lines) < count or (len(lines) > count and not self.endless):
                yield f"its output has {len(lines)} lines, and should have {count}: {lines}"
            for line, pattern in zip(lines, self.stdout_lines, strict=False):
                if re.fullmatch(pattern, line) is None:
                    yield f"it printed {line!r}, which does not match {pattern!r}"
        for text in self.stdout_has:
            if text.encode() not in stdout:
                yield f"its output lacks {text!r}: {stdout!r}"
        for text in self.stdout_lacks:
            if text.encode() in stdout:
                yield f"its output has {text!r}, and must not: {stdout!r}"


def built(run: Run, guests: dict[str, Path]) -> list[Path]:
    """The programs of a run. One that the machine has no compiler for is missing; all of them, if a library is."""
    found = [guests[name] for name in run.variants if name in guests]
    if missing := missing_libraries(run.guest):
        packages = sorted({LIBRARIES[name] for name in missing})
        pytest.skip(f"{run.guest} needs {', '.join(missing)}: apt-get install {' '.join(packages)}")
    assert found
    return found


def declared_runs(where: Where) -> list[Run]:
    """The runs of all guests that are declared for `where`. Raises ValueError for what is no declaration."""
    return [run for guest in guest_names() for run in _runs_of(guest, where)]


def _runs_of(guest: str, where: Where) -> Iterator[Run]:
    folder = GUESTS / guest
    file = folder / "expected.json"
    declaration = json.loads(file.read_text())
    if extra := set(declaration) - {"variants", "libraries", "runs"}:
        raise ValueError(f"{file}: no such field: {extra}")
    programs = tuple(guest + VARIANTS[name].suffix for name in declaration["variants"])
    for declared in declaration["runs"]:
        only = {place: declared.pop(place, {}) for place in Where}
        if only[where] is False:
            continue
        yield Run(guest=guest, variants=programs, **_parsed(declared | only[where], folder))


def _parsed(declared: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The fields of a run, with the contents of the files that it names."""
    known = {field.name for field in fields(Run)} - {"guest", "variants"}
    if extra := set(declared) - known:
        raise ValueError(f"{folder}/expected.json: no such field: {extra}")
    parsed = dict(declared)
    for name in ("stdin", "stdout"):
        if name in parsed:
            parsed[name] = (folder / parsed[name]).read_bytes()
    if "stdout_lines" in parsed:
        parsed["stdout_lines"] = tuple((folder / parsed["stdout_lines"]).read_text().splitlines())
    for name in ("args", "stdout_has", "stdout_lacks", "report"):
        if name in parsed:
            parsed[name] = tuple(parsed[name])
    if "exit" in parsed:
        statuses = parsed["exit"]
        parsed["exit"] = tuple(statuses) if isinstance(statuses, list) else (statuses,)
    return parsed
