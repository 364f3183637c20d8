"""JSON that somebody else wrote: it is read so that all readers take it for the same, or not at all.

Two readers of one text must not see two things in it, or what one of them has checked is not what the other one does.
RFC 8259 (section 4) leaves open which of two members of one name counts, and Python reads numbers that JSON has not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any


def read_json(text: str | bytes) -> Any:
    """What it says. Raises ValueError if it says anything in two ways, is nested too deeply, or is no JSON."""
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r:.40} is there twice")
        found[name] = value
    return found


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number that JSON has")
