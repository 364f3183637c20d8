"""The layer contract covers everything, and the command line starts without what it does not need."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from memvm import errors
from memvm.errors import MemvmError

PACKAGE = Path(errors.__file__).parent
ABOVE_ALL_LAYERS = {"__init__", "__main__"}
HEAVY = [
    "asyncio",
    "cryptography",
    "ctypes",
    "multiprocessing",
    "psutil",
    "ptrace",
    "rich",
    "subprocess",
    "zstandard",
]


def test_every_part_of_memvm_has_its_layer() -> None:
    """lint-imports says nothing of a package that its contract does not name."""
    settings = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    named = {name.strip().removeprefix("memvm.") for layer in layers for name in layer.split("|")}
    parts = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert parts - ABOVE_ALL_LAYERS == named


@pytest.mark.parametrize("module", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_says_first_what_it_is(module: Path) -> None:
    assert module.read_text().startswith('"""')


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import contextlib, io, json, sys\n"
        "from memvm.__main__ import main\n"
        "sys.argv = ['memvm', '--help']\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    main()\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert json.loads(done.stdout) == []


def test_every_error_has_an_exit_status_of_its_kind() -> None:
    """sysexits.h's range, or timeout(1)'s 124: never a status that guests return by habit."""
    kinds: list[type[MemvmError]] = [MemvmError, *MemvmError.__subclasses__()]
    assert [kind.__name__ for kind in kinds if not (64 <= kind.exit_code <= 78 or kind.exit_code == 124)] == []
