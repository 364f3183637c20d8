"""What the README shows is what happens: its commands exist, and its Python example runs as it is printed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from memvm.cli.commands import SUMMARIES
from tests.support import MemvmCli

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"(?:^    .*\n|^\n(?=    ))+", (ROOT / "README.md").read_text(), re.MULTILINE)
COMMANDS = [line.strip() for block in BLOCKS for line in block.splitlines() if line.startswith("    memvm ")]


def test_the_python_example_prints_what_it_says(busybox: Path, tmp_path: Path, time_scale: float) -> None:
    (tmp_path / "busybox").symlink_to(busybox)
    prints_what_it_says("import subprocess, memvm", tmp_path, time_scale)


def test_the_python_example_with_a_disk(tmp_path: Path, memvm_cli: MemvmCli, time_scale: float) -> None:
    if shutil.which("perl") is None:
        pytest.skip("no perl here: apt-get install perl-base")
    (tmp_path / "secret.key").write_bytes(b"secret")
    disk = ("--key-file", "secret.key", "data.img")
    quick = ("--pbkdf", "pbkdf2", "--pbkdf-iterations", "1000")
    memvm_cli("disk", "create", "--size", "64K", *quick, *disk, cwd=tmp_path, code=0)
    memvm_cli("disk", "import", *disk, "-", stdin=b"some words\n", cwd=tmp_path, code=0)
    prints_what_it_says("import memvm, subprocess", tmp_path, time_scale)


def prints_what_it_says(beginning: str, directory: Path, time_scale: float) -> None:
    """Run the README's example that begins so."""
    (block,) = (block for block in BLOCKS if beginning in block)
    source = "\n".join(line[4:] for line in block.splitlines())
    expected = "".join(f"{told.strip()}\n" for told in re.findall(r"print\(.*# ([^:\n]*)", source))
    path = f"{directory}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", source]
    done = subprocess.run(
        command, cwd=directory, env=env, capture_output=True, text=True, timeout=60 * time_scale, check=False
    )
    assert done.stderr == ""
    assert expected
    assert done.stdout == expected


def test_commands_are_shown() -> None:
    assert {shlex.split(command)[1] for command in COMMANDS} >= set(SUMMARIES) - {"doctor"}


@pytest.mark.parametrize("command", COMMANDS)
def test_options_that_are_shown_exist(command: str, memvm_cli: MemvmCli) -> None:
    words = shlex.split(command.split("|")[0].split("<")[0], comments=True)[1:]
    shown = set(words[1 : words.index("--") if "--" in words else None])
    known = memvm_cli(words[0], "--help", code=0).text
    for option in (word for word in shown if word.startswith("--")):
        assert option in known
