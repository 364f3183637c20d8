"""The list of all attacks, and that each of them is tested under its number and its words."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import pytest

ATTACKS: Mapping[int, Sequence[str]] = {
    1: ["nonce replay"],
    2: ["stale challenge"],
    3: ["evidence relayed to another session"],
    4: ["guest's key swapped"],
    5: ["wrong audience", "wrong broker"],
    6: ["alg none", "HS256 with the public key", "unknown crit"],
    7: ["attacker's jwk header", "attacker's x5c header", "attacker's key id header"],
    8: ["expired", "no exp", "iat in the future", "iat a float"],
    9: ["same guest id, other device key"],
    10: ["validated key is not the used key"],
    11: ["verifier exception"],
    12: [
        "program replaced",
        "program replaced between measure and start by link",
        "program replaced between measure and start by the dynamic loader",
    ],
    13: ["unmeasured page slipped in"],
    14: ["debug switched on after launch"],
    15: ["setting changed and changed back"],
    16: ["enforcer killed before it acts", "enforcer stopped before it acts"],
    17: ["claimed behaviour is not the real one"],
    18: ["log truncated", "log reordered", "log extended"],
    19: ["null cipher in the header", "changed cipher in the header"],
    20: ["foreign keyslot added"],
    21: ["disk rolled back"],
    22: ["sectors spliced", "disks spliced"],
    23: ["page moved to another address"],
    24: ["old version of a page"],
    25: ["checkpoint rolled back"],
    26: ["two clones of one checkpoint"],
    27: ["GCM nonce reused", "GCM nonce reused after a restore"],
    28: [
        *("key in swap", "key in a core dump", "key in a log", "key in a traceback", "key in a checkpoint"),
        *("key in the manager's memory", "key in the platform's memory", "key in a file", "key on a socket"),
        "key in a crash report",
    ],
    29: ["ptrace injection", "pidfd_getfd", "inherited descriptor", "read by /proc", "read by process_vm_readv"],
    30: ["HPKE ciphertext replaced by the manager"],
    31: ["false broker with attacker's disk and key"],
    32: ["platform's counter file rolled back"],
    33: ["duplicate keys in JSON", "duplicate keys in CBOR", "duplicate keys in a policy"],
    34: ["key not wiped after revocation"],
}
"""What is tried on memory, keys, disk, checkpoint and channel; a test's name is its number and, to begin with, its
words: test_attack_13_unmeasured_page_slipped_in."""


def beginning(number: int, words: str) -> str:
    """What the names of its tests begin with."""
    plain = re.sub(r"[^a-z0-9_]+", "_", words.lower().replace("'", "")).strip("_")
    return f"test_attack_{number}_{plain}".replace("/", "")


BEGINNINGS = {number: [beginning(number, words) for words in of] for number, of in ATTACKS.items()}


@cache
def names() -> tuple[str, ...]:
    """The names of all tests of attacks, from the source."""
    trees = (ast.parse(path.read_text()) for path in sorted(Path(__file__).parent.rglob("test_*.py")))
    functions = (node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return tuple(name for name in functions if name.startswith("test_attack_"))


@pytest.mark.parametrize("number", ATTACKS)
def test_an_attack_is_tested_by_its_name(number: int) -> None:
    missing = [begin for begin in BEGINNINGS[number] if not any(name.startswith(begin) for name in names())]
    assert not missing


def test_every_test_of_an_attack_has_one_number_of_the_list() -> None:
    """Two in one test could not be told apart when it fails."""
    found = {name: re.fullmatch(r"test_attack_(\d+)_(?!and_\d).+", name) for name in names()}
    assert not [name for name, match in found.items() if match is None or int(match[1]) not in ATTACKS]
