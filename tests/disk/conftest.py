"""Small disks, whose keys are quick to derive."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from memvm.disk.integrity import protect
from memvm.disk.volume import create, open_volume
from memvm.units import KIB

SIZE = 256 * KIB
PASSPHRASE = b"correct horse"
Cryptsetup = Callable[..., str]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A disk of 64 sectors."""
    path = tmp_path / "disk.img"
    create(path, SIZE, PASSPHRASE, kind="pbkdf2", iterations=1000, label="a disk")
    return path


@pytest.fixture
def platform(tmp_path: Path) -> Path:
    """The directory of a platform."""
    path = tmp_path / "platform"
    path.mkdir()
    return path


@pytest.fixture
def protected(disk: Path, platform: Path) -> Path:
    """The same disk with an integrity tree."""
    with open_volume(disk) as volume:
        protect(disk, volume.header.uuid, volume.size // volume.sector_size, platform)
    return disk


@pytest.fixture
def cryptsetup(tmp_path: Path, time_scale: float) -> Cryptsetup:
    """Runs cryptsetup; what it prints. `code` is how it has to end."""
    found = shutil.which("cryptsetup", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if found is None:
        pytest.skip("no cryptsetup here: apt-get install cryptsetup-bin")

    def run(*arguments: str | Path, passphrase: bytes = PASSPHRASE, code: int = 0) -> str:
        key = tmp_path / "cryptsetup.key"
        key.write_bytes(passphrase)
        command = [found, "--key-file", str(key), "--batch-mode", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60 * time_scale, check=False)
        assert done.returncode == code, done.stderr
        return done.stdout

    return run
