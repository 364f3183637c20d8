"""What a verifier remembers of TPMs, to tell when one was set back, or restarted beneath a guest.

Of each TPM, how far its counters and clock had come: they never go back. Of each guest, in which boot of which TPM it
is anchored: no guest outlives a boot, so one that comes with a later one was anchored anew, with whatever history its
platform liked; and one that comes without the TPM hides something.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from memvm.attest.ledger import Ledger
from memvm.attest.policy import AFFIRMING, CONTRAINDICATED, Policy

if TYPE_CHECKING:
    from memvm.attest.evidence import Evidence

_CLOCK_RATE = 1.5
"""By how much a TPM's clock may be too fast: more than the specification allows (Part 1, 36.3)."""


class Tpms:
    """All TPMs that were seen."""

    def __init__(self, ledger: Ledger, policy: Policy, clock: Callable[[], float]) -> None:
        self.ledger = ledger
        self._policy, self._clock = policy, clock

    def look(self, evidence: Evidence) -> tuple[str, str]:
        """The tier that a guest's anchor deserves, and why. Only what is accepted is to be noted."""
        known = self.ledger.get(f"guest {evidence.lineage.instance.hex()}")
        if (anchored := evidence.anchored) is None:
            if known is not None:
                return CONTRAINDICATED, "the guest was anchored in a TPM before, and is not any more"
            if self._policy.require_tpm:
                return CONTRAINDICATED, "the guest is not anchored in a TPM"
            return AFFIRMING, ""
        quote = anchored.quote
        if quote.pcr != self._policy.tpm_pcr:
            return CONTRAINDICATED, f"PCR {quote.pcr} is quoted, and not PCR {self._policy.tpm_pcr}"
        boot = [anchored.tpm.hex(), quote.reset_count, quote.restart_count]
        if known is not None and known["boot"] != boot:
            text = "the TPM was restarted or suspended since the guest was anchored in it, or is another one"
            return CONTRAINDICATED, text
        last = self.ledger.get(f"tpm {anchored.tpm.hex()}")
        # Rounds that overlap come in another order than they were quoted in, but not by more than a nonce lives.
        latest = quote.clock + int(_CLOCK_RATE * self._policy.nonce_lifetime * 1000)
        if last is not None and last["at"] > [quote.reset_count, quote.restart_count, latest]:
            return CONTRAINDICATED, "the TPM's counters went back: its state is an old one"
        return AFFIRMING, ""

    def note(self, evidence: Evidence) -> None:
        """Remember a TPM and its guest. Raises OSError, AttestationError."""
        if (anchored := evidence.anchored) is None:
            return
        quote, until = anchored.quote, self._clock() + self._policy.memory_lifetime
        boot = [anchored.tpm.hex(), quote.reset_count, quote.restart_count]
        key = f"guest {evidence.lineage.instance.hex()}"
        self.ledger.note(key, until, durable=key not in self.ledger, boot=boot)
        key, at = f"tpm {boot[0]}", [quote.reset_count, quote.restart_count, quote.clock]
        last = self.ledger.get(key)
        if last is None or last["at"] < at:
            self.ledger.note(key, until, durable=last is None or last["at"][:2] != at[:2], at=at)
