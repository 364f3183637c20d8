"""`memvm attest`: a round of a running guest with a verifier, and what came of it."""

from __future__ import annotations

import argparse
from pathlib import Path

from memvm.cli.parser import add_json, add_name
from memvm.manager.client import connect

REFUSED = 1
"""Exit status if the token says that the guest is not to be trusted."""


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `memvm attest`."""
    parser.epilog = """\
The platform signs evidence of the guest, with the verifier's nonce: launch digest, settings and what happens
at their change, run-time register and log, the guest's key, and the checkpoint that it came from. The
verifier appraises it and issues a token. The guest runs on meanwhile; one that stands still until it has a
new token goes on if this one is no worse than a warning. Status 1 says that the token is contraindicated.

examples:
  memvm attest hub --verifier http://127.0.0.1:8080
  memvm attest hub --verifier https://verifier.example --audience https://broker.example --out hub.jwt
"""
    add_name(parser)
    parser.add_argument("--verifier", metavar="URL", required=True, help="where the verifier is")
    parser.add_argument("--audience", metavar="NAME", default="", help="whom the token is for")
    parser.add_argument(
        "--format", choices=("ietf", "veraison", "cwt"), default="ietf", help="the token's form; ietf if not given"
    )
    parser.add_argument("--ca", metavar="FILE", type=Path, help="believe the certificates in this file, for https")
    parser.add_argument("--out", metavar="FILE", type=Path, help="write the token to a file")
    add_json(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Ask the manager for it, and say what came back."""
    from memvm.report.attestation import attested_json, attested_text

    authority = "" if arguments.ca is None else str(arguments.ca.absolute())
    with connect(arguments.name) as client:
        answer = client.attest(arguments.verifier, arguments.audience, arguments.format, authority)
    if arguments.out is not None:
        arguments.out.write_text(answer["token"] + "\n")
    print(attested_json(answer) if arguments.json else attested_text(answer, shown=arguments.out is None))
    return REFUSED if answer["tier"] not in ("affirming", "warning") else 0
