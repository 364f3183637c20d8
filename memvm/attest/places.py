"""Where the platform's files are, and its TPM: what can be asked without importing any cryptography."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

from memvm.errors import AttestationError


def platform_directory() -> Path:
    """MEMVM_PLATFORM_DIR, or memvm/platform in XDG_DATA_HOME."""
    if given := os.environ.get("MEMVM_PLATFORM_DIR"):
        return Path(given)
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "memvm" / "platform"


class TpmPlace(NamedTuple):
    """A platform's TPM, as tpm.json has it."""

    tcti: str
    """How it is reached."""
    key: int
    """The handle of its attestation key."""
    pcr: int


def read_tpm(directory: Path) -> TpmPlace | None:
    """The TPM of a platform, if it has one. Raises AttestationError."""
    from memvm.attest.pcr import PCRS

    path = directory / "tpm.json"
    try:
        fields = json.loads(path.read_bytes())
        place = TpmPlace(str(fields["tcti"]), int(fields["key"]), int(fields["pcr"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AttestationError(f"{path} makes no sense: {error}") from None
    if place.pcr not in PCRS:
        raise AttestationError(f"{path}: PCR {place.pcr} can be reset by anybody, and proves nothing")
    return place
