"""What is known of a guest's memory since its last checkpoint: which file that is, and a watch on what changed."""

from __future__ import annotations

from typing import NamedTuple

from memvm.memory.dirty import DirtyWatch


class Baseline(NamedTuple):
    """A checkpoint of the guest, saved or restored in this life."""

    checkpoint_id: bytes
    commit_sha256: bytes
    """The digest that pins the file's contents, of its commit record."""
    watch: DirtyWatch
    """Tells what may have changed since the file's instant, and costs the guest next to nothing."""
