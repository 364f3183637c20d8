"""Attacks on a sealed guest's checkpoints by who has the files: each is refused, in words, and nothing runs."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from memvm.attest.checkpoint_keys import unwrapped
from memvm.attest.key_files import load_private_to_decrypt, load_public_to_encrypt
from memvm.checkpoint.encrypted_files import EncryptedFile, open_encrypted
from memvm.checkpoint.encryption import TAG_SIZE, EncryptedHeader
from memvm.errors import CheckpointError, MemvmError
from memvm.sealed.chains import open_claimed
from tests.sealed.conftest import secret
from tests.sealed.forwarder import Forwarder
from tests.sealed.lab import SealedLab, ask, guest_of, ready
from tests.support import CliResult


class Files(NamedTuple):
    """Checkpoints: the first and second of one guest, and one of another guest of the same program."""

    first: Path
    second: Path
    foreign: Path


@pytest.fixture(scope="module")
def made(lab: SealedLab, tmp_path_factory: pytest.TempPathFactory) -> Files:
    return save_some(lab, tmp_path_factory.mktemp("made"))


def save_some(lab: SealedLab, folder: Path) -> Files:
    files = Files(folder / "first.ckpt", folder / "second.ckpt", folder / "foreign.ckpt")
    with lab.launched() as guest:
        ask(ready(guest))
        guest.checkpoint(files.first)
        ask(guest)
        guest.checkpoint(files.second)
    with lab.launched() as guest:
        ask(ready(guest))
        guest.checkpoint(files.foreign)
    return files


@pytest.fixture
def files(made: Files, tmp_path: Path) -> Files:
    """Copies, which a test may change. None of their guests is restored anywhere: that can be done once."""
    return Files(*(Path(shutil.copy(path, tmp_path)) for path in made))


@pytest.fixture
def fresh(lab: SealedLab, tmp_path: Path) -> Files:
    """Of guests of their own, to be restored."""
    return save_some(lab, tmp_path)


class Sealed:
    """An encrypted checkpoint, taken apart."""

    def __init__(self, path: Path) -> None:
        self.path, data = path, path.read_bytes()
        self.header = EncryptedHeader.unpack(data)
        step = self.header.record_size + TAG_SIZE
        self.records = [data[at : at + step] for at in range(self.header.size, len(data), step)]

    def write(self, header: EncryptedHeader | None = None) -> None:
        """Put it together again."""
        self.path.write_bytes((header or self.header).pack() + b"".join(self.records))


def refused(lab: SealedLab, file: Path) -> str:
    """What a restore says that must not come to anything."""
    result: CliResult = lab.cli("restore", *lab.restoring(file, "--eager"), env=lab.environment, stdin=b"\n")
    assert result.code == 65, result.err
    assert result.out == b""
    return result.err


def load(lab: SealedLab, file: Path) -> None:
    """Do with a checkpoint what a platform does that has been given its key. Raises CheckpointError."""
    private = load_private_to_decrypt(lab.directory / "keeper.pem")
    with ExitStack() as opened:
        files = open_encrypted(file, opened)
        chain = open_claimed(files, unwrapped(files[0].header, private))
        for chunk in range(chain.index.chunk_count):
            chain.decompress(chunk, chain.read_frame(chunk))


def test_what_nobody_changed_can_be_loaded(lab: SealedLab, files: Files) -> None:
    for file in files:
        load(lab, file)


class FailedRestore(NamedTuple):
    """What a restore with -v said of a file with a record in another place, and the key that the platform had then."""

    result: CliResult
    key: bytes


@pytest.fixture(scope="module")
def failed_restore(lab: SealedLab, tmp_path_factory: pytest.TempPathFactory) -> FailedRestore:
    path = tmp_path_factory.mktemp("failed") / "guest.ckpt"
    with lab.launched() as guest:
        ask(ready(guest))
        guest.checkpoint(path)
    file = Sealed(path)
    key = bytes(unwrapped(file.header, load_private_to_decrypt(lab.directory / "keeper.pem")).key.view)
    file.records[0], file.records[1] = file.records[1], file.records[0]
    file.write()
    words = ("-v", "restore", *lab.restoring(path, "--eager"))
    return FailedRestore(lab.cli(*words, env=lab.environment, stdin=b"\n"), key)


def test_attack_23_page_moved_to_another_address_in_the_file_of_a_restore(failed_restore: FailedRestore) -> None:
    result = failed_restore.result
    assert (result.code, result.out) == (65, b"")
    assert "cannot be decrypted" in result.err


def test_attack_28_key_in_a_traceback_of_a_restore(failed_restore: FailedRestore) -> None:
    said = failed_restore.result.err
    assert "Traceback" in said
    for text in (failed_restore.key[:12].hex(), repr(failed_restore.key[:12])[2:-1], secret()[:12].hex()):
        assert text not in said


def test_attack_23_page_moved_to_another_address_with_its_record(lab: SealedLab, files: Files) -> None:
    file = Sealed(files.second)
    file.records[0], file.records[1] = file.records[1], file.records[0]
    file.write()
    with pytest.raises(CheckpointError, match="cannot be decrypted"):
        load(lab, files.second)


@pytest.mark.parametrize("place", [0, 1, -1])
def test_attack_24_old_version_of_a_page_in_its_record(lab: SealedLab, files: Files, place: int) -> None:
    file, old = Sealed(files.second), Sealed(files.first)
    file.records[place] = old.records[place]
    file.write()
    with pytest.raises(CheckpointError):
        load(lab, files.second)


def test_attack_24_old_version_of_a_page_from_another_guest(lab: SealedLab, files: Files) -> None:
    file = Sealed(files.second)
    file.records[0] = Sealed(files.foreign).records[0]
    file.write()
    with pytest.raises(CheckpointError, match="cannot be decrypted"):
        load(lab, files.second)


def test_attack_24_old_version_of_a_page_under_the_header_of_a_new_checkpoint(lab: SealedLab, files: Files) -> None:
    file = Sealed(files.first)
    file.write(Sealed(files.second).header)
    with pytest.raises(CheckpointError, match="cannot be decrypted"):
        load(lab, files.first)


def test_attack_25_checkpoint_rolled_back_at_a_restore(lab: SealedLab, fresh: Files) -> None:
    with lab.restored(fresh.second) as guest:
        ask(guest)
    assert "contraindicated" in refused(lab, fresh.first)


def test_attack_26_two_clones_of_one_checkpoint_at_a_restore(lab: SealedLab, fresh: Files) -> None:
    with lab.restored(fresh.second) as guest:
        assert "contraindicated" in refused(lab, fresh.second)
        ask(guest)
    clones = lab.cli("restore", "--clones", "2", fresh.second, env=lab.environment)
    assert clones.code == 65
    assert "it is encrypted" in clones.err


@pytest.mark.parametrize("place", [0, 1, -1])
@pytest.mark.parametrize("whose", ["its own", "a foreign one", "one of zeros"])
def test_attack_13_unmeasured_page_slipped_in_as_a_record(lab: SealedLab, files: Files, place: int, whose: str) -> None:
    """One more, in the middle or at the end."""
    file, foreign = Sealed(files.second), Sealed(files.foreign)
    step = file.header.record_size + TAG_SIZE
    extra = {"its own": file.records[0], "a foreign one": foreign.records[0], "one of zeros": bytes(step)}[whose]
    file.records.insert(place if place >= 0 else len(file.records), extra)
    file.write()
    with pytest.raises(CheckpointError):
        load(lab, files.second)


def test_attack_18_log_truncated_in_a_checkpoints_claims(lab: SealedLab, tmp_path: Path) -> None:
    """A change is taken out of the header, and the value with it; and one is put in."""
    path = tmp_path / "guest.ckpt"
    with lab.launched("--setting=time-limit=none:record") as guest:
        ready(guest)
        guest.change_setting("time-limit", "1h")
        guest.checkpoint(path)
    load(lab, path)
    good = Sealed(path)
    claims = json.loads(good.header.claims)
    [entry] = claims["log"]
    for log in ([], [entry, entry]):
        changed = claims | {"log": log, "values": claims["values"] | {"time-limit": "none"}}
        text = json.dumps(changed, sort_keys=True, separators=(",", ":")).encode()
        good.write(good.header._replace(claims=text))
        with pytest.raises(CheckpointError, match="cannot be decrypted"):
            load(lab, path)
        assert "contraindicated" in refused(lab, path)


def test_attack_30_hpke_ciphertext_replaced_by_the_manager_at_a_restore(lab: SealedLab, tmp_path: Path) -> None:
    """The keeper's answer, on its way through the manager: one bit of it."""
    path = tmp_path / "guest.ckpt"
    with lab.launched() as guest:
        ready(guest)
        guest.checkpoint(path)

    def flip(answer: bytes) -> bytes:
        if b'"answer"' not in answer:
            return answer
        at = answer.rindex(b'"}') - 1
        return answer[:at] + (b"1" if answer[at : at + 1] == b"0" else b"0") + answer[at + 1 :]

    with Forwarder(lab.keeper, flip).running() as false:
        words = [word.replace(lab.keeper, false.url) if isinstance(word, str) else word for word in lab.restoring(path)]
        result = lab.cli("restore", *words, env=lab.environment, stdin=b"\n", code=65)
    assert "is for another request, or was changed" in result.err
    assert result.out == b""


