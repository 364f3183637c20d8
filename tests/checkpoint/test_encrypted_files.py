"""Chains of encrypted checkpoints: found by their headers, and with the key the same as the plain ones, or an error."""

from __future__ import annotations

import os
import random
import shutil
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memvm.checkpoint.chain import Chain
from memvm.checkpoint.encrypted_files import EncryptedFile, open_encrypted
from memvm.checkpoint.encryption import EncryptedHeader
from memvm.checkpoint.sections import ParentLink
from memvm.errors import CheckpointError
from tests.checkpoint.encrypted import contents_of, encrypt, encrypt_chain, read_encrypted
from tests.checkpoint.random_files import write_random_file
from tests.checkpoint.samples import write_small_child, write_small_file

GOLDEN = Path(__file__).parent / "golden"


class Both:
    """A chain of two, plain and encrypted."""

    def __init__(self, folder: Path) -> None:
        plain = folder / "plain"
        plain.mkdir()
        self.folder = folder
        self.plain = [plain / "parent.ckpt", plain / "child.ckpt"]
        write_small_file(self.plain[0])
        write_small_child(self.plain[1], self.plain[0])
        self.parent, self.child = encrypt_chain(self.plain, folder)


@pytest.fixture
def both(tmp_path: Path) -> Both:
    return Both(tmp_path)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1 << 32), st.integers(1, 4))
def test_an_encrypted_chain_is_what_the_plain_one_is(seed: int, length: int) -> None:
    rng = random.Random(seed)
    with TemporaryDirectory() as name:
        plain = [Path(name, "plain", f"{number}.ckpt") for number in range(length)]
        plain[0].parent.mkdir()
        for number, path in enumerate(plain):
            write_random_file(path, rng, plain[number - 1] if number else None)
        encrypted = encrypt_chain(plain, Path(name))
        with Chain.open(plain[-1]) as chain:
            assert read_encrypted(encrypted[-1]) == contents_of(chain)


def test_no_bit_of_any_file_of_a_chain_can_be_changed(both: Both) -> None:
    whole = read_encrypted(both.child)
    for path in (both.child, both.parent):
        good = path.read_bytes()
        for at in range(0, len(good), 61):
            path.write_bytes(good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :])
            with pytest.raises(CheckpointError):
                read_encrypted(both.child)
        for length in (0, 7, 200, len(good) - 1):
            path.write_bytes(good[:length])
            with pytest.raises(CheckpointError):
                read_encrypted(both.child)
        path.write_bytes(good)
    assert read_encrypted(both.child) == whole


def test_parents_are_found_beside_the_child_and_where_somebody_says(both: Both) -> None:
    elsewhere = both.folder / "elsewhere"
    elsewhere.mkdir()
    whole = read_encrypted(both.child)
    moved = both.parent.rename(elsewhere / "another name")
    with pytest.raises(CheckpointError, match=r"its parent parent\.ckpt is missing") as raised:
        read_encrypted(both.child)
    assert "--parent FILE" in raised.value.hint
    assert read_encrypted(both.child, [moved]) == whole
    moved.rename(elsewhere / "parent.ckpt")
    child = both.child.rename(elsewhere / "child.ckpt")
    assert read_encrypted(child) == whole
    with pytest.raises(CheckpointError, match="this is no parent of"):
        read_encrypted(child, [child])


def test_what_a_parent_is_not(both: Both) -> None:
    good = both.parent.read_bytes()
    shutil.copy(both.child, both.parent)
    with pytest.raises(CheckpointError, match="another checkpoint: its id is"):
        read_encrypted(both.child)
    shutil.copy(both.plain[0], both.parent)
    with pytest.raises(CheckpointError, match="not an encrypted memvm checkpoint"):
        read_encrypted(both.child)
    both.parent.unlink()
    os.mkfifo(both.parent)
    with pytest.raises(CheckpointError, match="not an ordinary file"):
        read_encrypted(both.child)
    both.parent.unlink()
    encrypt(both.plain[0], both.parent, claims=b'{"another":1}')
    with pytest.raises(CheckpointError, match="its id is right, its contents are others"):
        read_encrypted(both.child)
    both.parent.write_bytes(good)
    with pytest.raises(CheckpointError, match="cannot be decrypted"):
        read_encrypted(both.child, key=bytes(32))


def test_a_header_that_names_a_parent_which_the_file_does_not_have(both: Both) -> None:
    """As only somebody with the key can make it: what is in the records counts, and has to be the same."""
    encrypt(both.plain[1], both.folder / "other.ckpt")
    encrypt(both.plain[0], both.folder / "false.ckpt", both.folder / "other.ckpt")
    with pytest.raises(CheckpointError, match=r"has no parent, and .*other\.ckpt was given for one"):
        read_encrypted(both.folder / "false.ckpt")
    encrypt(both.plain[1], both.folder / "false.ckpt")
    with pytest.raises(CheckpointError, match=r"its parent parent\.ckpt is missing"):
        read_encrypted(both.folder / "false.ckpt")
    foreign = both.folder / "plain" / "foreign.ckpt"
    write_small_file(foreign, b'{"golden": 9}')
    encrypt(foreign, both.parent)
    encrypt(both.plain[1], both.child, both.parent)
    with pytest.raises(CheckpointError, match="its id is right, its contents are others"):
        read_encrypted(both.child)


def test_the_header_names_the_parent(both: Both) -> None:
    header = EncryptedHeader.unpack(both.child.read_bytes())
    with EncryptedFile.open(both.parent) as file:
        assert file.parent is None
        assert header.parent == ParentLink(file.checkpoint_id, file.header.digest, b"parent.ckpt")


def test_nothing_stays_open_if_a_parent_is_wrong(both: Both) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    both.parent.write_bytes(both.parent.read_bytes()[:100])
    with pytest.raises(CheckpointError), ExitStack() as opened:
        open_encrypted(both.child, opened)
    with pytest.raises(CheckpointError):
        EncryptedFile.open(both.plain[0])
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_circle_of_headers_is_refused(both: Both) -> None:
    """Digests allow none, whoever makes them; but nobody follows one for ever."""
    data = both.parent.read_bytes()
    header = EncryptedHeader.unpack(data)
    with EncryptedFile.open(both.child) as file:
        link = file.link(b"child.ckpt")
    both.parent.write_bytes(header._replace(parent=link).pack() + data[header.size :])
    with pytest.raises(CheckpointError, match="contents are others"):
        read_encrypted(both.child)
    with pytest.raises(CheckpointError, match="has it as a parent itself"):
        read_encrypted(both.parent)


@pytest.mark.parametrize(
    ("plain", "name", "parent"),
    [
        ("version2.ckpt", "encrypted-version1.ckpt", ""),
        ("version2-child.ckpt", "encrypted-version2.ckpt", "encrypted-version1.ckpt"),
    ],
)
def test_golden_files_are_written_byte_for_byte_and_read(tmp_path: Path, plain: str, name: str, parent: str) -> None:
    encrypt(GOLDEN / plain, tmp_path / name, GOLDEN / parent if parent else None)
    assert (tmp_path / name).read_bytes() == (GOLDEN / name).read_bytes()
    with Chain.open(GOLDEN / plain) as chain:
        assert read_encrypted(GOLDEN / name) == contents_of(chain)
