"""Appraisal: what evidence is worth, by reference values and a policy, in the terms of AR4SI.

Each claim of the trustworthiness vector gets a value; the status is the worst of their tiers. The claims are honest:
that memory is kept from the host is nothing that a platform in software can say, so `hardware`, `runtime-opaque` and
`storage-opaque` are warnings at best, and so is the status.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple

from memvm.attest.evidence import AttestedSetting, Evidence
from memvm.attest.policy import Policy
from memvm.attest.references import References
from memvm.machine.settings import Name


class Tier(IntEnum):
    """AR4SI's trustworthiness tiers, the best value of each."""

    NONE = 0
    AFFIRMING = 2
    WARNING = 32
    CONTRAINDICATED = 96


VECTOR = (
    *("instance-identity", "configuration", "executables", "file-system"),
    *("hardware", "runtime-opaque", "storage-opaque", "sourced-data"),
)
"""The claims of the vector, in the order of their CBOR keys."""


_HARDWARE = {
    False: "the platform is software: no hardware vouches for it",
    True: "the platform is software: a TPM vouches for the register of changes, and for nothing else of it",
}


class Verdict(NamedTuple):
    """What the policy says of one setting."""

    at_launch: str
    now: str
    behaviour: str
    verdict: str
    reason: str


class Appraisal(NamedTuple):
    """What came out."""

    status: Tier
    vector: Mapping[str, Tier]
    settings: Mapping[str, Verdict]
    program: str
    """The name of the program by the reference values; empty if it is not known."""
    reasons: tuple[str, ...]
    """Why it is not affirming, the worst first."""


def appraise(
    evidence: Evidence, references: References, policy: Policy, lineage: tuple[str, str], tpm: tuple[str, str]
) -> Appraisal:
    """Judge evidence whose signature, nonce and audience have been checked. `lineage` and `tpm` are what the
    verifier's memory says of where the guest came from, and of the TPM that it is anchored in: tier and reason."""
    settings = {str(name): _judge(name, evidence, policy) for name in Name}
    found: list[tuple[Tier, str, str]] = [
        *_executables(evidence, references, policy),
        *_code(evidence, references),
        *(
            (Tier[verdict.verdict.upper()], "file-system" if name == Name.FILES else "configuration", verdict.reason)
            for name, verdict in settings.items()
        ),
        (Tier[lineage[0].upper()], "instance-identity", lineage[1]),
        (Tier[tpm[0].upper()], "hardware", tpm[1]),
        (Tier.WARNING, "hardware", _HARDWARE[evidence.anchored is not None]),
        (Tier.WARNING, "runtime-opaque", "memory is not encrypted by hardware: root can read it"),
        (Tier.WARNING, "storage-opaque", "no hardware keeps the keys of what is stored"),
    ]
    if evidence.version < references.version:
        text = f"security version {evidence.version}, and {references.version} is needed"
        found.append((Tier.CONTRAINDICATED, "instance-identity", text))
    vector = dict.fromkeys(VECTOR, Tier.AFFIRMING) | {"sourced-data": Tier.NONE}
    for tier, claim, _ in found:
        vector[claim] = max(vector[claim], tier)
    problems = sorted((item for item in found if item[0] > Tier.AFFIRMING), key=lambda item: -item[0])
    reasons = tuple(f"{claim}: {reason}" for _, claim, reason in problems)
    program = references.programs.get(evidence.launch, "")
    return Appraisal(Tier(max(vector.values())), vector, settings, program, reasons)


def _executables(evidence: Evidence, references: References, policy: Policy) -> list[tuple[Tier, str, str]]:
    lineage = evidence.lineage
    if lineage.ancestors and not lineage.vouched:
        text = "it comes from a checkpoint that no platform vouches for"
        return [(Tier.CONTRAINDICATED, "executables", text)]
    if not evidence.launch:
        return [(Tier.CONTRAINDICATED, "executables", "nobody measured what was launched")]
    if evidence.launch not in references.programs:
        tier = Tier.CONTRAINDICATED if policy.require_reference else Tier.WARNING
        return [(tier, "executables", f"launch digest {evidence.launch.hex()[:16]}… is of no known program")]
    return []


def _code(evidence: Evidence, references: References) -> list[tuple[Tier, str, str]]:
    if evidence.code in references.code:
        return []
    text = f"nothing is known of the code that is to carry behaviours out ({evidence.code.hex()[:16]}…)"
    return [(Tier.CONTRAINDICATED, "configuration", text)]


def _judge(name: Name, evidence: Evidence, policy: Policy) -> Verdict:
    setting = evidence.settings[name]
    tier, reason = _worst_of_values(name, setting, policy)
    changes = sum(_changes(entry) == name for entry in evidence.log)
    if changes and tier < Tier.WARNING:
        tier = Tier.WARNING
        reason = f"{name} was changed {changes} times since launch, and is {setting.now} now"
    return Verdict(setting.at_launch, setting.now, setting.behaviour, tier.name.lower(), reason)


def _worst_of_values(name: Name, setting: AttestedSetting, policy: Policy) -> tuple[Tier, str]:
    launched = Tier[policy.verdict(name, setting.at_launch, setting.behaviour).upper()]
    now = Tier[policy.verdict(name, setting.now, setting.behaviour).upper()]
    if now > launched:
        return now, f"{name}={setting.now} now; it was {setting.at_launch} at launch, with {setting.behaviour}"
    if name is Name.FILES and launched is Tier.WARNING and setting.at_launch != "none":
        text = f"{name}={setting.at_launch}: of what it reads from files, libraries among it, nothing is measured"
        return launched, text
    if launched is Tier.AFFIRMING:
        return launched, f"{name}={setting.at_launch}, and a change would {_would(setting)}"
    return launched, f"{name}={setting.at_launch} at launch, and a change would {_would(setting)}"


def _would(setting: AttestedSetting) -> str:
    return {
        "refuse": "be refused",
        "terminate": "end the guest",
        "revoke": "revoke its tokens",
        "reattest": "stop it until it has a new token",
        "record": "only be recorded",
    }[setting.behaviour]


def _changes(entry: str) -> str:
    fields = json.loads(entry)
    return str(fields.get("setting", "")) if fields["event"] == "change" else ""
