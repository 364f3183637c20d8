"""A verifier's policy file: what it says counts, and what it cannot mean is refused, since a rule would be lost."""

from pathlib import Path

import pytest

from memvm.attest.policy import AFFIRMING, CONTRAINDICATED, WARNING, read_policy
from memvm.errors import AttestationError
from memvm.machine.settings import Behaviour, Name


def test_rules_are_found_by_value_and_behaviour(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(
        '[settings.debug]\n"off:record" = "warning"\n"off:*" = "affirming"\n"*:*" = "contraindicated"\n'
        '[settings.time-limit]\n"90:*" = "affirming"\n"*:record" = "warning"\n'
    )
    policy = read_policy(path)
    for name, value, behaviour, verdict in (
        (Name.DEBUG, "off", Behaviour.RECORD, WARNING),
        (Name.DEBUG, "off", Behaviour.REFUSE, AFFIRMING),
        (Name.DEBUG, "on", Behaviour.REFUSE, CONTRAINDICATED),
        (Name.TIME_LIMIT, "90s", Behaviour.REFUSE, AFFIRMING),  # as evidence writes it
        (Name.TIME_LIMIT, "none", Behaviour.RECORD, WARNING),
        (Name.TIME_LIMIT, "none", Behaviour.REFUSE, CONTRAINDICATED),
    ):
        assert policy.verdict(name, value, behaviour) == verdict


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('[settings.debug]\n"off:refse" = "affirming"', "no behaviour 'refse'"),
        ('[settings.debug]\n"of:refuse" = "affirming"', "debug cannot be 'of'"),
        ('[settings.debug]\n"off" = "affirming"', "'off' for debug is no rule"),
        ('[settings.debg]\n"*" = "affirming"', "no setting 'debg'"),
        ('[settings.time-limit]\n"soon:*" = "affirming"', "not a duration: 'soon'"),
        ('[settings.debug]\n"*" = "afirming"', "'afirming' is no tier"),
        ('[verifier]\naudiences = "lab"', r"'lab' is no list: write \[\"lab\"\]"),
        ('[verifier]\nroots = "root.pem"', "'root.pem' is no list"),
        ("[verifier]\ntoken-lifetime = 5", "5 is no text"),
        ('[verifier]\ntoken-lifetime = "0s"', "nothing would live so short"),
        ('[verifier]\nnonce-lifetime = "-5m"', "not a duration: '-5m'"),
    ],
)
def test_what_a_policy_cannot_mean_is_refused(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(AttestationError, match=f"policy.toml: the policy makes no sense: .*{why}"):
        read_policy(path)
