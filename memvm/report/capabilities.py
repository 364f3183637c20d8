"""What this machine can do, and what to do about what it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from memvm.report.table import table

if TYPE_CHECKING:
    from memvm.machine.probe import Capability


def capabilities_text(capabilities: Sequence[Capability]) -> str:
    """A line for each capability, then an advice for each that is missing."""
    rows = [(c.name, "yes" if c.available else "no", c.detail) for c in capabilities]
    missing = [f"{c.name}:\n  try: {c.advice}" for c in capabilities if not c.available and c.advice]
    return "\n\n".join([table(("CAPABILITY", "HERE", "DETAIL"), rows), *missing])
