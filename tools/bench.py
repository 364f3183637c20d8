#!/usr/bin/env python3
"""Measures what memvm has to reach, each figure beside a reference from the same run.

    tools/bench [--json] [--runs N] [--dir DIR] [--list] [FIGURE ...]

Without FIGURE all are measured, in under three minutes on an idle machine; anything else that runs makes them
worse. The exit status is 0 if every limit is met, 1 if one is missed, 2 if something could not be measured.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # "tools" is a package of the checkout, also when this file is run as a script

from tools.benchmarks import (  # noqa: E402
    attestation,
    clones,
    disk,
    fault,
    freeze,
    hypercall,
    incremental,
    launch,
    lazy,
    memory,
    programs,
    restoring,
    saving,
    sealing,
    startup,
    throughput,
)
from tools.benchmarks.figures import Figure, json_text, table_text  # noqa: E402
from tools.benchmarks.setting import BenchmarkError, Setting  # noqa: E402

BENCHMARKS: dict[str, Callable[[Setting], list[Figure]]] = {
    "fault": fault.measure,
    "freeze": freeze.measure,
    "throughput": throughput.measure,
    "lazy": lazy.measure,
    "startup": startup.measure,
    "memory": memory.measure,
    "clones": clones.measure,
    "save": saving.measure,
    "incremental": incremental.measure,
    "restore": restoring.measure,
    "hypercall": hypercall.measure,
    "run": launch.measure,
    "programs": programs.measure,
    "attestation": attestation.measure,
    "disk": disk.measure,
    "sealed": sealing.measure,
}
DEFAULT_RUNS = 3


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    parser = _parser()
    options = parser.parse_args(arguments)
    # "freeze.late" is one figure of the benchmark "freeze"; they are measured together.
    wanted = dict.fromkeys(name.partition(".")[0] for name in options.figures or BENCHMARKS)
    if unknown := [name for name in wanted if name not in BENCHMARKS]:
        parser.error(f"there is no figure {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    if options.list:
        for name, measure in BENCHMARKS.items():
            summary = (sys.modules[measure.__module__].__doc__ or "").splitlines()[0]
            print(f"{name:12}{summary}")
        return 0
    options.dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="bench-") as directory:
        os.environ["MEMVM_RUNTIME_DIR"] = f"{directory}/run"  # our guests' names are nobody else's
        setting = Setting(runs=options.runs, directory=Path(directory))
        figures: list[Figure] = []
        failed = False
        for name in wanted:
            print(f"measuring {name} ...", file=sys.stderr, flush=True)
            try:
                figures += BENCHMARKS[name](setting)
            except BenchmarkError as error:
                print(f"bench: {name}: {error}", file=sys.stderr)
                failed = True
    print(json_text(figures) if options.json else table_text(figures))
    if failed:
        return 2
    return 1 if any(figure.met is False for figure in figures) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tools/bench", description="Measures what memvm has to reach.")
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"one of {', '.join(BENCHMARKS)}; all if none")
    parser.add_argument("--json", action="store_true", help="one object instead of a table")
    parser.add_argument("--list", action="store_true", help="say which figures there are")
    parser.add_argument(
        "--runs",
        type=_count,
        default=DEFAULT_RUNS,
        metavar="N",
        help=f"how often each is measured ({DEFAULT_RUNS})",
    )
    parser.add_argument("--dir", type=Path, default=ROOT / "build", help="where files go, on a real disk (build/)")
    return parser


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise ValueError
    return count


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
