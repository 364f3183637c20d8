"""`memvm keeper`: keeps the keys of sealed guests' checkpoints."""

from __future__ import annotations

import argparse
from pathlib import Path

from memvm.cli.serving import add_serving, serve
from memvm.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `memvm keeper`."""
    parser.epilog = """\
A sealed guest's checkpoint has its key in it, wrapped for the keeper whose public key the guest was
launched with. To restore it, a platform has itself attested for the keeper (--audience), and sends him the
token: if that is of the verifier given here, affirming or a warning, and of the very checkpoint, he releases
the key to it.

examples:
  memvm keeper key keeper.pem
  memvm keeper serve --key keeper.pem --verifier http://127.0.0.1:8080 --audience keeper
  memvm run --sealed --key-keeper keeper.pem.pub -- ./server
"""
    parser.add_argument("action", choices=("key", "serve"), help="make a key pair, or serve until interrupted")
    parser.add_argument("file", metavar="FILE", type=Path, nargs="?", help="key: where the new private key shall be")
    parser.add_argument("--key", metavar="FILE", type=Path, help="serve: the private key")
    parser.add_argument("--verifier", metavar="URL", default="", help="serve: whose tokens are believed")
    parser.add_argument("--verifier-ca", metavar="FILE", default="", help="serve: certificates to believe for that")
    parser.add_argument("--audience", metavar="NAME", default="keeper", help="serve: whom tokens have to be for")
    add_serving(parser, 8082)


def execute(arguments: argparse.Namespace) -> int:
    """Do it."""
    if arguments.action == "key":
        if arguments.file is None:
            raise UsageError("keeper key: where shall the key be?", hint="memvm keeper key keeper.pem")
        _make_key(arguments.file)
        return 0
    if arguments.key is None or not arguments.verifier:
        raise UsageError("keeper serve: --key and --verifier are needed", hint="memvm keeper --help")
    _serve(arguments)
    return 0


def _make_key(path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    from memvm.attest.key_files import make_pair

    make_pair(X25519PrivateKey.generate(), path)


def _serve(arguments: argparse.Namespace) -> None:
    from memvm.attest.asking import require_askable
    from memvm.attest.checkpoint_keys import KeyKeeper
    from memvm.attest.key_files import load_private_to_decrypt
    from memvm.attest.key_service import KeeperService, denied_by, keys_of
    from memvm.linux.prctl import refuse_inspection

    refuse_inspection()
    require_askable(arguments.verifier, "verifier")
    private, verifier = load_private_to_decrypt(arguments.key), (arguments.verifier, arguments.verifier_ca)
    serve(arguments, KeeperService(KeyKeeper(private, keys_of(*verifier), arguments.audience, denied_by(*verifier))))
