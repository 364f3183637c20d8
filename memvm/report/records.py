"""Records (named tuples and frozen dataclasses) as text for people and as JSON for programs, both from one object.

How a value is shown follows from its type and from the last word of its name, and so the name has to say
the unit: `..._size`, `bytes_...`, `seconds`, `..._seconds`, `..._time`, `ratio`, `..._address`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import PurePath
from typing import Any

from memvm.report.table import pairs, table
from memvm.units import format_duration, format_size


def to_json(value: Any) -> str:
    """Indented JSON; records are objects, enums their values, bytes hexadecimal."""
    return json.dumps(plain(value), indent=2, ensure_ascii=False)


def plain(value: Any) -> Any:
    """`value` made of what JSON knows."""
    if _is_record(value):
        return {name: plain(getattr(value, name)) for name in _field_names(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, (bytes, bytearray)):
        return value.hex()
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, (Sequence, frozenset, set)) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value


def to_text(record: Any) -> str:
    """The simple fields as name and value; then each field that is a record, a mapping or a table."""
    simple, compound = [], []
    for name in _field_names(record):
        value = getattr(record, name)
        if _is_compound(value):
            compound.append((name, value))
        else:
            simple.append((_words(name), show(name, value)))
    sections = [pairs(simple)] if simple else []
    for name, value in compound:
        body = _compound_text(name, value)
        if body:
            sections.append(f"{_words(name)}\n" + "\n".join(f"  {line}" for line in body.splitlines()))
    return "\n\n".join(sections)


def show(name: str, value: Any) -> str:
    """One value as people read it."""
    if value is None or value in ("", (), []):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    words = name.split("_")
    if isinstance(value, (int, float)) and not isinstance(value, Enum):
        if "bytes" in words or words[-1] in ("size", "touched", "deferred"):
            return format_size(value)
        if words[-1] in ("seconds", "time", "uptime"):
            return format_duration(value)
        if words[-1] in ("address", "start", "end", "base", "entry", "rip", "rsp") and isinstance(value, int):
            return f"{value:#x}"
        return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"
    shown = plain(value)
    return ", ".join(map(str, shown)) if isinstance(shown, list) else str(shown)


def _is_compound(value: Any) -> bool:
    if isinstance(value, Mapping) or _is_record(value):
        return True
    return isinstance(value, Sequence) and bool(value) and _is_record(value[0])


def _is_record(value: Any) -> bool:
    return not isinstance(value, type) and (hasattr(value, "_fields") or dataclasses.is_dataclass(value))


def _field_names(record: Any) -> tuple[str, ...]:
    if isinstance(record, tuple):
        return type(record)._fields  # type: ignore[attr-defined, no-any-return]  # a named tuple: _is_record
    return tuple(field.name for field in dataclasses.fields(record))


def _compound_text(name: str, value: Any) -> str:
    if _is_record(value):
        return to_text(value)
    if isinstance(value, Mapping):
        hexadecimal = name == "registers"
        return pairs(
            (
                str(plain(key)),
                f"{item:#018x}" if hexadecimal and isinstance(item, int) else show(str(key), item),
            )
            for key, item in value.items()
        )
    names = _field_names(value[0])
    headings = [_words(column).upper() for column in names]
    numeric = {
        heading
        for heading, column in zip(headings, names, strict=True)
        if isinstance(getattr(value[0], column), (int, float))
    }
    return table(headings, [[show(c, getattr(item, c)) for c in names] for item in value], right=numeric)


def _words(name: str) -> str:
    return name.replace("_", " ")