def test_claims_that_were_changed(lab: SealedLab, files: Files) -> None:
    """As if it were a younger checkpoint: no platform vouches for that."""
    file = Sealed(files.first)
    claims = json.loads(file.header.claims)
    claims["saves"] += 7
    changed = json.dumps(claims, sort_keys=True, separators=(",", ":")).encode()
    file.write(file.header._replace(claims=changed))
    assert "contraindicated" in refused(lab, files.first)


def test_another_key_keeper_in_the_header(lab: SealedLab, files: Files) -> None:
    """Who restores it is told before anybody is asked for a token; and the keeper does not depend on that."""
    file, another = Sealed(files.first), bytes(range(32))
    file.write(file.header._replace(keeper=another))
    assert "not the one who keeps the key" in refused(lab, files.first)
    key = load_public_to_encrypt(lab.directory / "keeper.pem.pub").public_bytes_raw()
    lying = Forwarder(lab.keeper, lambda answer: answer.replace(key.hex().encode(), another.hex().encode()))
    with lying.running():
        words = lab.restoring(files.first, f"--key-keeper={lying.url}")
        assert "kept by somebody else" in lab.cli("restore", *words, env=lab.environment, code=65).err


@pytest.mark.parametrize("cut", ["record", "byte", "header"])
def test_a_checkpoint_that_was_cut(lab: SealedLab, files: Files, cut: str) -> None:
    file = Sealed(files.first)
    size = {"record": len(file.records[-1]), "byte": 1, "header": files.first.stat().st_size - 100}[cut]
    files.first.write_bytes(files.first.read_bytes()[:-size])
    with pytest.raises(CheckpointError):
        load(lab, files.first)


