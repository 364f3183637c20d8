"""Which pages are active: those that the guest was seen to use while it was saved.

They are the estimate of what it needs first when it comes back. The file lists them in the order of first access; files
of version 1 have numbers of chunks instead, in the state section.
"""

from __future__ import annotations

import json
from itertools import pairwise

from memvm.checkpoint.chain import Chain
from memvm.checkpoint.sections import WRITTEN, ActiveNotes, ActivePages
from memvm.errors import CheckpointError

_KEY = "active_chunks"


def active_pages(chain: Chain) -> ActivePages:
    """The active pages in the order of first access; of files of version 1, those of the active chunks.

    Raises CheckpointError.
    """
    if chain.files[0].header.version > 1:
        return chain.active
    notes = ActiveNotes()
    for chunks in _noted_in_state(chain):
        for chunk in chunks:
            notes.note_runs(chain.index.runs_of(chunk), WRITTEN)
    return notes.pages()


def _noted_in_state(chain: Chain) -> list[range]:
    try:
        extents = json.loads(chain.state).get(_KEY, [])
        ranges = [range(first, first + count) for first, count in extents]
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _senseless(chain) from error
    if any(not 0 <= chunks.start < chunks.stop <= chain.index.chunk_count for chunks in ranges):
        raise _senseless(chain)
    if any(one.stop > other.start for one, other in pairwise(ranges)):
        raise _senseless(chain)
    return ranges


def _senseless(chain: Chain) -> CheckpointError:
    return CheckpointError(
        f"{chain.path}: its list of active chunks makes no sense",
        hint="take another copy of the file, or another checkpoint",
    )
