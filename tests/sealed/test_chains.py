"""What a platform does with the files that its manager gives it: what is not one chain of one guest is refused."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import permutations
from pathlib import Path

import pytest

from memvm.attest.checkpoint_keys import CheckpointKey
from memvm.checkpoint.encrypted_files import EncryptedFile
from memvm.checkpoint.finding import MAX_FILES
from memvm.checkpoint.sections import ParentLink
from memvm.errors import AttestationError, CheckpointError, ControlError, MemvmError, SaveError
from memvm.linux.secret_memory import SecretMemory
from memvm.machine.launched import Launched
from memvm.machine.settings import locked_settings
from memvm.sealed.chains import adopt, close, open_sealed_parent, require_lineage
from memvm.sealed.guest import SealedGuest
from tests.checkpoint.encrypted import encrypt_chain
from tests.checkpoint.samples import write_small_child, write_small_file
from tests.support import MemvmCli

KEY = CheckpointKey(SecretMemory.copy_of(bytes(range(32))), bytes(32), bytes(80))
Change = Callable[[Launched, CheckpointKey], CheckpointKey]


def launch(saves: int = 0) -> Launched:
    launched = Launched(locked_settings())
    launched.measure = lambda: bytes(range(48))
    launched.identity = bytes(range(16))
    launched.saves = saves
    return launched


def write_headers(folder: Path, saves: Sequence[int], change: Change = lambda _launched, key: key) -> list[Path]:
    """Headers of a chain, the oldest first, and nothing behind them; `change` changes the first."""
    paths: list[Path] = []
    link: ParentLink | None = None
    for number, count in enumerate(saves):
        launched, key = launch(count), KEY
        if not number:
            key = change(launched, key)
        header = key.header(os.urandom(16), launched, None, link)
        paths.append(folder / f"{number}.ckpt")
        paths[-1].write_bytes(header.pack())
        link = ParentLink(header.checkpoint_id, header.digest, os.fsencode(paths[-1].name))
    return paths


def given(paths: Sequence[Path]) -> list[EncryptedFile]:
    """What a platform has once its manager has given it these files, in this order."""
    return adopt(paths, [os.open(path, os.O_RDONLY) for path in paths])


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_chain_is_taken(tmp_path: Path) -> None:
    files = given(write_headers(tmp_path, [1, 2, 5])[::-1])
    require_lineage(files)
    close(files)
    assert given([]) == []


def test_a_disk_that_was_forgotten_is_noticed_before_anybody_is_asked(tmp_path: Path, memvm_cli: MemvmCli) -> None:
    def with_disk(launched: Launched, key: CheckpointKey) -> CheckpointKey:
        launched.disks = 1
        return key

    [path] = write_headers(tmp_path, [1], with_disk)
    nobody = "http://127.0.0.1:1"
    words = ("restore", f"--verifier={nobody}", "--audience=keeper", f"--key-keeper={nobody}", path)
    assert "the guest had 1 disk, and is given none" in memvm_cli(*words, code=65).err
    assert "cannot be asked" in memvm_cli(*words, "--without-disks", code=65).err


def test_attack_23_files_in_any_other_order(tmp_path: Path) -> None:
    right = write_headers(tmp_path, [1, 2, 5])[::-1]
    for count in range(1, 4):
        for order in permutations(right, count):
            if list(order) == right[3 - count :]:
                close(given(order))  # of the last one, or two, which are whole chains themselves
                continue
            with pytest.raises(CheckpointError):
                given(order)


def test_attack_22_two_chains_crossed(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    first, second = write_headers(one, [1, 2]), write_headers(other, [1, 2])
    for crossed in ([first[1], second[0]], [second[1], first[0]], [*first[::-1], *second[::-1]]):
        with pytest.raises(CheckpointError):
            given(crossed)


def another_guest(launched: Launched, key: CheckpointKey) -> CheckpointKey:
    launched.identity = bytes(16)
    return key


def another_program(launched: Launched, key: CheckpointKey) -> CheckpointKey:
    launched.measure = lambda: bytes(48)
    return key


def another_key(_launched: Launched, key: CheckpointKey) -> CheckpointKey:
    return key._replace(wrapped=bytes(79) + b"x")


@pytest.mark.parametrize("change", [another_guest, another_program, another_key])
def test_attack_22_a_chain_with_a_file_of_another_guest(tmp_path: Path, change: Change) -> None:
    """Headers that fit, as nobody has signed them: claims are compared before the verifier is asked."""
    files = given(write_headers(tmp_path, [1, 2, 3], change)[::-1])
    with pytest.raises(CheckpointError, match=r"0\.ckpt is of another guest"):
        require_lineage(files)
    with pytest.raises(SaveError, match=r"0\.ckpt is of another guest"):
        open_sealed_parent(files, launch(3), KEY, "2.ckpt")
    close(files)


@pytest.mark.parametrize("saves", [[2, 2], [5, 4], [1, 3, 3]])
def test_attack_25_a_parent_that_is_no_older_than_its_child(tmp_path: Path, saves: list[int]) -> None:
    files = given(write_headers(tmp_path, saves)[::-1])
    with pytest.raises(CheckpointError, match="cannot be what save"):
        require_lineage(files)
    close(files)


def test_attack_25_a_save_on_top_of_one_from_a_later_life(tmp_path: Path) -> None:
    files = given(write_headers(tmp_path, [4]))
    with pytest.raises(SaveError, match="is of save 4 of the guest, and cannot be what save 4 is on top of") as raised:
        open_sealed_parent(files, launch(3), KEY, "0.ckpt")
    assert "older checkpoint of the same guest" in raised.value.hint
    close(files)


def test_claims_that_make_no_sense(tmp_path: Path) -> None:
    write_small_file(tmp_path / "plain")
    (tmp_path / "encrypted").mkdir()
    files = given(encrypt_chain([tmp_path / "plain"], tmp_path / "encrypted"))
    with pytest.raises(AttestationError, match="claims make no sense"):
        require_lineage(files)
    close(files)


def test_what_is_no_encrypted_checkpoint_is_closed(tmp_path: Path) -> None:
    right = write_headers(tmp_path, [1, 2, 3])[::-1]
    write_small_file(tmp_path / "plain.ckpt")
    for wrong in ([*right[:1], tmp_path / "plain.ckpt", right[2]], [Path("/dev/null"), *right], [tmp_path]):
        with pytest.raises(CheckpointError):
            given(wrong)


@pytest.mark.parametrize("name", ["", "/etc/passwd", "a\0b", "\ud800", "x" * 4096])
def test_a_name_that_no_parent_can_have(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "encrypted"
    folder.mkdir()
    plain = [tmp_path / "parent.ckpt", tmp_path / "child.ckpt"]
    write_small_file(plain[0])
    write_small_child(plain[1], plain[0])
    monkeypatch.setattr("memvm.sealed.chains._no_ancestry", lambda *facts: "")
    files = given(encrypt_chain(plain, folder)[::-1])
    assert open_sealed_parent(files, launch(3), KEY, "\udcff child").parent.link.name == b"\xff child"
    with pytest.raises(ControlError, match="makes no sense"):
        open_sealed_parent(files, launch(3), KEY, name)
    close(files)


def test_a_chain_that_is_long_enough(tmp_path: Path) -> None:
    """The manager says so, before anything is asked of the platform."""
    paths = write_headers(tmp_path, range(1, MAX_FILES + 1))
    files = given(paths[::-1])
    require_lineage(files)
    close(files)
    guest = SealedGuest.__new__(SealedGuest)
    save = partial(guest.save, live=False, level=1, block_size=1 << 20, progress=lambda done, total: None)
    with pytest.raises(SaveError, match="has 63 parents already") as raised:
        save(tmp_path / "new.ckpt", parent=paths[-1])
    assert "leave --parent out" in raised.value.hint
    with pytest.raises(SaveError, match="needs it to stay as it is"):
        save(paths[3], parent=paths[5])
    with pytest.raises(MemvmError, match="cannot read it"):
        save(tmp_path / "new.ckpt", parent=tmp_path / "none.ckpt")
