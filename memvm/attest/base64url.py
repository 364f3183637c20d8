"""base64url without padding, as JOSE has it (RFC 7515), and only in its one form."""

from __future__ import annotations

import base64


def base64url(data: bytes) -> str:
    """Bytes as text."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def from_base64url(text: str) -> bytes:
    """Text as bytes. Raises ValueError for what base64url does not make."""
    if not text.isascii() or set(text) & set("+/="):
        raise ValueError("it is not base64url")
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if base64url(data) != text:
        raise ValueError("it is not base64url in its one form")
    return data
