"""Tokens, reference values and what a verifier said, as people and programs read them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from memvm.attest.references import References
from memvm.attest.tokens import appraisal_of, status_of
from memvm.report.table import pairs, table
from memvm.units import format_duration


def attested_text(answer: Mapping[str, Any], *, shown: bool) -> str:
    """What came of a round; the token itself last, if it is to be shown."""
    lines = [f"{answer['tier']}: token {answer['jti']}, after {format_duration(answer['seconds'])}"]
    lines += [f"  {reason}" for reason in answer["reasons"]]
    if shown:
        lines += ["", answer["token"]]
    return "\n".join(lines)


def attested_json(answer: Mapping[str, Any]) -> str:
    """The same for programs."""
    return json.dumps(answer, indent=2)


def claims_text(claims: Mapping[str, Any], *, verified: bool) -> str:
    """What a token says."""
    guest = appraisal_of(claims)
    own = guest.get("ear_verifier_claims", guest).get("memvm", {})
    vector = guest.get("ear_trustworthiness_vector", guest.get("ear.trustworthiness-vector", {}))
    facts = [
        ("verified", "yes" if verified else "no: this is only what it says"),
        ("status", status_of(claims)),
        ("program", own.get("program") or "not known"),
        ("launch digest", own.get("launch_digest", "-")),
        ("issuer", str(claims.get("iss", "-"))),
        ("audience", str(claims.get("aud", "-"))),
        ("token", str(claims.get("jti", "-"))),
        ("valid", f"{_moment(claims.get('iat'))} to {_moment(claims.get('exp'))}"),
        ("guest's key", str(claims.get("cnf", {}).get("jwk", {}).get("x", "none"))),
    ]
    settings = [
        [name, each["at_launch"], each["now"], each["behaviour"], each["verdict"], each["reason"]]
        for name, each in own.get("settings", {}).items()
    ]
    parts = [
        pairs(facts),
        pairs([(name, str(value)) for name, value in vector.items()]),
        table(("SETTING", "LAUNCH", "NOW", "AT A CHANGE", "VERDICT", "REASON"), settings),
        "\n".join(f"  {reason}" for reason in own.get("reasons", [])),
    ]
    return "\n\n".join(filter(None, parts))


def _moment(seconds: Any) -> str:
    """A NumericDate (RFC 7519) for people; whoever made a token may have written anything there."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (TypeError, ValueError, OverflowError, OSError):
        return "-" if seconds is None else repr(seconds)


def claims_json(claims: Mapping[str, Any]) -> str:
    """All claims."""
    return json.dumps(claims, indent=2)


def references_text(references: References) -> str:
    """What is vouched for."""
    rows = [[name, digest.hex()] for digest, name in references.programs.items()]
    code = "\n".join(f"code  {digest.hex()}" for digest in sorted(references.code))
    return f"{table(('PROGRAM', 'LAUNCH DIGEST'), rows)}\n\n{code}\nleast security version  {references.version}"


def references_json(references: References) -> str:
    """The same for programs."""
    return json.dumps(
        {
            "programs": {name: digest.hex() for digest, name in references.programs.items()},
            "code": sorted(digest.hex() for digest in references.code),
            "version": references.version,
        },
        indent=2,
    )
