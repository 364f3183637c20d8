"""`memvm verifier`: the attestation machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from memvm.cli.serving import add_serving, serve, url_of


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `memvm verifier`."""
    parser.epilog = """\
It answers over HTTP on loopback, or with TLS anywhere; memvm/attest/service.py lists the requests, and
memvm/attest/policy.py draws the policy file, which names roots, reference values, and what each value and
behaviour of a setting is worth. In --state are its key and what it remembers: tokens, deny list, lineages.

examples:
  memvm verifier serve --policy policy.toml --state verifier/ --port 8080
  memvm verifier serve --policy policy.toml --host 0.0.0.0 --tls-certificate tls.pem --tls-key tls.key
"""
    parser.add_argument("action", choices=("serve",), help="serve until it is interrupted")
    parser.add_argument("--policy", metavar="FILE", type=Path, required=True, help="the policy (TOML)")
    parser.add_argument("--state", metavar="DIR", type=Path, default=Path("verifier"), help="where it keeps its files")
    parser.add_argument("--issuer", metavar="NAME", default="", help="what tokens say who issued them; the address")
    add_serving(parser, 8080)


def execute(arguments: argparse.Namespace) -> int:
    """Serve."""
    from memvm.attest.policy import read_policy
    from memvm.attest.service import Service
    from memvm.attest.verifier import Verifier
    from memvm.linux.prctl import refuse_inspection

    refuse_inspection()
    issuer = arguments.issuer or url_of(arguments, arguments.port)
    verifier = Verifier(read_policy(arguments.policy), arguments.state, issuer)
    try:
        serve(arguments, Service(verifier))
    finally:
        verifier.close()
    return 0
