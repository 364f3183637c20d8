"""The verifier's policy: a TOML file that says whom it trusts, and what each value and behaviour of a setting is worth.

    [verifier]
    audiences = ["https://broker.example"]   # whom evidence and tokens may be for; the first is the usual one
    roots = ["root.pem"]                     # certificates of platforms' roots
    references = ["references.json"]         # reference values, and
    reference-keys = ["references.pub"]      # the keys that must have signed them
    token-lifetime = "5m"
    nonce-lifetime = "60s"
    memory-lifetime = "8760h"                # how long a guest that is not attested any more is remembered

    [policy]
    id = "lab"
    require-reference = true                 # a program that is not known: contraindicated, or a warning
    rollback = "contraindicated"             # a guest from an older checkpoint than was seen before
    fork = "contraindicated"                 # a second guest from one checkpoint
    require-tpm = false                      # whether a guest has to be anchored in a TPM
    tpm-pcr = 15                             # the PCR that platforms extend; another one vouches for nothing

    [settings.debug]                         # VALUE:BEHAVIOUR, VALUE:*, *:BEHAVIOUR, or *; the first that fits
    "off:record" = "warning"
    "off:*" = "affirming"
    "*" = "contraindicated"

Paths are relative to the file. What the file leaves out is as in DEFAULT.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from memvm.attest.pcr import PCRS, USUAL_PCR
from memvm.attest.policy_files import lifetime, paths, read_policy_file, refuse_unknown, text, texts, truth
from memvm.errors import UsageError
from memvm.machine.settings import Behaviour, Name, parse_name, parse_value

_Known = TypeVar("_Known")
AFFIRMING, WARNING, CONTRAINDICATED = "affirming", "warning", "contraindicated"
TIERS = (AFFIRMING, WARNING, CONTRAINDICATED)
_SWITCHED_OFF = {"off:record": WARNING, "off:*": AFFIRMING, "*": CONTRAINDICATED}
DEFAULT: Mapping[Name, Mapping[str, str]] = {
    Name.DEBUG: _SWITCHED_OFF,
    Name.WX: {"off:record": WARNING, "off:*": AFFIRMING, "*": WARNING},
    Name.CHECKPOINT: {"free:*": WARNING, "*:record": WARNING, "*": AFFIRMING},
    Name.CLONING: {"off:record": WARNING, "off:*": AFFIRMING, "*": WARNING},
    Name.FILES: {"none:*": AFFIRMING, "*": WARNING},
    Name.HYPERCALLS: {"*": AFFIRMING},
    Name.TIME_LIMIT: {"*": AFFIRMING},
    Name.RAM_LIMIT: {"*": AFFIRMING},
    Name.OBSERVERS: {"off:record": WARNING, "off:*": AFFIRMING, "*": WARNING},
}


class Policy(NamedTuple):
    """A policy, checked."""

    id: str = "default"
    require_reference: bool = True
    rollback: str = CONTRAINDICATED
    fork: str = CONTRAINDICATED
    settings: Mapping[Name, Mapping[str, str]] = DEFAULT
    audiences: tuple[str, ...] = ("memvm",)
    roots: tuple[Path, ...] = ()
    references: tuple[Path, ...] = ()
    reference_keys: tuple[Path, ...] = ()
    token_lifetime: float = 300.0
    nonce_lifetime: float = 60.0
    memory_lifetime: float = 365 * 86400.0
    require_tpm: bool = False
    tpm_pcr: int = USUAL_PCR

    def verdict(self, name: Name, value: str, behaviour: Behaviour) -> str:
        """What a value with a behaviour is worth; what nobody thought of is worth nothing."""
        rules = self.settings[name]
        for pattern in (f"{value}:{behaviour}", f"{value}:*", f"*:{behaviour}", "*"):
            if pattern in rules:
                return rules[pattern]
        return CONTRAINDICATED


def read_policy(path: Path) -> Policy:
    """A policy from its file. Raises AttestationError, also for what it does not know."""
    return read_policy_file(path, _parse)


def _parse(document: dict[str, Any], folder: Path) -> Policy:
    verifier, policy = document.pop("verifier", {}), document.pop("policy", {})
    settings = {name: dict(DEFAULT[name]) for name in Name}
    for name, rules in document.pop("settings", {}).items():
        known = _known(parse_name, name)
        settings[known] = {_pattern(known, pattern): _tier(tier) for pattern, tier in rules.items()}
    plain = Policy()
    parsed = Policy(
        id=text(policy.pop("id", plain.id)),
        require_reference=truth(policy.pop("require-reference", plain.require_reference)),
        rollback=_tier(policy.pop("rollback", plain.rollback)),
        fork=_tier(policy.pop("fork", plain.fork)),
        settings=settings,
        audiences=texts(verifier.pop("audiences", plain.audiences)),
        roots=paths(verifier.pop("roots", []), folder),
        references=paths(verifier.pop("references", []), folder),
        reference_keys=paths(verifier.pop("reference-keys", []), folder),
        token_lifetime=lifetime(verifier.pop("token-lifetime", "5m")),
        nonce_lifetime=lifetime(verifier.pop("nonce-lifetime", "60s")),
        memory_lifetime=lifetime(verifier.pop("memory-lifetime", "8760h")),
        require_tpm=truth(policy.pop("require-tpm", plain.require_tpm)),
        tpm_pcr=_pcr(policy.pop("tpm-pcr", plain.tpm_pcr)),
    )
    refuse_unknown(document, verifier, policy)
    if not parsed.audiences:
        raise ValueError("there has to be an audience")
    return parsed


def _pattern(name: Name, text: str) -> str:
    """VALUE:BEHAVIOUR as `verdict` looks for it. One that could never fit would leave its tier to another rule."""
    value, colon, behaviour = text.rpartition(":")
    if not colon:
        if text != "*":
            raise ValueError(f"{text!r} for {name} is no rule: write VALUE:BEHAVIOUR, VALUE:*, *:BEHAVIOUR, or *")
        return text
    if behaviour != "*" and behaviour not in list(Behaviour):
        raise ValueError(f"there is no behaviour {behaviour!r}: one of {', '.join(Behaviour)}")
    if (value, behaviour) == ("*", "*"):
        return "*"
    return f"{value if value == '*' else _known(partial(parse_value, name), value)}:{behaviour}"


def _known(parse: Callable[[str], _Known], text: str) -> _Known:
    """What `parse` makes of it. Raises ValueError where that raises UsageError."""
    try:
        return parse(text)
    except UsageError as error:
        raise ValueError(f"{error.message}: {error.hint}" if error.hint else error.message) from None


def _tier(value: Any) -> str:
    if value not in TIERS:
        raise ValueError(f"{value!r} is no tier: one of {', '.join(TIERS)}")
    return str(value)


def _pcr(value: Any) -> int:
    if type(value) is not int or value not in PCRS:
        raise ValueError(f"{value!r} is no PCR that keeps what it was extended with until the next boot")
    return value
