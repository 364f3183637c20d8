"""Figures: what a benchmark measured, beside what it has to reach; as a table for people and JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Limit:
    """Bounds of a figure's value (in its unit) and of its ratio to the reference; None does not bind."""

    value_at_most: float | None = None
    value_at_least: float | None = None
    ratio_at_most: float | None = None
    ratio_at_least: float | None = None

    def allows(self, value: float, ratio: float | None) -> bool | None:
        """Whether the bounds are kept; None if there are none."""
        kept = []
        if self.value_at_most is not None:
            kept.append(value <= self.value_at_most)
        if self.value_at_least is not None:
            kept.append(value >= self.value_at_least)
        if self.ratio_at_most is not None:
            kept.append(ratio is not None and ratio <= self.ratio_at_most)
        if self.ratio_at_least is not None:
            kept.append(ratio is not None and ratio >= self.ratio_at_least)
        return all(kept) if kept else None

    def text(self, unit: str) -> str:
        """The bounds in a few words."""
        parts = []
        if self.value_at_most is not None:
            parts.append(f"≤ {self.value_at_most:g} {unit}")
        if self.value_at_least is not None:
            parts.append(f"≥ {self.value_at_least:g} {unit}")
        if self.ratio_at_most is not None:
            parts.append(f"ratio ≤ {self.ratio_at_most:g}")
        if self.ratio_at_least is not None:
            parts.append(f"ratio ≥ {self.ratio_at_least:g}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Reference:
    """What a figure is compared with: measured in the same run, in the same unit."""

    value: float
    what: str


@dataclass(frozen=True)
class Figure:
    """One measured figure."""

    name: str
    what: str
    value: float
    unit: str
    reference: Reference | None = None
    limit: Limit = field(default_factory=Limit)
    samples: tuple[float, ...] = ()
    """The single measurements behind the value, in the order in which they were made."""

    @property
    def ratio(self) -> float | None:
        """Value by reference."""
        if self.reference is None or self.reference.value == 0:
            return None
        return self.value / self.reference.value

    @property
    def met(self) -> bool | None:
        """Whether the limit is kept; None for a figure without one."""
        return self.limit.allows(self.value, self.ratio)

    def record(self) -> dict[str, Any]:
        """For --json."""
        return {
            "what": self.what,
            "value": self.value,
            "unit": self.unit,
            "reference": self.reference.value if self.reference else None,
            "reference_what": self.reference.what if self.reference else None,
            "ratio": self.ratio,
            "limit": {
                "value_at_most": self.limit.value_at_most,
                "value_at_least": self.limit.value_at_least,
                "ratio_at_most": self.limit.ratio_at_most,
                "ratio_at_least": self.limit.ratio_at_least,
            },
            "met": self.met,
            "samples": list(self.samples),
        }


def json_text(figures: Sequence[Figure]) -> str:
    """One object: figures by name."""
    return json.dumps({figure.name: figure.record() for figure in figures}, indent=2)


def table_text(figures: Sequence[Figure]) -> str:
    """A table, and below it what each figure and its reference are."""
    head = ("figure", "value", "reference", "ratio", "limit", "")
    verdicts = {True: "met", False: "MISSED", None: "(for information)"}
    rows = [head]
    for figure in figures:
        reference = f"{figure.reference.value:.4g} {figure.unit}" if figure.reference else ""
        ratio = f"{figure.ratio:.3f}" if figure.ratio is not None else ""
        limit = figure.limit.text(figure.unit)
        value = f"{figure.value:.4g} {figure.unit}"
        rows.append((figure.name, value, reference, ratio, limit, verdicts[figure.met]))
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    lines.append("")
    for figure in figures:
        beside = f"; reference: {figure.reference.what}" if figure.reference else ""
        lines.append(f"{figure.name}: {figure.what}{beside}")
    return "\n".join(line.rstrip() for line in lines)
