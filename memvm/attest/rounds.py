"""A guest's rounds with a verifier, in its manager: nonce, evidence, token; and the revocation of what came of them."""

from __future__ import annotations

import base64
import json
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from memvm.attest import cbor, cose
from memvm.attest.anchor import qualifying
from memvm.attest.anchoring import Anchoring, anchoring_of
from memvm.attest.asking import fetch
from memvm.attest.code import code_digest
from memvm.attest.evidence import Evidence, GuestKey, describe
from memvm.attest.places import platform_directory
from memvm.attest.platform import Device, load_certificates, load_device
from memvm.attest.seals import is_vouched
from memvm.errors import AttestationError
from memvm.linux.prctl import refuse_core_dumps

if TYPE_CHECKING:
    from memvm.machine.machine import Machine

_MARGIN = 60.0
"""Seconds for which a token is remembered after it expired: there are clocks that are late."""
_ATTEMPTS, _PAUSE = 20, 0.05


class Attested(NamedTuple):
    """What a verifier said."""

    token: str
    """A JWT; a CWT in base64."""
    jti: str
    tier: str
    reasons: tuple[str, ...]
    seconds: float
    """What the round took."""


class _Issued(NamedTuple):
    """A token that somebody may still believe."""

    url: str
    """The verifier's."""
    authority: str
    jti: str
    until: float
    """On a clock that nobody can set."""


class Rounds:
    """Those of one guest."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._lock = threading.Lock()
        self._tokens: list[_Issued] = []
        machine.enforcement.deny = self.deny

    def attest(self, url: str, audience: str, kind: str, authority: str) -> Attested:
        """One round. Raises AttestationError if there is no token."""
        began = time.monotonic()
        with self._lock:
            epoch = self._machine.settings.epoch
            key, bound = GuestKey(*self._machine.guest.public_key), self._machine.guest.bound
            refuse_core_dumps()
            directory = platform_directory()
            device, roots = load_device(directory), load_certificates(directory / "root.pem")
            wish = {name: value for name, value in (("audience", audience), ("format", kind)) if value}
            session, location = _post(url, "/challenge-response/v1/newSession", json.dumps(wish).encode(), authority)
            nonce = base64.b64decode(_field(session, "nonce"), validate=True)
            guest = self._machine.guest
            code, vouched = code_digest(), is_vouched(self._machine, roots)

            def describe_now() -> Evidence:
                audience = _field(session, "audience")
                return describe(
                    guest, key, nonce, audience, code=code, version=device.security_version, vouched=vouched
                )

            message = signed(describe_now, device, anchoring_of(self._machine))
            answer, _ = _post(url, location, message, authority)
            token, jti, tier = (_field(answer, name) for name in ("result", "jti", "tier"))
            issued = _Issued(url, authority, jti, _now() + _lifetime(answer) + _MARGIN)
            # A change that begins from here on waits for the lock, and has this token denied with the others.
            if epoch % 2 or self._machine.settings.epoch != epoch:
                _deny(issued, "a setting was changed meanwhile", device)
                raise AttestationError("a setting was changed while the guest was attested", hint="attest it again")
            self._remember(issued)
            if (GuestKey(*guest.public_key), guest.bound) == (key, bound):  # it has not named others meanwhile
                guest.token = token.encode()
        if tier in ("affirming", "warning") and guest.verifier in ("", url):
            self._machine.enforcement.token_came(epoch)
        return Attested(token, jti, tier, tuple(map(str, answer.get("reasons", ()))), time.monotonic() - began)

    def _remember(self, issued: _Issued) -> None:
        now = _now()
        self._tokens = [*(each for each in self._tokens if each.until > now), issued]

    def deny(self, reason: str) -> None:
        """Have all tokens denied. Raises AttestationError if a verifier does not take note: then none is forgotten."""
        with self._lock:
            self._tokens = [issued for issued in self._tokens if issued.until > _now()]
            device = load_device() if self._tokens else None
            for issued in self._tokens:
                assert device is not None
                _deny(issued, reason, device)
            self._tokens.clear()


def signed(describe_now: Callable[[], Evidence], device: Device, anchoring: Anchoring | None) -> bytes:
    """Evidence of a guest as it is now, with what a TPM says of it if it is anchored in one.

    Raises AttestationError, HostError.
    """
    if anchoring is None:
        return describe_now().sign(device)
    for _ in range(_ATTEMPTS):
        evidence = describe_now()
        anchor = anchoring.quote(evidence.register, qualifying(evidence.to_payload()))
        if anchor is not None:
            return evidence.sign(device, anchor)
        time.sleep(_PAUSE)  # a setting is being changed: the TPM was told already, and the register will be
    raise AttestationError("the TPM has another register for this guest than its manager, or it changes all the time")


_ROUNDS: weakref.WeakKeyDictionary[Machine, Rounds] = weakref.WeakKeyDictionary()
_MAKING = threading.Lock()


def rounds_of(machine: Machine) -> Rounds:
    """The rounds of a guest."""
    with _MAKING:
        if machine not in _ROUNDS:
            _ROUNDS[machine] = Rounds(machine)
        return _ROUNDS[machine]


def _deny(issued: _Issued, reason: str, device: Device) -> None:
    payload = cbor.encode({"domain": "memvm revocation 1", "jti": issued.jti, "reason": reason})
    message = cose.sign(payload, device.key, {cose.CHAIN: list(device.chain)})
    _post(issued.url, "/revocations", message, issued.authority)


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _lifetime(answer: dict[str, Any]) -> int:
    value = answer.get("lifetime")
    if type(value) is not int or value < 0:
        raise AttestationError("the verifier's answer does not say how long the token counts")
    return value


def _field(answer: dict[str, Any], name: str) -> str:
    value = answer.get(name)
    if not isinstance(value, str):
        raise AttestationError(f"the verifier's answer has no {name}")
    return value


def _post(url: str, path: str, body: bytes, authority: str) -> tuple[dict[str, Any], str]:
    """The answer to a request, and where it says that something new is. Raises AttestationError, UsageError."""
    return fetch(url, path, body, authority=authority)
