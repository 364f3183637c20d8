"""The C library's heap."""

from __future__ import annotations

import subprocess
import sys

import pytest

from memvm.linux.libc import libc

_HEAP = """
from memvm.linux.libc import use_up_free_memory

def above():
    return sum(id(block) > highest for block in [bytes(2000) for _ in range(100)])

kept = [bytes(2000) for _ in range(10_000)]
highest = max(map(id, kept))
del kept[::10]
before = above()
use_up_free_memory()
print(before, above())
"""


@pytest.mark.skipif(not hasattr(libc, "mallinfo2"), reason="this C library tells nothing of its heap")
def test_what_was_freed_is_used_up() -> None:
    output = subprocess.run([sys.executable, "-c", _HEAP], check=True, capture_output=True, text=True).stdout
    before, after = map(int, output.split())
    assert before < 10
    assert after > 90
