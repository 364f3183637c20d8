"""The lesson of the README, followed as a stranger does: each command as it is printed, each answer as it is told."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support import kill_tree

ROOT = Path(__file__).resolve().parents[2]
SAYS = re.compile(r"\s+# says: (.*)$")
PRINTED = "http://127.0.0.1:8080"


def lesson() -> tuple[list[str], str]:
    """Its commands, and the policy file."""
    text = (ROOT / "README.md").read_text()
    part = text.partition("## Proving it to somebody else: a lesson\n")[2].partition("\n### ")[0]
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", part, re.MULTILINE)
    files = [block for block in blocks if block.strip().startswith("[verifier]")]
    commands = [line.strip() for block in blocks if block not in files for line in block.splitlines() if line.strip()]
    (policy,) = files
    return commands, "\n".join(line[4:] for line in policy.splitlines())


@pytest.fixture
def terminal(tmp_path: Path, guests: Mapping[str, Path]) -> Iterator[dict[str, str]]:
    """The environment of a stranger, in whose directory the two files are, and whose `memvm` is this one."""
    if shutil.which("gcc") is None:
        pytest.skip("no C compiler here: apt-get install gcc")
    for source in ("guests/attested/attested.c", "guests/include/memvm_attest.h"):
        shutil.copy(ROOT / source, tmp_path)
    (folder := tmp_path / "bin").mkdir()
    script = folder / "memvm"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m memvm "$@"\n')
    script.chmod(0o755)
    (home := tmp_path / "home").mkdir()
    unset = ("MEMVM_PLATFORM_DIR", "XDG_DATA_HOME")
    env = {name: value for name, value in os.environ.items() if name not in unset}
    yield env | {"HOME": str(home), "PATH": f"{folder}{os.pathsep}{env['PATH']}", "PYTHONPATH": str(ROOT)}


@contextmanager
def other_terminal(command: str, first: str, env: Mapping[str, str], directory: Path, patience: float) -> Iterator[str]:
    """A command that goes on, until Ctrl-D, or Ctrl-C if it is a verifier; what its first line has behind `first`.

    With `first` empty, it may say nothing.
    """
    with subprocess.Popen(
        ["bash", "-c", f"exec {command}"],
        cwd=directory,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            line = process.stdout.readline().decode() if first else ""
            assert line.startswith(first), command
            yield line.removeprefix(first).strip()
        finally:
            assert process.stdin is not None
            process.stdin.close()
            if "verifier" in command:
                process.send_signal(signal.SIGINT)
            try:
                process.wait(patience)
            finally:
                kill_tree(process.pid)


def test_every_answer_is_as_it_is_told(terminal: dict[str, str], tmp_path: Path, time_scale: float) -> None:
    commands, policy = lesson()
    (tmp_path / "policy.toml").write_text(policy)
    url, told, patience = "", 0, 60 * time_scale
    with ExitStack() as others:
        for line in commands:
            command, expected = SAYS.sub("", line).replace(PRINTED, url), SAYS.search(line)
            if command.startswith("memvm verifier serve"):
                command = command.replace("--port 8080", "--port 0")
                url = others.enter_context(other_terminal(command, "verifier at", terminal, tmp_path, patience))
            elif command.startswith("memvm run"):
                others.enter_context(other_terminal(command, "a guest", terminal, tmp_path, patience))
            elif command.startswith("memvm restore"):
                # It has said its line already, and runs when others can ask for it.
                others.enter_context(other_terminal(command, "", terminal, tmp_path, patience))
                name = command.split()[3]
                wait = f"until memvm ps | grep -q '{name}.*running'; do sleep 0.05; done"
                subprocess.run(["bash", "-c", wait], cwd=tmp_path, env=terminal, timeout=patience, check=True)
            else:
                done = subprocess.run(
                    ["bash", "-c", command],
                    cwd=tmp_path,
                    env=terminal,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    timeout=patience,
                    check=False,
                )
                if expected is None:
                    assert done.returncode == 0, f"{command}\n{done.stdout}"
                    continue
                for words in expected[1].split("; "):
                    told += 1
                    assert words in done.stdout, f"{command}\n{done.stdout}"
    assert told > 15