def test_attack_28_key_in_a_checkpoint_that_is_encrypted(lab: SealedLab, files: Files) -> None:
    for path in files:
        assert secret()[:16] not in path.read_bytes()
    for command in ("inspect", "files"):
        result = lab.cli(command, files.first, env=lab.environment)
        assert result.code == 65
        assert "it is encrypted" in result.err


def test_no_restore_without_an_attestation(lab: SealedLab, files: Files) -> None:
    result = lab.cli("restore", f"--key-keeper={lab.keeper}", files.first, env=lab.environment)
    assert result.code == 65
    assert "attested platform only" in result.err
    result = lab.cli("restore", f"--verifier={lab.verifier}", "--audience=keeper", files.first, env=lab.environment)
    assert result.code == 65
    assert "nobody was named who keeps the key" in result.err
    result = lab.cli("restore", *lab.restoring(files.first), env={"MEMVM_PLATFORM_DIR": "/nonexistent"})
    assert result.code == 65
    assert "memvm platform init" in result.err


def test_a_guest_without_a_key_keeper_is_not_saved(lab: SealedLab, tmp_path: Path) -> None:
    words = [word for word in lab.words if "keeper" not in word]
    with guest_of(lab.environment, "run", *words, "--", *lab.command) as guest:
        ready(guest)
        with pytest.raises(MemvmError, match="checkpoint=no"):
            guest.checkpoint(tmp_path / "guest.ckpt")
    assert not list(tmp_path.iterdir())


