"""Guests with disks: what the calls answer, what outlives what, and what goes wrong."""

from __future__ import annotations

from pathlib import Path
from subprocess import PIPE

import pytest

import memvm
from memvm.disk.device import open_disk
from memvm.disk.volume import DATA_OFFSET, create, open_volume
from memvm.errors import DiskError, UsageError
from memvm.units import KIB
from tests.machine.conftest import CProgram
from tests.support import MemvmCli
from tools.build_guests import missing_libraries

SIZE, SECTOR = 64 * KIB, 4096


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "secret.key"
    path.write_bytes(b"secret")
    return path


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "data.img"
    create(path, SIZE, b"secret", kind="pbkdf2", iterations=1000)
    return path


def contents(path: Path) -> bytes:
    with open_disk(path, passphrase=b"secret") as disk:
        return disk.read(0, SIZE)


def answers(text: str) -> list[str]:
    """What the calls gave."""
    return [line.rpartition(": ")[2] for line in text.splitlines()]


@pytest.mark.parametrize("engine", ["userfaultfd", "mprotect"])
def test_what_the_calls_answer(engine: str, disk: Path, key: Path, c_program: CProgram, memvm_cli: MemvmCli) -> None:
    given = ("--disk", disk, "--disk-key-file", key)
    text = memvm_cli("run", "--engine", engine, *given, "--", c_program("disk"), "use", code=0).text
    with open_volume(disk) as volume:
        uuid = volume.header.uuid
    assert answers(text) == [
        *("0", f"{SIZE} {SECTOR} 1 {uuid}", "ENXIO", "ENXIO", "EFAULT"),
        *("EINVAL", "EINVAL", "0", "0", str(SIZE), str(SECTOR), "EFAULT", "EFAULT", "ENXIO"),
        *(str(3 * SECTOR), "ENOSPC", str(SECTOR), "EINVAL", "EFAULT"),
        *(str(SIZE), str(ord("x")), "0", "ENXIO"),
    ]
    found = contents(disk)
    assert found[SECTOR : 4 * SECTOR] == b"x" * (3 * SECTOR)
    assert found[-SECTOR:] == b"x" * SECTOR
    assert found[:SECTOR] != b"x" * SECTOR


def test_a_guest_that_is_given_no_key_gets_ciphertext(disk: Path, c_program: CProgram, memvm_cli: MemvmCli) -> None:
    text = memvm_cli("run", "--disk", disk, "--", c_program("disk"), "use", code=0).text
    assert f"{SIZE} {SECTOR} 3 " in text
    assert disk.read_bytes()[DATA_OFFSET + SECTOR : DATA_OFFSET + 4 * SECTOR] == b"x" * (3 * SECTOR)


def test_a_disk_to_read_only(disk: Path, key: Path, c_program: CProgram, memvm_cli: MemvmCli) -> None:
    before = disk.read_bytes()
    given = ("--disk-key-file", key, "--disk-read-only")
    text = memvm_cli("run", "--disk", disk, *given, "--", c_program("disk"), "use", code=0).text
    assert f"{SIZE} {SECTOR} 0 " in text
    assert answers(text)[14:19] == ["EROFS"] * 5
    assert disk.read_bytes() == before


def test_what_was_not_flushed_is_there_if_the_guest_ends(
    disk: Path, key: Path, c_program: CProgram, memvm_cli: MemvmCli
) -> None:
    memvm_cli("run", "--disk", disk, "--disk-key-file", key, "--", c_program("disk"), "forget", code=0)
    assert contents(disk)[:SECTOR] == b"w" * SECTOR
    assert {path.name for path in disk.parent.iterdir()} == {disk.name, key.name}


def test_a_wrong_sector_is_eio_and_a_line_for_whoever_runs_the_guest(
    disk: Path, key: Path, c_program: CProgram, memvm_cli: MemvmCli, tmp_path: Path
) -> None:
    env = {"MEMVM_PLATFORM_DIR": str(tmp_path / "platform")}
    memvm_cli("platform", "init", env=env, code=0)
    image = tmp_path / "protected.img"
    quick = ("--pbkdf", "pbkdf2", "--pbkdf-iterations", "1000")
    memvm_cli("disk", "create", "--integrity", "--size", "64K", "--key-file", key, *quick, image, env=env, code=0)
    memvm_cli("disk", "import", "--key-file", key, image, "-", stdin=b"z" * SIZE, env=env, code=0)
    with image.open("r+b") as file:
        file.seek(DATA_OFFSET + 3 * SECTOR)
        file.write(bytes(SECTOR))
    given = ("run", "--disk", image, "--disk-key-file", key, "--", c_program("disk"), "read")
    result = memvm_cli(*given, "3", env=env, code=0)
    assert answers(result.text) == ["EIO", str(ord("w"))]
    assert "sector 3 is not what was last written there" in result.err
    assert answers(memvm_cli(*given, "4", env=env, code=0).text) == [str(SECTOR), str(ord("z"))]


