"""The command line starts fast, because it imports nothing before it is needed."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

import memvm
from memvm.cli.commands import SUMMARIES
from tests.manager.support import ROOT

HEAVY = (
    *(
        "rich",
        "psutil",
        "zstandard",
        "cryptography",
        "ptrace",
        "ctypes",
        "subprocess",
        "asyncio",
        "dataclasses",
    ),
    *("inspect", "hypothesis", "logging", "importlib.metadata", "tempfile", "memvm.machine", "memvm.manager"),
)

NOT_FOR_A_START = (
    *("dataclasses", "inspect", "shutil", "subprocess", "tempfile", "random", "ctypes.util", "multiprocessing"),
    *("rich", "psutil", "cryptography", "memvm.api", "memvm.checkpoint.save", "memvm.machine.probe"),
)
"""What the first instruction of a guest must not wait for."""

LIST_IMPORTS = """
import sys
before = set(sys.modules)
try:
    {statement}
except SystemExit:
    pass
sys.stdout = sys.stderr
print("\\n".join(sorted(set(sys.modules) - before)))
"""


def imports_of(statement: str) -> set[str]:
    """The modules that a fresh interpreter imports for a statement; -S -E leave out what the machine adds."""
    result = subprocess.run(
        [sys.executable, "-S", "-E", "-c", LIST_IMPORTS.format(statement=statement)],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    return set(result.stderr.split())


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["-v", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    imported = imports_of(f"from memvm.cli.main import main; main({arguments})")
    assert "memvm.cli.main" in imported
    assert [name for name in HEAVY if name in imported] == []


@pytest.mark.parametrize("command", SUMMARIES)
def test_a_commands_help_imports_nothing_outside_the_standard_library(command: str) -> None:
    imported = imports_of(f"from memvm.cli.main import main; main(['{command}', '--help'])")
    assert f"memvm.cli.{command}" in imported
    third_party = {"rich", "psutil", "zstandard", "cryptography", "ptrace"}
    assert imported & third_party == set()


def imports_of_a_guest(*arguments: str) -> set[str]:
    """The modules that `memvm ARGUMENTS` has imported when its guest, which gets no input, has ended."""
    result = subprocess.run(
        [sys.executable, "-c", LIST_IMPORTS.format(statement=f"from memvm.cli.main import main; main({arguments})")],
        check=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    imported = set(result.stderr.split())
    assert "memvm.machine.machine" in imported, result.stderr
    return imported


def test_a_new_guest_waits_for_no_import_that_it_does_not_need(guests: Mapping[str, Path]) -> None:
    imported = imports_of_a_guest("run", "--ram", "64M", str(guests["kv"]))
    assert [name for name in NOT_FOR_A_START if name in imported] == []
    assert "memvm.checkpoint" not in imported


def test_a_restored_guest_waits_for_no_import_that_it_does_not_need(guests: Mapping[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "kv.ckpt"
    with memvm.Guest([guests["kv"]], ram="64M", stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as guest:
        guest.checkpoint(file)
    imported = imports_of_a_guest("restore", str(file))
    assert [name for name in NOT_FOR_A_START if name in imported] == []
    assert not {"memvm.machine.loader", "memvm.machine.elf"} & imported


def test_import_memvm_imports_nothing_else() -> None:
    assert {name for name in imports_of("import memvm") if name.startswith("memvm")} == {"memvm"}


def test_what_memvm_exports_is_there_when_it_is_asked_for() -> None:
    assert memvm.Guest.__module__ == "memvm.api"
    assert issubclass(memvm.SaveError, memvm.MemvmError)
    assert set(memvm.__all__) <= set(dir(memvm))
    for name in memvm.__all__:
        assert getattr(memvm, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Gest'"):
        _ = memvm.Gest  # type: ignore[attr-defined]


def test_the_version_is_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert memvm.__version__ == project["version"]


def test_every_command_has_a_module() -> None:
    modules = {path.stem for path in (ROOT / "memvm" / "cli").glob("*.py")}
    assert set(SUMMARIES) <= modules
