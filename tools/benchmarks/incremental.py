"""An incremental checkpoint beside a full one: a guest with 1 GiB touched, of which one page in a hundred changed.

The pages lie scattered over all of its memory. The guest is paused while this benchmark changes them; it changes
a few others itself.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

from memvm.checkpoint.chain import Chain
from memvm.manager.client import Client
from memvm.units import MIB, PAGE_SIZE
from tools.benchmarks.figures import Figure, Limit, Reference
from tools.benchmarks.guest_process import GuestProcess
from tools.benchmarks.setting import BenchmarkError, Setting, warm_memory

BYTES, TIME = Limit(ratio_at_most=0.03), Limit(ratio_at_most=0.1)
FROZEN = Limit(value_at_most=20)
_RAM_MIB = 1536
_GUEST = ("ticker", "1366", "1", "20", "0")
"""A quarter of its memory stays untouched, and it looks at the last megabyte alone."""
_CHANGED = 0.01
_HOT_PAGES = 512
"""The last ones, which the guest checks, and the stack."""


def measure(setting: Setting) -> list[Figure]:
    """Live and stopped saves."""
    return [figure for live in (True, False) for figure in _figures(setting, live)]


def _figures(setting: Setting, live: bool) -> list[Figure]:
    kind = "live" if live else "stopped"
    pairs = [_save_twice(setting, live) for _ in range(setting.runs)]
    full, top = min(pairs, key=lambda pair: float(pair[1]["seconds"]))
    figures = [
        Figure(
            f"incremental.bytes.{kind}",
            f"bytes of a {kind} checkpoint on top of another",
            top["bytes_file"],
            "bytes",
            Reference(full["bytes_file"], "a full one"),
            BYTES,
            tuple(each["bytes_file"] for _, each in pairs),
        ),
        Figure(
            f"incremental.time.{kind}",
            f"a {kind} checkpoint on top of another",
            top["seconds"] * 1e3,
            "ms",
            Reference(full["seconds"] * 1e3, "a full one"),
            TIME,
            tuple(each["seconds"] * 1e3 for _, each in pairs),
        ),
    ]
    if live:
        frozen = tuple(each["frozen_seconds"] * 1e3 for _, each in pairs)
        what = "the guest stands still for a live one"
        figures.append(Figure("incremental.frozen", what, max(frozen), "ms", limit=FROZEN, samples=frozen))
    return figures


def _save_twice(setting: Setting, live: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """The reports of a full save, and of one on top of it."""
    warm_memory((_RAM_MIB + 128) * MIB)
    words = ["--ram", f"{_RAM_MIB}M", "--", setting.guest(_GUEST[0]), *_GUEST[1:]]
    first, second = setting.directory / "first.ckpt", setting.directory / "second.ckpt"
    with GuestProcess("bench-incremental", "run", words) as process:
        process.wait_for_lines(3)
        with process.client() as client:
            full = client.checkpoint(first, live=live)
            _change(client, first)
            top = client.checkpoint(second, live=live, parent=first)
    for path in (first, second):
        path.unlink()
    if top["changes_known"] != "noted":
        raise BenchmarkError("this kernel notes no writes: contents would be compared")
    return full, top


def _change(client: Client, path: Path) -> None:
    """Write to a hundredth of the pages that a checkpoint has."""
    with Chain.open(path) as chain:
        base = chain.header.ram_base
        pages = [page for run in chain.index.united_runs() for page in range(run.first, run.end)]
    client.pause()
    for page in random.Random(1).sample(pages[:-_HOT_PAGES], int(len(pages) * _CHANGED)):
        client.write_memory(base + page * PAGE_SIZE, os.urandom(8))
    client.resume()
