#!/usr/bin/env python3
"""Builds the demo guests that are out of date, each in the variants that its expected.json names.

    tools/build_guests.py [NAME ...]

guests/NAME/NAME.c becomes guests/build/NAME (glibc, static), NAME-pie (the same, position-independent) and
NAME-musl. Without musl-gcc those of musl are left out, and without a library those that need it, and a line says so;
without gcc nothing is built.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

GUESTS = Path(__file__).resolve().parent.parent / "guests"
BUILD = GUESTS / "build"
INCLUDE = GUESTS / "include"
OPTIONS = ["-std=gnu11", "-O2", "-Wall", "-Wextra", f"-I{INCLUDE}"]


class CannotBuild(Exception):
    """A guest cannot be built; the message says why, and what to do."""


@dataclass(frozen=True)
class Variant:
    """One way to build a guest."""

    suffix: str
    """What it adds to the program's name."""
    compiler: str
    options: tuple[str, ...]
    package: str
    """Debian's name of what brings the compiler and its C library."""


LIBRARIES = {"nettle": "nettle-dev", "hogweed": "nettle-dev", "gmp": "libgmp-dev"}
"""Static libraries that guests may need, and Debian's names of what brings them."""

VARIANTS = {
    "static": Variant("", "gcc", ("-static", "-no-pie", "-fno-pie"), "gcc libc6-dev"),
    "static-pie": Variant("-pie", "gcc", ("-static-pie", "-fPIE"), "gcc libc6-dev"),
    "musl": Variant("-musl", "musl-gcc", ("-static", "-no-pie", "-fno-pie"), "musl-tools"),
}


@dataclass(frozen=True)
class Program:
    """One program to build: a guest in one variant."""

    guest: str
    variant: Variant
    libraries: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As build() names it: "counter-pie", "bad/null"."""
        return self.guest + self.variant.suffix

    @property
    def folder(self) -> Path:
        """Where its source is."""
        return GUESTS / self.guest

    @property
    def source(self) -> Path:
        """Its one source file, which has the folder's name."""
        return self.folder / f"{self.folder.name}.c"

    @property
    def path(self) -> Path:
        """Where the built program is."""
        return BUILD / self.name


def guest_names() -> list[str]:
    """The names of all guests, which are their folders below guests/: "counter", "bad/null"."""
    return sorted(str(file.parent.relative_to(GUESTS)) for file in GUESTS.glob("**/expected.json"))


def build(only: Iterable[str] | None = None) -> dict[str, Path]:
    """Builds what is out of date, and returns the path of each program by its name.

    `only` names guests ("counter", "bad/null"); None is all of them. A guest comes in all of its variants,
    those of musl only where musl-gcc is installed, and none if a library is missing. Raises CannotBuild, and
    OSError if it cannot write.
    """
    names = guest_names()
    wanted = names if only is None else list(only)
    if unknown := sorted(set(wanted) - set(names)):
        raise CannotBuild(f"no such guest: {', '.join(unknown)}. There are: {', '.join(names)}")
    programs = [
        program
        for name in wanted
        for program in _programs(name)
        if _has_compiler(program.variant) and not missing_libraries(name)
    ]
    stale = [program for program in programs if _is_stale(program)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(_compile, stale):
            pass
    return {program.name: program.path for program in programs}


def _programs(guest: str) -> Iterator[Program]:
    declared = json.loads((GUESTS / guest / "expected.json").read_text())
    for name in declared["variants"]:
        if name not in VARIANTS:
            raise CannotBuild(f"guests/{guest}/expected.json: no variant {name}. There are: {', '.join(VARIANTS)}")
        yield Program(guest, VARIANTS[name], tuple(declared.get("libraries", ())))


def missing_libraries(guest: str) -> list[str]:
    """The static libraries that a guest needs and that are not here."""
    declared = json.loads((GUESTS / guest / "expected.json").read_text()).get("libraries", [])
    return [name for name in declared if not _has_library(name)]


@cache
def _has_library(name: str) -> bool:
    """Whether the compiler finds it; it prints the mere name of what it does not find."""
    command = ["gcc", f"-print-file-name=lib{name}.a"]
    found = subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()
    return found.startswith("/")


def _has_compiler(variant: Variant) -> bool:
    if shutil.which(variant.compiler) is not None:
        return True
    if variant.compiler == "gcc":
        raise CannotBuild(f"there is no gcc here. As root: apt-get install {variant.package}")
    return False


def _is_stale(program: Program) -> bool:
    """Older than its source, a shared header, or this file, which has the compiler's options."""
    if not program.path.exists():
        return True
    inputs = [program.source, *INCLUDE.glob("*.h"), Path(__file__)]
    return program.path.stat().st_mtime < max(file.stat().st_mtime for file in inputs)


def _compile(program: Program) -> None:
    """Compiles under another name and renames, so that nobody who builds or runs it meanwhile sees a half."""
    program.path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=program.path.parent, prefix=".") as temporary:
        output = Path(temporary) / program.path.name
        command = [program.variant.compiler, *OPTIONS, *program.variant.options, "-o", str(output)]
        command += [str(program.source), *(f"-l{name}" for name in program.libraries)]
        result = subprocess.run(command, check=False, capture_output=True, text=True)
        if result.returncode != 0:
            raise CannotBuild(
                f"{program.name} does not compile: {' '.join(command)}\n{result.stderr.rstrip()}\n"
                f"If a header or a library is missing, as root: apt-get install {program.variant.package}"
            )
        sys.stderr.write(result.stderr)  # warnings
        output.rename(program.path)


def main(arguments: list[str]) -> int:
    """The command line: builds, and says what was left out."""
    try:
        programs = build(arguments or None)
    except (CannotBuild, OSError) as error:
        print(f"build_guests: {error}", file=sys.stderr)
        return 1
    print(f"{len(programs)} guest programs are up to date in {BUILD}")
    for name in arguments or guest_names():
        if missing := missing_libraries(name):
            packages = " ".join(sorted({LIBRARIES[library] for library in missing}))
            print(f"without {name}, which needs {', '.join(missing)}. As root: apt-get install {packages}")
    if shutil.which("musl-gcc") is None:
        package = VARIANTS["musl"].package
        print(f"without those of musl: there is no musl-gcc here. As root: apt-get install {package}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
