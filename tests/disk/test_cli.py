"""`memvm disk`, as people use it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

import pytest

from memvm.disk.files import tags_path
from tests.support import MemvmCli

QUICK = ("--pbkdf", "pbkdf2", "--pbkdf-iterations", "1000")
CONTENTS = b"some words of a text\n" * 1000


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "secret.key"
    path.write_bytes(b"secret")
    return path


@pytest.fixture
def image(tmp_path: Path, key: Path, memvm_cli: MemvmCli) -> Path:
    """A disk with CONTENTS on it."""
    path = tmp_path / "data.img"
    memvm_cli("disk", "create", "--size", "256K", "--key-file", key, *QUICK, "--label", "data", path, code=0)
    said = memvm_cli("disk", "import", "--key-file", key, path, "-", stdin=CONTENTS, code=0).err
    assert "20.5 KiB are on" in said
    return path


def test_what_is_put_onto_it_comes_back(image: Path, key: Path, memvm_cli: MemvmCli, tmp_path: Path) -> None:
    out = memvm_cli("disk", "export", "--key-file", key, image, "-", code=0).out
    assert out == CONTENTS.ljust(256 << 10, b"\0")
    assert CONTENTS[:20] not in image.read_bytes()
    target = tmp_path / "plain"
    memvm_cli("disk", "export", "--key-file", key, image, target, code=0)
    assert target.read_bytes() == out
    assert "is there already" in memvm_cli("disk", "export", "--key-file", key, image, target, code=64).err
    target.write_bytes(os.urandom((256 << 10) + 1))
    assert (
        "more than the disk's 256.0 KiB" in memvm_cli("disk", "import", "--key-file", key, image, target, code=65).err
    )
    assert memvm_cli("disk", "export", "--key-file", key, image, "-", code=0).out == out, "it was not begun"


def test_its_header_is_shown(image: Path, memvm_cli: MemvmCli) -> None:
    told = json.loads(memvm_cli("disk", "info", "--json", image, code=0).text)
    assert (told["label"], told["size"], told["cipher"]) == ("data", 256 << 10, "aes-xts-plain64")
    assert told["keyslots"][0]["key_derivation"] == "pbkdf2"
    assert told["header_digest"] in memvm_cli("disk", "info", image, code=0).text


@pytest.mark.parametrize("anew", [False, True])
def test_another_passphrase(image: Path, key: Path, memvm_cli: MemvmCli, tmp_path: Path, anew: bool) -> None:
    new = tmp_path / "new.key"
    new.write_bytes(b"new")
    before = image.read_bytes()
    options = ("--volume-key",) if anew else ()
    memvm_cli("disk", "rekey", *options, *QUICK, "--key-file", key, "--new-key-file", new, image, code=0)
    assert "opens no keyslot" in memvm_cli("disk", "export", "--key-file", key, image, "-", code=65).err
    assert memvm_cli("disk", "export", "--key-file", new, image, "-", code=0).out.startswith(CONTENTS)
    assert (before[16 << 20 :] == image.read_bytes()[16 << 20 :]) is not anew
    assert {path.name for path in tmp_path.iterdir()} == {"data.img", "secret.key", "new.key"}


def test_with_an_integrity_tree(key: Path, memvm_cli: MemvmCli, tmp_path: Path) -> None:
    image, env = tmp_path / "data.img", {"MEMVM_PLATFORM_DIR": str(tmp_path / "platform")}
    create = ("disk", "create", "--integrity", "--size", "256K", "--key-file", key, *QUICK, image)
    assert "memvm platform init" in memvm_cli(*create, env=env, code=64).err
    memvm_cli("platform", "init", env=env, code=0)
    memvm_cli(*create, env=env, code=0)
    memvm_cli("disk", "import", "--key-file", key, image, "-", stdin=CONTENTS, env=env, code=0)
    assert json.loads(memvm_cli("disk", "info", "--json", image, env=env, code=0).text)["flushes"] == 1
    with image.open("r+b") as file:
        file.seek(16 << 20)
        file.write(bytes(4096))
    refused = memvm_cli("disk", "export", "--key-file", key, image, "-", env=env, code=74)
    assert "sector 0 is not what was last written there" in refused.err
    assert refused.out == b""
    memvm_cli("disk", "export", "--key-file", key, image, tmp_path / "plain", env=env, code=74)
    assert not (tmp_path / "plain").exists(), "half a disk looks like a whole one"


class Protected(NamedTuple):
    """A disk with an integrity tree and CONTENTS on it, and where its platform is."""

    image: Path
    keys: tuple[Path, Path]
    env: dict[str, str]
    cli: MemvmCli

    def rekey(self, code: int, faults: str = "") -> str:
        """Encrypt it anew; what is said."""
        words = ("--volume-key", *QUICK, "--key-file", self.keys[0], "--new-key-file", self.keys[1], self.image)
        return self.cli("disk", "rekey", *words, env=self.env | {"MEMVM_FAULTS": faults}, code=code).err

    def contents(self, key: Path) -> bytes:
        return self.cli("disk", "export", "--key-file", key, self.image, "-", env=self.env, code=0).out

    def left(self) -> set[str]:
        """What there is of disks, beside it and with the platform, by kind."""
        names = [path.name for path in self.image.parent.iterdir() if "data.img" in path.name]
        kept = (self.image.parent / "platform" / "disks").iterdir()
        uuid = json.loads(self.cli("disk", "info", "--json", self.image, env=self.env, code=0).text)["uuid"]
        return {name.replace(uuid, "UUID") for name in (*names, *(path.name for path in kept))}


@pytest.fixture
def protected(key: Path, memvm_cli: MemvmCli, tmp_path: Path) -> Protected:
    image, env, new = tmp_path / "data.img", {"MEMVM_PLATFORM_DIR": str(tmp_path / "platform")}, tmp_path / "new.key"
    new.write_bytes(b"new")
    memvm_cli("platform", "init", env=env, code=0)
    memvm_cli("disk", "create", "--integrity", "--size", "256K", "--key-file", key, *QUICK, image, env=env, code=0)
    memvm_cli("disk", "import", "--key-file", key, image, "-", stdin=CONTENTS, env=env, code=0)
    return Protected(image, (key, new), env, memvm_cli)


WHOLE = {"data.img", "data.img.tags", "UUID.anchor"}


def test_another_volume_key_under_an_integrity_tree(protected: Protected) -> None:
    image = protected.image
    before, tags = image.read_bytes(), tags_path(image).read_bytes()
    protected.rekey(code=0)
    assert protected.contents(protected.keys[1]).startswith(CONTENTS)
    assert protected.left() == WHOLE
    assert image.read_bytes()[16 << 20 :] != before[16 << 20 :]
    image.write_bytes(before)  # the old one is not known any more
    tags_path(image).write_bytes(tags)
    refused = protected.cli("disk", "export", "--key-file", protected.keys[0], image, "-", env=protected.env, code=65)
    assert "no platform here knows the disk" in refused.err


@pytest.mark.parametrize("point", ["disk.before_rename", "disk.after_rename", "disk.journal_written", "disk.committed"])
def test_a_machine_that_goes_down_while_a_disk_is_encrypted_anew(protected: Protected, point: str) -> None:
    """The name is that of one whole disk or the other; who does it again, or opens that disk, clears up the rest."""
    protected.rekey(code=-9, faults=f"{point}=kill")
    is_new = point == "disk.after_rename"
    assert protected.contents(protected.keys[is_new]).startswith(CONTENTS)
    if not is_new:
        protected.rekey(code=0)
        assert protected.contents(protected.keys[True]).startswith(CONTENTS)
    assert protected.left() == WHOLE


@pytest.mark.parametrize("point", ["disk.before_rename", "disk.journal_written"])
def test_a_disk_that_cannot_be_encrypted_anew_stays_as_it_is(protected: Protected, point: str) -> None:
    assert "No space left" in protected.rekey(code=74 if "journal" in point else 65, faults=f"{point}=enospc")
    assert protected.contents(protected.keys[0]).startswith(CONTENTS)
    assert protected.left() == WHOLE


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("create", "x.img"), "how large shall it be?"),
        (("create", "--size", "1000", "--key-file", "secret.key", "x.img"), "whole sectors"),
        (("create", "--size", "64K", "--key-file", "nothing", "x.img"), "nothing: the key cannot be read"),
        (("create", "--size", "64K", "x.img"), "no terminal to ask for it"),
        (("export", "--key-file", "secret.key", "secret.key"), "which file?"),
        (("info", "secret.key"), "no LUKS2 disk"),
    ],
)
def test_mistakes(arguments: tuple[str, ...], said: str, key: Path, memvm_cli: MemvmCli, tmp_path: Path) -> None:
    result = memvm_cli("disk", *arguments, cwd=tmp_path)
    assert result.code in (64, 65)
    assert said in result.err
    assert not (tmp_path / "x.img").exists()
