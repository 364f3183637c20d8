"""`memvm demo`: it prints what the README shows, sees when something is wrong, and leaves nothing behind."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from memvm.cli.demo_lab import DemoLab, Ended, wrapped
from memvm.cli.demo_sealed import Story
from memvm.errors import HostError
from tests.support import MemvmCli
from tests.test_readme import BLOCKS
from tools.build_guests import missing_libraries


@pytest.fixture
def worker(guests: Mapping[str, Path]) -> Path:
    if missing := missing_libraries("worker"):
        pytest.skip(f"the worker needs {', '.join(missing)}: apt-get install nettle-dev")
    return guests["worker"]


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A directory for temporary files, which has to be empty in the end."""
    parent = tempfile.gettempdir()
    with tempfile.TemporaryDirectory(prefix="md", dir=parent if len(parent) < 30 else "/tmp") as folder:
        yield Path(folder)
        assert not list(Path(folder).iterdir())


def test_it_prints_what_the_readme_shows(worker: Path, temporary: Path, memvm_cli: MemvmCli) -> None:
    shown = memvm_cli("demo", "--sealed", "--worker", worker, code=0, timeout=240, env={"TMPDIR": str(temporary)})
    (picture,) = (block for block in BLOCKS if "Its checkpoint's key goes to" in block)
    readme = "\n".join(line.removeprefix("    ") for line in picture.splitlines())
    assert the_same_each_time(shown.text) == the_same_each_time(readme)
    assert shown.err == ""


def the_same_each_time(text: str) -> str:
    """Without ports and digests."""
    return re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", re.sub(r"[0-9a-f]{16}…", "DIGEST…", text)).strip()


def test_ended_in_its_midst_it_ends_everybody(worker: Path, temporary: Path, memvm_cli: MemvmCli) -> None:
    """tests/conftest.py looks for processes that are left, too."""
    with memvm_cli.start("demo", "--sealed", "--worker", worker, env={"TMPDIR": str(temporary)}) as demo:
        assert demo.stdout is not None
        while b" words in " not in demo.stdout.readline():  # verifier, broker, keeper and a guest run
            assert demo.poll() is None
        demo.terminate()
        assert demo.wait(60 * memvm_cli.time_scale) == 128 + 15


def test_without_a_worker_it_says_what_is_missing(memvm_cli: MemvmCli, tmp_path: Path) -> None:
    told = memvm_cli("demo", "--sealed", "--worker", tmp_path / "worker", code=65).err
    assert "there is no compiled worker" in told
    assert "build_guests.py" in told
    (tmp_path / "worker").write_bytes(b"something else")
    assert "not the worker" in memvm_cli("demo", "--sealed", "--worker", tmp_path / "worker", code=65).err
    assert "--sealed" in memvm_cli("demo", code=64).err


@pytest.mark.parametrize(
    ("status", "out", "err", "is_right"),
    [(1, "", "it is of no known program", True), (0, "", "it is of no known program", False), (1, "", "a bug", False)],
)
def test_it_judges_refusals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], status: int, out: str, err: str, is_right: bool
) -> None:
    (tmp_path / "program").touch()
    story = Story(DemoLab(tmp_path, tmp_path / "program"))
    story.expect_refusal(Ended(status, out, err), "of no known program")
    assert story.judge() == int(not is_right)
    assert ("WRONG" in capsys.readouterr().out) is not is_right


def test_it_judges_what_was_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "program").touch()
    story = Story(DemoLab(tmp_path, tmp_path / "program"))
    story.expect_count(Ended(0, "21000 words in 108000 bytes\n", ""))
    assert story.judge() == 0
    story.expect_count(Ended(0, "0 words in 0 bytes\n", ""))

    def ends() -> str:
        raise HostError("it ended")

    story.expect_line(ends)
    assert story.judge() == 1
    assert "2 of these" in capsys.readouterr().out


def test_commands_are_wrapped_where_a_shell_takes_them() -> None:
    command = " ".join(f"--option-{number} value" for number in range(12))
    lines = wrapped("   $ ", command, " \\").split("\n")
    assert len(lines) > 1
    assert " ".join(line.removeprefix("   $ ").removesuffix("\\").strip() for line in lines) == command