class Chained(NamedTuple):
    """Checkpoints on top of others: three of one guest, two more of the same, and two of another guest."""

    first: Path
    second: Path
    third: Path
    other_first: Path
    other_second: Path
    foreign_first: Path
    foreign_second: Path


def save_chains(lab: SealedLab, folder: Path) -> Chained:
    files = Chained(*(folder / f"{name}.ckpt" for name in Chained._fields))
    with lab.launched() as guest:
        ask(ready(guest))
        guest.checkpoint(files.first)
        guest.checkpoint(files.other_first)
        ask(guest)
        guest.checkpoint(files.second, parent=files.first, live=True)
        guest.checkpoint(files.other_second, parent=files.other_first)
        ask(guest)
        guest.checkpoint(files.third, parent=files.second)
    with lab.launched() as guest:
        ask(ready(guest))
        guest.checkpoint(files.foreign_first)
        guest.checkpoint(files.foreign_second, parent=files.foreign_first)
    return files


@pytest.fixture(scope="module")
def made_chains(lab: SealedLab, tmp_path_factory: pytest.TempPathFactory) -> Chained:
    return save_chains(lab, tmp_path_factory.mktemp("chains"))


@pytest.fixture
def chains(made_chains: Chained, tmp_path: Path) -> Chained:
    """Copies, which a test may change. None of their guests is restored anywhere."""
    return Chained(*(Path(shutil.copy(path, tmp_path)) for path in made_chains))


@pytest.fixture
def fresh_chains(lab: SealedLab, tmp_path: Path) -> Chained:
    """Of guests of their own, to be restored."""
    return save_chains(lab, tmp_path)


def test_chains_that_nobody_changed_can_be_loaded(lab: SealedLab, chains: Chained) -> None:
    for file in chains:
        load(lab, file)
        assert secret()[:16] not in file.read_bytes()


def test_attacks_22_23_25_another_file_in_the_place_of_a_parent(lab: SealedLab, fresh_chains: Chained) -> None:
    """Refused before the key is asked for: with the right files in their places, the guest can be restored."""
    swaps = (
        ("first", "foreign_first"),  # of another guest
        ("first", "other_first"),  # of the same guest: two chains crossed
        ("second", "other_second"),
        ("second", "first"),  # rolled back
        ("first", "third"),  # moved within the chain
    )
    for place, by in swaps:
        parent = getattr(fresh_chains, place)
        right = parent.rename(parent.with_name("right"))
        shutil.copy(getattr(fresh_chains, by), parent)
        assert "another checkpoint: its id is" in refused(lab, fresh_chains.third)
        right.rename(parent)
    with lab.restored(fresh_chains.third) as guest:
        assert ask(guest).startswith("4 ")


@pytest.mark.parametrize("place", [0, 1, -1])
def test_attack_24_an_old_version_of_a_record_in_a_parent(lab: SealedLab, chains: Chained, place: int) -> None:
    file, old = Sealed(chains.other_first), Sealed(chains.first)
    file.records[place] = old.records[place]
    file.write()
    with pytest.raises(CheckpointError, match=r"other_first\.ckpt"):
        load(lab, chains.other_second)


def test_attack_23_a_record_moved_in_a_parent_of_a_restore(lab: SealedLab, fresh_chains: Chained) -> None:
    file = Sealed(fresh_chains.first)
    file.records[0], file.records[1] = file.records[1], file.records[0]
    file.write()
    error = refused(lab, fresh_chains.second)
    assert "first.ckpt" in error
    assert "cannot be decrypted" in error


def test_attack_22_another_guests_records_under_a_parents_header(lab: SealedLab, chains: Chained) -> None:
    file = Sealed(chains.foreign_first)
    file.path = chains.first
    file.write(Sealed(chains.first).header)
    with pytest.raises(CheckpointError, match=r"first\.ckpt: .*cannot be decrypted"):
        load(lab, chains.second)


