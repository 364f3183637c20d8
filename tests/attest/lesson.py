"""The lesson of the README as a setting for tests: a platform, a verifier that is a process of its own, and a guest."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import memvm
from memvm.attest.tokens import read_unverified
from tests.support import MemvmCli

POLICY = """\
[verifier]
audiences = ["lab"]
roots = ["platform/root.pem"]
references = ["references.json"]
reference-keys = ["maker.key.pub"]

[policy]
id = "lab"
"""
GOOD = (
    *("--ram", "64M", "--locked", "--setting", "checkpoint=free:refuse"),
    *("--setting", "debug=off:revoke", "--setting", "time-limit=none:reattest"),
)


class Lesson(NamedTuple):
    """A verifier that knows one program."""

    url: str
    directory: Path
    cli: MemvmCli
    program: Path
    verifier: int
    """Its process."""


@contextmanager
def lesson_in(
    tmp_path: Path, guests: Mapping[str, Path], memvm_cli: MemvmCli, *platform: str, policy: str = ""
) -> Iterator[Lesson]:
    """A verifier that knows the guest `attested`, and a platform that was made with these options.

    MEMVM_PLATFORM_DIR has to be the directory "platform" in `tmp_path`.
    """
    program = tmp_path / "attested"
    program.write_bytes(guests["attested"].read_bytes())
    program.chmod(0o755)
    memvm_cli("platform", "init", *platform, code=0)
    memvm_cli("reference", "key", tmp_path / "maker.key", code=0)
    digest = memvm_cli("measure", *GOOD, "--", program, code=0, env=ENVIRONMENT).text.strip()
    signed = memvm_cli("reference", "sign", "--key", tmp_path / "maker.key", f"attested={digest}", code=0).text
    (tmp_path / "references.json").write_text(signed)
    (tmp_path / "policy.toml").write_text(POLICY + policy)
    serve = ("verifier", "serve", "--json", "--policy", tmp_path / "policy.toml", "--state", tmp_path / "state")
    with memvm_cli.start(*serve, "--port", "0") as verifier:
        assert verifier.stdout is not None
        url = json.loads(verifier.stdout.readline())["url"]
        yield Lesson(url, tmp_path, memvm_cli, program, verifier.pid)


ENVIRONMENT = {"PATH": "/usr/bin:/bin", "TERM": "dumb", "LANG": "C", "HOME": "/"}


def guest_of(
    lesson: Lesson, program: Path | None = None, verifier: str = "", tpm: bool = False, **settings: str
) -> memvm.Guest:
    """A guest as the verifier knows it, but for the settings."""
    given = {"checkpoint": "free:refuse", "debug": "off:revoke", "time-limit": "none:reattest"}
    given |= {name.replace("_", "-"): value for name, value in settings.items()}
    return memvm.Guest(
        [program or lesson.program],
        ram="64M",
        env=ENVIRONMENT,
        locked=True,
        settings=given,
        verifier=verifier,
        tpm=tpm,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def started(guest: memvm.Guest) -> None:
    """Wait until it has named its key."""
    assert guest.stdout is not None
    assert guest.stdout.readline() == b"a guest\n"


def own_token(guest: memvm.Guest) -> str:
    """The token that the guest itself has."""
    assert guest.stdin is not None
    assert guest.stdout is not None
    guest.stdin.write(b"\n")
    guest.stdin.flush()
    return guest.stdout.readline().decode().strip()


def appraisal(token: str) -> dict[str, object]:
    """What a token says of the guest."""
    claims: dict[str, object] = read_unverified(token)[1]["submods"]["guest"]
    return claims


def own_claims(token: str) -> dict[str, Any]:
    """Of that, what no profile has a claim for."""
    claims: dict[str, Any] = read_unverified(token)[1]["submods"]["guest"]["ear_verifier_claims"]["memvm"]
    return claims


def reasons(token: str) -> str:
    """Why it is not better."""
    return "\n".join(own_claims(token)["reasons"])
