"""What is left of memory, as made-up files of the kernel's tell it."""

from __future__ import annotations

from pathlib import Path

import pytest

from memvm.linux.available_memory import available_share


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """A machine of 1000 kB, 400 of them available, with this process in the group /a/b."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(
        "MemTotal:  1000 kB\nMemFree:  100 kB\nMemAvailable:  400 kB\nHugePages: 0\n"
    )
    (tmp_path / "proc/self/cgroup").write_text("1:name=systemd:/x\n0::/a/b\n")
    (tmp_path / "groups/a/b").mkdir(parents=True)
    (tmp_path / "groups/a/b/memory.max").write_text("max\n")
    return tmp_path


def _share(kernel: Path) -> float:
    return available_share(kernel / "proc", kernel / "groups")


def test_without_limits_it_is_the_machines(kernel: Path) -> None:
    assert _share(kernel) == pytest.approx(0.4)


@pytest.mark.parametrize(("most", "now", "share"), [(1000, 700, 0.3), (1000, 100, 0.4), (1000, 1200, 0), (0, 0, 0.4)])
@pytest.mark.parametrize("group", ["a/b", "a", "."])
def test_the_narrowest_group_counts(kernel: Path, group: str, most: int, now: int, share: float) -> None:
    (kernel / "groups" / group / "memory.max").write_text(f"{most}\n")
    (kernel / "groups" / group / "memory.current").write_text(f"{now}\n")
    assert _share(kernel) == pytest.approx(share)


def test_groups_that_are_not_to_be_seen_do_not_count(kernel: Path) -> None:
    (kernel / "proc/self/cgroup").write_text("0::/../elsewhere\n")
    assert _share(kernel) == pytest.approx(0.4)
    (kernel / "proc/self/cgroup").unlink()
    assert _share(kernel) == pytest.approx(0.4)


def test_this_machine_tells() -> None:
    assert 0 <= available_share() <= 1