@pytest.mark.parametrize("what", ["claims", "signature", "wrapped_key", "keeper"])
def test_a_parents_header_that_was_changed(lab: SealedLab, chains: Chained, what: str) -> None:
    file = Sealed(chains.first)
    value = getattr(file.header, what)
    file.write(file.header._replace(**{what: value[:-1] + bytes([value[-1] ^ 1])}))
    with pytest.raises(CheckpointError, match="its id is right, its contents are others"):
        load(lab, chains.second)


@pytest.mark.parametrize("parent", ["other_first", "foreign_first", None])
def test_attack_22_a_child_whose_header_names_another_parent(
    lab: SealedLab, chains: Chained, parent: str | None
) -> None:
    """The platform's signature, and the file's key, are those of the header as it was."""
    file = Sealed(chains.second)
    link = None
    if parent is not None:
        with EncryptedFile.open(getattr(chains, parent)) as other:
            link = other.link(other.path.name.encode())
    file.write(file.header._replace(parent=link))
    with pytest.raises(CheckpointError, match="cannot be decrypted"):
        load(lab, chains.second)
    why = "is of another guest" if parent == "foreign_first" else "contraindicated"
    assert why in refused(lab, chains.second)


@pytest.mark.parametrize("cut", ["record", "byte", "header"])
def test_a_parent_that_was_cut(lab: SealedLab, chains: Chained, cut: str) -> None:
    file = Sealed(chains.first)
    size = {"record": len(file.records[-1]), "byte": 1, "header": chains.first.stat().st_size - 100}[cut]
    chains.first.write_bytes(chains.first.read_bytes()[:-size])
    with pytest.raises(CheckpointError, match=r"first\.ckpt"):
        load(lab, chains.second)


def test_attack_25_a_parent_restored_after_its_child(lab: SealedLab, fresh_chains: Chained) -> None:
    """It is of fewer saves, and good for nothing but as a parent."""
    with lab.restored(fresh_chains.second) as guest:
        ask(guest)
    assert "contraindicated" in refused(lab, fresh_chains.first)
    assert "contraindicated" in refused(lab, fresh_chains.other_first)
    with lab.restored(fresh_chains.third) as guest:
        ask(guest)


def test_attack_26_two_guests_from_one_chain(lab: SealedLab, fresh_chains: Chained) -> None:
    with lab.restored(fresh_chains.second) as guest:
        assert "contraindicated" in refused(lab, fresh_chains.second)
        ask(guest)


def test_attacks_22_25_what_a_guest_is_not_saved_on_top_of(lab: SealedLab, fresh: Files, tmp_path: Path) -> None:
    forged = Sealed(Path(shutil.copy(fresh.foreign, tmp_path / "forged.ckpt")))
    forged.write(Sealed(fresh.first).header)
    moved = Sealed(Path(shutil.copy(fresh.first, tmp_path / "moved.ckpt")))
    moved.records[0], moved.records[1] = moved.records[1], moved.records[0]
    moved.write()
    before = sorted(tmp_path.iterdir())
    with lab.restored(fresh.first, "--eager") as guest:
        for parent, why in (
            (fresh.foreign, "is of another guest"),
            (fresh.second, "is of save 2 of the guest, and cannot be what save 2 is on top of"),
            (forged.path, "cannot be decrypted"),
            (moved.path, "cannot be decrypted"),
        ):
            with pytest.raises(MemvmError, match=why):
                guest.checkpoint(tmp_path / "new.ckpt", parent=parent)
            assert sorted(tmp_path.iterdir()) == before
        with pytest.raises(MemvmError, match="needs it to stay as it is"):
            guest.checkpoint(fresh.first, parent=fresh.first)
        assert ask(guest).startswith("2 ")


def test_chains_are_not_merged_and_not_looked_into(lab: SealedLab, chains: Chained) -> None:
    for command, *words in (("inspect",), ("inspect", "--verify"), ("files",), ("merge", chains.second.parent / "out")):
        result = lab.cli(command, chains.second, *words, env=lab.environment)
        assert result.code == 65
        assert "it is encrypted" in result.err
        assert "saved whole, without a parent" in result.err
    assert not (chains.second.parent / "out").exists()
