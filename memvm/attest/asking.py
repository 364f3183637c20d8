"""What verifier, key broker and key keeper are asked over HTTP: with TLS, or on loopback, and by no proxy."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from memvm.errors import AttestationError, UsageError
from memvm.foreign_json import read_json
from memvm.say import say

TIMEOUT = 10.0
"""Seconds that a service has to answer in."""
_MAX_ANSWER = 1 << 20
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_UNKNOWN_AUTHORITY = (18, 19, 20)
"""X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT, _SELF_SIGNED_CERT_IN_CHAIN and _UNABLE_TO_GET_ISSUER_CERT_LOCALLY
(openssl/x509_vfy.h)."""
_BYTES = "application/octet-stream"
_ITS_OWN_FAULT = 500
"""Statuses from here on say that the service failed (RFC 9110, 15.6)."""
_FIRST_PAUSE = 0.25
"""Seconds; each further one is twice as long."""


class _NoAnswer(AttestationError):
    """Nobody answered, or nobody could: who is asked the same again may answer."""


def fetch(
    url: str,
    path: str,
    body: bytes | None = None,
    *,
    kind: str = _BYTES,
    authority: str = "",
    whom: str = "verifier",
    patience: float = 0.0,
) -> tuple[dict[str, Any], str]:
    """A JSON object from the verifier at a URL, or from `whom`, and its Location. Raises AttestationError, UsageError.

    A `body` of that `kind` is posted. `authority` is a file with the certificates to believe, in place of the system's.
    Who does not answer, or fails, is asked the same again for `patience` seconds; who refuses is not.
    """
    deadline, pause = time.monotonic() + patience, _FIRST_PAUSE
    while True:
        try:
            return _fetch(url, path, body, kind, authority, whom)
        except _NoAnswer as error:
            if time.monotonic() + pause > deadline:
                raise AttestationError(error.message, hint=error.hint) from None
            if pause == _FIRST_PAUSE:
                say(f"memvm: {error.message}; the {whom} is asked again for {patience:.0f} s")
        time.sleep(pause)
        pause *= 2


def _fetch(url: str, path: str, body: bytes | None, kind: str, authority: str, whom: str) -> tuple[dict[str, Any], str]:
    parts = require_askable(url, whom)
    request = urllib.request.Request(url.rstrip("/") + path, body, {} if body is None else {"Content-Type": kind})
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({}), _NoRedirects()]
    if parts.scheme == "https":
        handlers.append(_tls(authority))
    opener = urllib.request.build_opener(*handlers)
    try:
        with opener.open(request, timeout=TIMEOUT) as response:
            raw, location = response.read(_MAX_ANSWER), response.headers.get("Location", "")
    except urllib.error.HTTPError as error:
        with error:
            text = f"the {whom} refused: {_reason(error.read(4096))} ({error.code})"
            raise (_NoAnswer if error.code >= _ITS_OWN_FAULT else AttestationError)(text) from None
    except (OSError, ValueError) as error:
        raise _unreachable(parts.netloc, whom, error) from None
    try:
        answer = read_json(raw)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise AttestationError(f"the {whom}'s answer makes no sense")
    return answer, location


def require_askable(url: str, whom: str) -> urllib.parse.SplitResult:
    """The parts of a URL at which `whom` may be asked. Raises UsageError for another one."""
    try:
        parts = urllib.parse.urlsplit(url)
        is_fit = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)
        is_fit = is_fit and parts.hostname is not None and parts.port != 0
    except ValueError:  # a port that is no number, half an IPv6 address
        is_fit = False
    if not is_fit:
        hint = f"write it like https://{whom}.example, or http://127.0.0.1:8080"
        raise UsageError(f"{url:.80}: a {whom} is asked over https, or on loopback over http", hint=hint)
    return parts


def _tls(authority: str) -> urllib.request.HTTPSHandler:
    import ssl  # making a context takes a while, in which the guest would get fewer answers

    try:
        context = ssl.create_default_context(cafile=authority or None)
    except OSError as error:  # ssl.SSLError is one
        raise AttestationError(f"{authority}: no certificates can be read: {error.strerror or error}") from None
    return urllib.request.HTTPSHandler(context=context)


def _unreachable(where: str, whom: str, error: OSError | ValueError) -> AttestationError:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    kind = AttestationError
    if getattr(reason, "verify_code", 0) in _UNKNOWN_AUTHORITY:
        hint = "name a file with the certificates to believe: --ca, --verifier-ca"
    elif getattr(reason, "reason", None) == "WRONG_VERSION_NUMBER":
        hint = "http:// in place of https://, for a service without TLS"
    elif getattr(reason, "library", None) == "SSL":  # expired, or of another host: somebody is there, and is told
        hint = ""
    else:
        kind, hint = _NoAnswer, f"does it run? memvm {whom} serve"
    why = getattr(reason, "strerror", None) or reason
    return kind(f"the {whom} at {where} cannot be asked: {why}", hint=hint)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Who was asked has to answer."""

    def redirect_request(self, *_: Any) -> None:
        """None is followed."""
        return


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return "without a reason"
