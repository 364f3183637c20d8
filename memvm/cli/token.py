"""`memvm token`: what a token says, and whether it can be believed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memvm.cli.parser import add_json
from memvm.errors import UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `memvm token`."""
    parser.epilog = """\
show decodes a token (JWT or CWT) and believes nothing. verify checks the signature with the verifier's key,
times, audience, and, if the verifier is asked, its deny list.

examples:
  memvm token show hub.jwt
  memvm token verify hub.jwt --audience memvm --verifier http://127.0.0.1:8080
  memvm token verify hub.jwt --audience memvm --key verifier/verifier.pub
"""
    parser.add_argument("action", choices=("show", "verify"), help="what to do")
    parser.add_argument("file", metavar="FILE", type=Path, help="the token")
    parser.add_argument("--audience", metavar="NAME", help="whom the token has to be for")
    parser.add_argument("--verifier", metavar="URL", help="ask this verifier for keys and deny list")
    parser.add_argument("--ca", metavar="FILE", type=Path, help="believe these certificates, for https")
    parser.add_argument("--key", metavar="FILE", type=Path, help="the verifier's public key, if it cannot be asked")
    add_json(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Show, or check and show."""
    from memvm.attest.tokens import read_unverified, token_from_file, verify_token
    from memvm.report.attestation import claims_json, claims_text

    token = token_from_file(arguments.file.read_bytes())
    if arguments.action == "show":
        claims = read_unverified(token)[1]
        print(claims_json(claims) if arguments.json else claims_text(claims, verified=False))
        return 0
    if arguments.audience is None:
        raise UsageError("token: who checks a token has to say for whom it must be", hint="--audience NAME")
    keys, denied = _believed(arguments)
    verified = verify_token(token, keys, arguments.audience, denied=denied.__contains__)
    print(claims_json(verified.claims) if arguments.json else claims_text(verified.claims, verified=True))
    return 0


def _believed(arguments: argparse.Namespace) -> tuple[dict[str, Ed25519PublicKey], set[Any]]:
    """Keys by id, and denied tokens."""
    from memvm.attest.key_files import load_public
    from memvm.attest.tokens import key_id

    if arguments.key is not None:
        key = load_public(arguments.key)
        return {key_id(key): key}, set()
    if arguments.verifier is None:
        raise UsageError("token: a key is needed", hint="--verifier URL or --key FILE")
    from memvm.attest.asking import fetch
    from memvm.attest.keyset import keys_from_jwks

    authority = "" if arguments.ca is None else str(arguments.ca)
    jwks, _ = fetch(arguments.verifier, "/.well-known/jwks.json", authority=authority)
    denied, _ = fetch(arguments.verifier, "/deny-list", authority=authority)
    return keys_from_jwks(jwks), set(denied["denied"])
