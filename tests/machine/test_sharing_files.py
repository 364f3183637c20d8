"""Shared mappings of files: the same as natively, in memory and written through, also after a restore."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

import memvm
from memvm.errors import CheckpointError
from memvm.units import PAGE_SIZE
from tests.checkpoint.lives import SCALE
from tests.machine.conftest import CProgram
from tests.machine.test_calls_like_linux import ENGINES, compare
from tests.support import MemvmCli


@pytest.fixture(scope="session")
def expected(c_program: CProgram, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, bytes]]:
    """What the program prints, and leaves, natively."""
    folder = tmp_path_factory.mktemp("native")
    run = subprocess.run([c_program("sharing")], cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    return run.stdout, left_in(folder)


def left_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("access", ["rw", "pass"])
def test_mappings_and_calls_agree(
    access: str,
    engine: str,
    c_program: CProgram,
    expected: tuple[str, dict[str, bytes]],
    memvm_cli: MemvmCli,
    tmp_path: Path,
) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    program = c_program("sharing")
    given: list[str | Path] = [f"--{access}", theirs, "--cwd", theirs]
    result = memvm_cli("run", "--engine", engine, "--strict", *given, "--", program, code=0)
    compare(expected[0], result.text)
    assert left_in(theirs) == (expected[1] if access == "pass" else {})


PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
_STEPS = 14
"""Places where the program waits to be saved."""


def printed_until_waiting(guest: memvm.Guest) -> list[str]:
    assert guest.stdout is not None
    lines: list[str] = []
    while (line := guest.stdout.readline().decode().rstrip("\n")) != "waiting":
        assert line, f"it ended before it waited, after {lines}"
        lines.append(line)
    return lines


def printed_to_the_end(guest: memvm.Guest) -> list[str]:
    assert guest.stdin is not None
    assert guest.stdout is not None
    guest.stdin.write(b"go on\n")
    guest.stdin.close()
    lines = guest.stdout.read().decode().splitlines()
    assert guest.wait(60 * SCALE).code == 0, lines
    return lines


def saved_at(
    step: int, program: Path, views: dict[str, Sequence[Path]], folder: Path, file: Path, *, live: bool = False
) -> list[str]:
    """Save the program when it waits, and end it; what it printed."""
    with memvm.Guest([program, str(step)], ram="64M", cwd=folder, **views, **PIPES) as guest:  # type: ignore[arg-type]
        lines = printed_until_waiting(guest)
        guest.checkpoint(file, live=live)
        guest.kill()
    return lines


@pytest.mark.parametrize("step", range(_STEPS))
def test_saved_at_any_moment_they_agree_all_the_same(
    step: int, c_program: CProgram, expected: tuple[str, dict[str, bytes]], tmp_path: Path
) -> None:
    """In memory and written through by turns, lazily and eagerly, live and standing still."""
    theirs, file = tmp_path / "theirs", tmp_path / "saved.ckpt"
    theirs.mkdir()
    written = step % 2 == 1
    views: dict[str, Sequence[Path]] = {"pass_through" if written else "rw": [theirs]}
    lines = saved_at(step, c_program("sharing"), views, theirs, file, live=step % 3 == 0)
    given = views if written else {}  # else they are in the checkpoint
    how = {"lazy": step % 4 < 2, "background": step % 8 < 4}
    with memvm.restore(file, **how, **PIPES, **given) as guest:  # type: ignore[arg-type]
        lines += printed_to_the_end(guest)
    compare(expected[0], "\n".join(lines))
    assert left_in(theirs) == (expected[1] if written else {})


def test_a_mapped_file_that_was_changed_meanwhile(
    c_program: CProgram, expected: tuple[str, dict[str, bytes]], tmp_path: Path
) -> None:
    """It is refused; or the guest meets the new contents, in its mapping too."""
    theirs, file = tmp_path / "theirs", tmp_path / "saved.ckpt"
    theirs.mkdir()
    saved_at(0, c_program("sharing"), {"pass_through": [theirs]}, theirs, file)
    mapped = theirs / "agreeing"
    assert mapped.read_bytes()[10:16] == b"stored", "a checkpoint writes what was stored"
    mapped.write_bytes(b"0123456789STORED".ljust(mapped.stat().st_size, b"."))
    with pytest.raises(CheckpointError, match="has changed since the checkpoint"):
        memvm.restore(file, pass_through=[theirs], **PIPES)  # type: ignore[arg-type]
    with memvm.restore(
        file,
        pass_through=[theirs],
        accept_changed_files=True,
        **PIPES,  # type: ignore[arg-type]
    ) as guest:
        lines = printed_to_the_end(guest)
    assert 'holds(other, 10, "stored"): NO' in lines
    assert mapped.read_bytes()[8:16] == b"89STORED"


def test_a_mapping_that_was_written_through_goes_on_in_memory(
    c_program: CProgram, expected: tuple[str, dict[str, bytes]], tmp_path: Path
) -> None:
    theirs, file = tmp_path / "theirs", tmp_path / "saved.ckpt"
    theirs.mkdir()
    lines = saved_at(2, c_program("sharing"), {"pass_through": [theirs]}, theirs, file)
    before = left_in(theirs)
    with memvm.restore(file, rw=[theirs], **PIPES) as guest:  # type: ignore[arg-type]
        lines += printed_to_the_end(guest)
    compare(expected[0], "\n".join(lines))
    assert left_in(theirs) == before


def test_what_others_write_stays(c_program: CProgram, tmp_path: Path) -> None:
    """Of a file of the host's, only the pages are written that the guest has changed."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    with memvm.Guest(
        [c_program("sharing"), str(_STEPS - 1)],
        ram="64M",
        cwd=theirs,
        pass_through=[theirs],
        **PIPES,  # type: ignore[arg-type]
    ) as guest:
        printed_until_waiting(guest)
        with (theirs / "left").open("r+b") as other:
            for page in range(3):
                other.seek(page * PAGE_SIZE)
                other.write(b"others")
        printed_to_the_end(guest)
    contents = (theirs / "left").read_bytes()
    assert contents[:6] == b"x\0\0\0\0\0"
    assert contents[PAGE_SIZE:][:6] == b"others"
    assert contents[2 * PAGE_SIZE :] == b"at exit!\0\0"
