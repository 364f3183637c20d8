"""Before a process is forked many times: have the new ones share as much of its memory as can be.

A page is shared until somebody writes to it, and CPython writes nearly everywhere. What a forked process does not need
to write is seen to here, each in its way:

- The collector marks all objects that it looks at. Those that are there are frozen (gc.freeze): it leaves them alone.
- A new object takes the place of one that was freed, on a page between others. These places are used up, so that what
  a process makes for itself lies together, on pages of its own.
- A function that runs for the first time is changed by it: its instructions are specialized (PEP 659), attributes that
  it looks up are noted in caches. So what all the processes will do is done beforehand, a few times: the rehearsal.
- A function that runs counts references in its code object. Those of the functions that the rehearsal ran are copied,
  so that they lie together, and not one on each page between the code of others.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable
from types import CodeType, FrameType, FunctionType

from memvm.linux.libc import use_up_free_memory

_REHEARSALS = 8
"""After so many calls CPython specializes a function."""
_POOL_SIZE = 1 << 14
_POOL_HEADER = 48
_GRAIN = 16
_LARGEST = 512
"""How CPython's allocator lays out small objects (Objects/obmalloc.c): in pools, each for one size."""
_NEARLY_ALL = 0.9
_MOST_FILLED = 1 << 20
"""Bytes for each size, at which an interpreter with another allocator stops, too."""
_BYTES_OVERHEAD = sys.getsizeof(b"")

_filling: list[object] = []
"""What the free places were used up with; nobody looks at it again."""


def settle_for_forking(rehearse: Callable[[], None]) -> None:
    """Prepare this process, which has one thread; `rehearse` does, and undoes, what the forked ones will do.

    Raises what that raises.
    """
    _copy_together(_code_that_runs_in(rehearse))
    for _ in range(_REHEARSALS):
        rehearse()
    _use_up_free_memory()
    gc.freeze()


def _code_that_runs_in(work: Callable[[], None]) -> set[CodeType]:
    """The code of all Python functions that are called meanwhile, in this thread and in those that it starts."""
    found: set[CodeType] = set()

    def note(frame: FrameType, _event: str, _argument: object) -> None:
        found.add(frame.f_code)

    before, before_of_threads = sys.getprofile(), threading.getprofile()
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
        threading.setprofile(before_of_threads)
    return found


def _copy_together(code: set[CodeType]) -> None:
    """Give the functions that have this code copies of it, which lie side by side.

    Nobody else shall keep the code: it is to be freed before free places are used up for the last time.
    """
    _use_up_free_memory()
    for function in gc.get_objects():
        if type(function) is FunctionType and function.__code__ in code:
            function.__code__ = function.__code__.replace()


def _use_up_free_memory() -> None:
    gc.collect()  # it empties the interpreter's own lists of freed objects, too
    _use_up_free_places()
    use_up_free_memory()


def _use_up_free_places() -> None:
    """Make objects of each size of the allocator's, until they come from a pool that was empty."""
    for size in range(_GRAIN, _LARGEST + 1, _GRAIN):
        made: list[object] = []
        pool = run = 0
        whole = (_POOL_SIZE - _POOL_HEADER) // size * _NEARLY_ALL
        while run < whole and len(made) * size < _MOST_FILLED:
            made.append(_object_of(size))
            if (place := id(made[-1]) // _POOL_SIZE) != pool:
                pool, run = place, 0
            run += 1
        del made[-run:]
        _filling.append(made)


def _object_of(size: int) -> object:
    """A new object of so many bytes, and of no interest to the collector."""
    if size < _BYTES_OVERHEAD:
        return object() if size == _GRAIN else len(_filling) + (1 << 20)
    return bytes(size - _BYTES_OVERHEAD)
