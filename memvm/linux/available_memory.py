"""How much memory there is left: /proc/meminfo (proc(5)), and the limits of control groups (cgroup v2, memory.max)."""

from __future__ import annotations

from pathlib import Path

_PROC, _GROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def available_share(proc: Path = _PROC, groups: Path = _GROUPS) -> float:
    """The share of memory that is available, from 0 to 1: of the machine's, or of what a control group may have.

    The smallest of them. Page cache counts as used in a group, though the kernel would give it up.
    """
    limited = [share for group in _own_groups(proc, groups) if (share := _of_group(group)) is not None]
    return min([_of_machine(proc), *limited])


def _of_machine(proc: Path) -> float:
    amounts = dict[str, int]()
    for line in (proc / "meminfo").read_text().splitlines():
        name, _, amount = line.partition(":")
        if name in ("MemTotal", "MemAvailable"):
            amounts[name] = int(amount.split()[0])
    return amounts["MemAvailable"] / amounts["MemTotal"]


def _own_groups(proc: Path, groups: Path) -> list[Path]:
    """The directories of the groups that this process is in, the innermost first."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:  # a kernel without groups
        return []
    own = next((line[4:] for line in lines if line.startswith("0::/")), "")
    inner = groups / own
    return [inner, *(parent for parent in inner.parents if parent.is_relative_to(groups))]


def _of_group(group: Path) -> float | None:
    """What a group has left of what it may have; None if it has no limit, or is not to be seen here."""
    try:
        most = (group / "memory.max").read_text().strip()
        if most == "max":
            return None
        return max(0.0, 1 - int((group / "memory.current").read_text()) / max(1, int(most)))
    except OSError:
        return None
