"""What a verifier remembers of guests and their checkpoints, to tell when an old one, or a second one, comes.

Of each guest (its identity, drawn at launch): the most saves that were seen, and for each checkpoint the instance that
came from it, and the device that it ran on. A guest from a checkpoint with fewer saves than were seen was rolled back;
another instance from the same checkpoint is a fork, and so is the same instance on another device: a process does not
move, and what was saved and brought back is another instance. What was not attested for as long as the policy says is
forgotten.
"""

from __future__ import annotations

from collections.abc import Callable

from memvm.attest.evidence import Evidence
from memvm.attest.ledger import Ledger
from memvm.attest.policy import AFFIRMING, Policy

_REFRESH = 0.9
"""An entry is written anew, to last longer, when less than this share of its time is left."""


class Lineages:
    """All guests that were seen."""

    def __init__(self, ledger: Ledger, policy: Policy, clock: Callable[[], float]) -> None:
        self.ledger = ledger
        self._policy, self._clock = policy, clock

    def look(self, evidence: Evidence) -> tuple[str, str]:
        """The tier that a guest's origin deserves, and why. Only what is accepted is to be noted."""
        identity, origin, instance, began = _facts(evidence)
        known = self.ledger.get(f"{identity} {origin}")
        if known is not None and known["instance"] != instance:
            what = "checkpoint" if origin else "launch"
            return self._policy.fork, f"another guest came from the same {what} before: this is a second one"
        if known is not None and known.get("device", evidence.device.hex()) != evidence.device.hex():
            return self._policy.fork, "the same guest was seen on another device: one of the two is another guest"
        newest = self._saves(identity)
        if known is None and began < newest:
            text = f"it comes from save {began} of the guest, and save {newest} was seen: rolled back"
            return self._policy.rollback, text
        return AFFIRMING, ""

    def note(self, evidence: Evidence) -> None:
        """Remember a guest that is to be given a token. Raises OSError, AttestationError."""
        identity, origin, instance, _ = _facts(evidence)
        saves = max(evidence.lineage.saves, self._saves(identity))
        known = self.ledger.get(f"{identity} {origin}")
        first, device = instance, evidence.device.hex()
        if known is not None:
            first, device = known["instance"], known.get("device", device)
        self._keep(f"{identity} {origin}", instance=first, device=device)
        self._keep(identity, saves=saves)

    def _saves(self, identity: str) -> int:
        known = self.ledger.get(identity)
        return 0 if known is None else int(known["saves"])

    def _keep(self, key: str, **facts: str | int) -> None:
        """Only what is new has to reach the disk; that something lasts longer may be lost with the machine."""
        now, lifetime = self._clock(), self._policy.memory_lifetime
        known = self.ledger.get(key)
        is_new = known is None or any(known.get(name) != fact for name, fact in facts.items())
        if known is None or is_new or known["until"] < now + _REFRESH * lifetime:
            self.ledger.note(key, now + lifetime, durable=is_new, **facts)


def _facts(evidence: Evidence) -> tuple[str, str, str, int]:
    """Identity, checkpoint that it came from, instance, and how many saves there had been when it began."""
    lineage = evidence.lineage
    origin = lineage.ancestors[-1].checkpoint_id if lineage.ancestors else ""
    began = lineage.ancestors[-1].saves if lineage.ancestors else 0
    return lineage.identity.hex(), origin, lineage.instance.hex(), began
