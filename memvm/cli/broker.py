"""`memvm broker`: a relying party that keeps disks' keys."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from memvm.cli.serving import add_serving, serve
from memvm.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `memvm broker`."""
    parser.epilog = """\
key makes the broker's key, and prints the public one, which guests are given. add takes a disk's key, and the
digest of its header as it is now, into --state; do it again when the disk got another passphrase. serve gives
keys to guests whose tokens are as the policy says; memvm/attest/broker_policy.py draws that file, and
memvm/attest/broker_service.py lists the requests. log prints what was given to whom, and what was refused.
revoke forgets a disk's key: what guests have already, they have.

examples:
  memvm broker key --state broker/
  memvm broker add --state broker/ --key-file secret.key --disk data.img
  memvm broker serve --state broker/ --policy broker.toml --port 8081
  memvm broker log --state broker/
  memvm broker revoke --state broker/ --disk 0b7d1a1e-53a1-4b9a-9d8c-2f4f3f0f6a55
"""
    parser.add_argument("action", choices=("key", "add", "serve", "log", "revoke"), help="what to do")
    parser.add_argument("--disk", metavar="FILE | UUID", help="add: the disk; revoke: its UUID")
    parser.add_argument("--state", metavar="DIR", type=Path, default=Path("broker"), help="where it keeps its files")
    parser.add_argument("--policy", metavar="FILE", type=Path, help="serve: the policy (TOML)")
    parser.add_argument("--key-file", metavar="FILE", type=Path, help="add: a file with the disk's passphrase")
    add_serving(parser, 8081)


def execute(arguments: argparse.Namespace) -> int:
    """Serve, or change what the broker keeps."""
    from memvm.linux.prctl import refuse_inspection

    refuse_inspection()
    {"key": _show_key, "serve": _serve, "add": _add, "revoke": _revoke, "log": _log}[arguments.action](arguments)
    return 0


def _show_key(arguments: argparse.Namespace) -> None:
    from memvm.attest.broker import broker_key

    public = broker_key(arguments.state).public_key().public_bytes_raw().hex()
    print(json.dumps({"key": public}) if arguments.json else public)


def _serve(arguments: argparse.Namespace) -> None:
    from memvm.attest.broker import Broker
    from memvm.attest.broker_policy import read_broker_policy
    from memvm.attest.broker_service import BrokerService, deny_list_of

    if arguments.policy is None:
        raise UsageError("broker serve: a policy is needed", hint="--policy FILE")
    policy = read_broker_policy(arguments.policy)
    broker = Broker(policy, arguments.state, deny_list_of(policy))
    try:
        serve(arguments, BrokerService(broker))
    finally:
        broker.close()


def _add(arguments: argparse.Namespace) -> None:
    from memvm.attest.broker import KeptKey, broker_key, keep_key
    from memvm.cli.disk import ask_passphrase
    from memvm.disk.volume import open_volume

    path = Path(_disk(arguments))
    passphrase = ask_passphrase(arguments.key_file, f"the passphrase of {path}")
    broker_key(arguments.state)
    with open_volume(path) as volume:
        uuid, digest = volume.header.uuid, volume.header_digest()
        keep_key(arguments.state, uuid, KeptKey(volume.unlock(passphrase), digest))
    print(json.dumps({"uuid": uuid, "header": digest.hex()}) if arguments.json else uuid)


def _revoke(arguments: argparse.Namespace) -> None:
    from memvm.attest.broker import revoke_key

    revoke_key(arguments.state, _disk(arguments))


def _log(arguments: argparse.Namespace) -> None:
    from memvm.report.broker import log_text

    path: Path = arguments.state / "log.jsonl"
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", hint="--state DIR") from None
    print("\n".join(lines) if arguments.json else log_text([json.loads(line) for line in lines]))


def _disk(arguments: argparse.Namespace) -> str:
    if arguments.disk is None:
        raise UsageError(f"broker {arguments.action}: which disk?", hint="--disk")
    return str(arguments.disk)