def test_a_restored_guest_is_given_its_disk_again(
    disk: Path, key: Path, c_program: CProgram, memvm_cli: MemvmCli, tmp_path: Path
) -> None:
    given = ("--disk", disk, "--disk-key-file", key)
    saved = tmp_path / "saved.ckpt"
    with memvm_cli.start("run", "--name", "writer", *given, "--", c_program("disk"), "wait") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline().endswith(b": 4096\n")  # it has written, and not flushed
        memvm_cli("checkpoint", "writer", saved, code=0)
        assert disk.read_bytes()[DATA_OFFSET : DATA_OFFSET + SECTOR] != bytes(SECTOR)  # as it believes
        assert "in use" in memvm_cli("run", *given, "--", c_program("disk"), "forget", code=65).err
        memvm_cli("kill", "writer", code=0)
        process.wait(60 * memvm_cli.time_scale)
    with_disk = memvm_cli("restore", *given, saved, stdin=b"\n", code=0)
    assert answers(with_disk.text) == [str(SECTOR), str(ord("w"))]
    assert "1, which a restore is given again" in memvm_cli("inspect", saved, code=0).text
    for how in ("--lazy", "--eager"):
        forgotten = memvm_cli("restore", how, saved, stdin=b"\n", code=65)
        assert forgotten.text == ""
        assert "the guest had 1 disk, and is given none" in forgotten.err
        assert "--disk FILE" in forgotten.err
    assert answers(memvm_cli("restore", "--without-disks", saved, stdin=b"\n", code=0).text) == ["ENXIO", "0"]
    assert "--without-disks" in memvm_cli("restore", "--clones", "2", saved, code=65).err
    memvm_cli("restore", "--clones", "2", "--without-disks", saved, code=0)  # they have no input, and just end
    assert "belongs to one guest" in memvm_cli("restore", "--clones", "2", *given, saved, code=64).err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--disk-key-file", "secret.key"), "there is none"),
        (("--disk", "data.img", "--disk-key-file", "nothing"), "the key cannot be read"),
        (("--disk", "data.img", "--disk-digest", "00"), "not the digest of a disk's header"),
        (("--disk", "data.img", "--disk-digest", "00" * 48), "header is another one than it has to be"),
        (("--disk", "secret.key"), "no LUKS2 disk"),
    ],
)
def test_a_guest_whose_disk_is_not_right_is_not_started(
    options: tuple[str, ...], said: str, disk: Path, key: Path, busybox: Path, memvm_cli: MemvmCli, tmp_path: Path
) -> None:
    result = memvm_cli("run", *options, "--", busybox, "echo", "started", cwd=tmp_path)
    assert result.code in (64, 65)
    assert said in result.err
    assert result.out == b""


def test_what_a_killed_manager_had_flushed_is_there(
    disk: Path, key: Path, c_program: CProgram, memvm_cli: MemvmCli
) -> None:
    """Killed within a flush, after the journal was written: the next one to open the disk ends the flush."""
    env = {"MEMVM_FAULTS": "disk.journal_written=kill"}
    given = ("--disk", disk, "--disk-key-file", key)
    result = memvm_cli("run", *given, "--", c_program("disk"), "use", env=env)
    assert result.code != 0
    memvm_cli("ps", code=0)  # which takes away what the manager left in the run-time directory
    assert contents(disk)[SECTOR : 4 * SECTOR] == b"x" * (3 * SECTOR)
    assert {path.name for path in disk.parent.iterdir()} == {disk.name, key.name}


def test_a_worker_decrypts_its_disk_itself(disk: Path, key: Path, guests: dict[str, Path], memvm_cli: MemvmCli) -> None:
    """Its manager has no key, and so none that could be found in it; the guest has sectors as they lie on the disk."""
    if missing := missing_libraries("worker"):
        pytest.skip(f"the worker needs {', '.join(missing)}: apt-get install nettle-dev")
    text = b"the quick  brown fox\njumps over\n" * 1500
    memvm_cli("disk", "import", "--key-file", key, disk, "-", stdin=text, code=0)
    with open_volume(disk) as volume:
        volume_key = volume.unlock(b"secret").hex().encode()
    run = ("run", "--disk", disk, "--", guests["worker"])
    assert memvm_cli(*run, stdin=volume_key, code=0).text == f"{6 * 1500} words in {len(text)} bytes\n"
    wrong = memvm_cli(*run, stdin=volume_key[::-1], code=0).text
    assert f"{6 * 1500} words" not in wrong
    assert "no key" in memvm_cli(*run, code=1).text
    clear = memvm_cli("run", "--disk", disk, "--disk-key-file", key, "--", guests["worker"], code=1)
    assert "not encrypted for me" in clear.text


def test_from_python(disk: Path, key: Path, c_program: CProgram, tmp_path: Path) -> None:
    program, saved = c_program("disk"), tmp_path / "saved.ckpt"
    with open_volume(disk) as volume:
        digest = volume.header_digest().hex()
    given = memvm.Disk(disk, key, digest)
    with memvm.Guest([program, "wait"], disks=[given], stdin=PIPE, stdout=PIPE) as guest:
        assert guest.stdout is not None
        assert guest.stdout.readline().endswith(b": 4096\n")
        guest.suspend(saved)
    with memvm.restore(saved, disks=[given._replace(writable=False)], stdin=PIPE, stdout=PIPE) as guest:
        out, _ = asked(guest, b"\n")
    assert answers(out) == [str(SECTOR), str(ord("w"))]
    with memvm.Guest(
        [program, "use"], disks=[disk, given._replace(path=copied(disk))], stdin=PIPE, stdout=PIPE
    ) as guest:
        out, code = asked(guest, b"")
    assert code == 0
    assert f"{SIZE} {SECTOR} 3 " in out  # the first of them is ciphertext
    with pytest.raises(DiskError, match="header is another one"):
        memvm.Guest([program, "use"], disks=[given._replace(digest="00" * 48)])
    with pytest.raises(UsageError, match="a sequence of disks"):
        memvm.Guest([program, "use"], disks=str(disk))


def asked(guest: memvm.Guest, line: bytes) -> tuple[str, int]:
    """What a guest says, and how it ends."""
    assert guest.stdin is not None
    assert guest.stdout is not None
    guest.stdin.write(line)
    guest.stdin.close()
    return guest.stdout.read().decode(), guest.wait().code


def copied(disk: Path) -> Path:
    copy = disk.with_name("copy.img")
    copy.write_bytes(disk.read_bytes())
    return copy
