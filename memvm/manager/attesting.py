"""The request to attest a guest: its manager or its platform makes the round, and hands out nothing but the token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from memvm.errors import GuestStateError
from memvm.manager.guest import ManagedGuest
from memvm.manager.protocol import Json, record_to_json
from memvm.manager.requests import text_of

if TYPE_CHECKING:
    from memvm.machine.machine import Machine


@runtime_checkable
class AttestsItself(Protocol):
    """A guest whose platform is another process, which makes the round."""

    def attest(self, verifier: str, audience: str, kind: str, authority: str) -> Json:
        """What came of it."""


def attest(guest: ManagedGuest, request: Json) -> Json:
    """Make a round with the verifier that the request names."""
    from memvm.machine.machine import Machine  # most guests are never attested

    verifier, audience, kind, authority = (
        text_of(request, key, "") for key in ("verifier", "audience", "format", "authority")
    )
    if isinstance(guest, AttestsItself):
        return guest.attest(verifier, audience, kind, authority)
    if not isinstance(guest, Machine):
        raise GuestStateError("this guest cannot be attested")
    return attest_machine(guest, verifier, audience, kind, authority)


def attest_machine(machine: Machine, verifier: str, audience: str, kind: str, authority: str) -> Json:
    """Make a round for a guest of this process."""
    from memvm.attest.rounds import rounds_of

    attested = rounds_of(machine).attest(verifier, audience, kind, authority)
    return {**record_to_json(attested), "reasons": list(attested.reasons)}
