"""`memvm reference`: reference values, by which a verifier knows programs and the code that enforces settings."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from memvm.cli.parser import add_json
from memvm.errors import UsageError

if TYPE_CHECKING:
    from memvm.attest.references import References


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `memvm reference`."""
    parser.epilog = """\
key makes a key to sign with: FILE, and FILE.pub for verifiers. sign writes an in-toto statement, signed with
Ed25519, to standard output. verify shows what one says, if it is signed by the key.

examples:
  memvm reference key maker.key
  memvm reference sign --key maker.key counter=$(memvm measure --locked -- ./counter 100) > references.json
  memvm reference verify --key maker.key.pub references.json
"""
    parser.add_argument("action", choices=("key", "sign", "verify"), help="what to do")
    parser.add_argument("operands", metavar="FILE | NAME=DIGEST", nargs="+", help="a file, or programs to vouch for")
    parser.add_argument(
        "--key", metavar="FILE", type=Path, help="the key to sign with, or the public key to check with"
    )
    parser.add_argument(
        "--code",
        metavar="DIGEST",
        action="append",
        help="code that enforces settings as it should; that of this memvm if not given",
    )
    parser.add_argument("--version-needed", metavar="N", type=int, default=0, help="the least security version")
    add_json(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Make a key, sign, or verify."""
    from memvm.attest.key_files import load_private, load_public
    from memvm.attest.references import read_reference_file, sign_references
    from memvm.report.attestation import references_json, references_text

    if arguments.action == "key":
        _make_key(Path(arguments.operands[0]))
        return 0
    if arguments.key is None:
        raise UsageError("reference: a key is needed", hint="--key FILE; `memvm reference key FILE` makes one")
    if arguments.action == "sign":
        print(sign_references(_given(arguments), load_private(arguments.key)))
        return 0
    references = read_reference_file(Path(arguments.operands[0]), [load_public(arguments.key)])
    print(references_json(references) if arguments.json else references_text(references))
    return 0


def _make_key(path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from memvm.attest.key_files import make_pair

    make_pair(Ed25519PrivateKey.generate(), path)


def _given(arguments: argparse.Namespace) -> References:
    from memvm.attest.code import code_digest
    from memvm.attest.references import References
    from memvm.machine.register import DIGEST_SIZE

    programs = {}
    for operand in arguments.operands:
        name, equals, digest = operand.rpartition("=")
        programs[_digest(digest, DIGEST_SIZE)] = name
        if not equals or not name:
            raise UsageError(f"not a program and its digest: {operand!r}", hint="NAME=$(memvm measure -- PROGRAM)")
    code = [_digest(text, DIGEST_SIZE) for text in arguments.code] if arguments.code else [code_digest()]
    return References(programs, frozenset(code), arguments.version_needed)


def _digest(text: str, size: int) -> bytes:
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b""
    if len(digest) != size:
        raise UsageError(f"not a SHA-384 digest: {text!r}", hint="`memvm measure` prints one")
    return digest
