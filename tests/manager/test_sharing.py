"""What a process does before it is forked many times, so that its children write to few of its pages."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

_OBJECTS = """
import json
from memvm.manager.sharing import settle_for_forking

def pools():
    return len({id(thing) >> 14 for thing in [bytes(60) for _ in range(100)]})

kept = [bytes(60) for _ in range(100_000)]
del kept[::50]
before = pools()
settle_for_forking(lambda: None)
print(json.dumps([before, pools()]))
"""

_CODE = """
import json, sys
from memvm.manager.sharing import settle_for_forking

made = {}
exec("".join(f"def f{n}(value): return [value + {n} for _ in range(3)]\\n" for n in range(5000)), made)
used = [made[f"f{n}"] for n in range(0, 5000, 100)]
rehearsals = []

def rehearse():
    rehearsals.append([function(1) for function in used])

def pages():
    return len({id(function.__code__) >> 12 for function in used})

before = pages()
unused = made["f1"].__code__
settle_for_forking(rehearse)
assert made["f1"].__code__ is unused
assert [function(1) for function in used] == rehearsals[0] == rehearsals[-1]
assert sys.getprofile() is None
print(json.dumps([before, pages()]))
"""


def run(program: str) -> Any:
    """What a program prints, run in a process of its own: its memory is what is looked at."""
    return json.loads(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout)


def test_new_objects_do_not_lie_between_old_ones() -> None:
    before, after = run(_OBJECTS)
    assert before > 10
    assert after <= 2


def test_code_that_the_rehearsal_ran_lies_together() -> None:
    before, after = run(_CODE)
    assert before > 40
    assert after <= 10
