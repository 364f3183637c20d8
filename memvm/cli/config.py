"""`memvm config`: the security settings of a guest, and changes of them."""

from __future__ import annotations

import argparse

from memvm.cli.parser import add_json
from memvm.errors import UsageError
from memvm.manager.client import connect


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `memvm config`."""
    parser.usage = "memvm config [--json] NAME [set SETTING=VALUE ...] | --list"
    parser.epilog = """\
What happens at a change was settled at launch (memvm run --setting NAME=VALUE:BEHAVIOUR):
  refuse      the change fails
  terminate   the guest is ended, and its memory wiped
  revoke      its tokens are put on the verifier's deny list, its keys are wiped, and the change is made
  reattest    the change is made, and the guest stands still until it has a new token
  record      the change is made
Each change that is made extends the guest's run-time register first, which is part of its evidence.

examples:
  memvm config hub
  memvm config hub set debug=on
  memvm config --list
"""
    parser.add_argument("--list", action="store_true", help="list all settings and their values")
    add_json(parser)
    parser.add_argument("name", metavar="NAME", nargs="?", help="the guest's name; `memvm ps` lists them")
    parser.add_argument("words", metavar="set SETTING=VALUE", nargs="*", help="change settings")


def execute(arguments: argparse.Namespace) -> int:
    """Show settings, or change them."""
    from memvm.report.configuration import change_text, config_text, kinds_json, kinds_text
    from memvm.report.records import to_json

    if arguments.list:
        print(kinds_json() if arguments.json else kinds_text())
        return 0
    if arguments.name is None:
        raise UsageError("config: no guest was named", hint="memvm config --help")
    changes = _changes(arguments.words)
    with connect(arguments.name) as client:
        for name, value in changes:
            change = client.change_setting(name, value)
            if not arguments.json:
                print(change_text(arguments.name, name, change), flush=True)
        if not changes or arguments.json:
            config = client.config()
            print(to_json(config) if arguments.json else config_text(config))
    return 0


def _changes(words: list[str]) -> list[tuple[str, str]]:
    if not words:
        return []
    pairs = [word.partition("=") for word in words[1:]]
    if words[0] != "set" or not pairs or not all(equals for _, equals, _ in pairs):
        raise UsageError(f"config: not understood: {' '.join(words)}", hint="memvm config NAME set debug=off")
    return [(name, value) for name, _, value in pairs]
