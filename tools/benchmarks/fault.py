"""How long a guest waits for a missing page: answered by the manager, and by the same loop in C.

Both sides are a guest process and a process that answers, on one CPU; 4 KiB pages with contents of their own, touched
one after the other, timed in the guest by the time-stamp counter. The manager's side is its production path: the
pager's loop, page metadata, DeferredPages, one-page chunks that are in memory already.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from statistics import median

from tools.benchmarks.figures import Figure, Limit, Reference
from tools.benchmarks.setting import ROOT, BenchmarkError, Setting, environment, in_turn, warm_memory

PAGES = 10_000
LIMIT = Limit(ratio_at_most=1.4)
_FIGURES = re.compile(r"p50 (\d+) p90 (\d+) p99 (\d+) ns")


def measure(setting: Setting) -> list[Figure]:
    """Medians over the runs of each run's percentiles."""
    program = setting.compile("fault_reference")
    ours: list[tuple[float, ...]] = []
    theirs: list[tuple[float, ...]] = []
    cpu = _usual_cpu()
    for run in range(setting.runs):
        for side in in_turn(run, "memvm", "reference"):
            warm_memory(4 * PAGES * 4096)
            if side == "memvm":
                result, cpu = _manager(setting)
                ours.append(result)
            else:
                theirs.append(_percentiles(_output([program, str(PAGES), str(cpu)])))
    figures = []
    for index, (name, what) in enumerate(
        [("fault", "median"), ("fault.p90", "90th percentile"), ("fault.p99", "99th percentile")]
    ):
        samples = tuple(result[index] for result in ours)
        reference = median(result[index] for result in theirs)
        figures.append(
            Figure(
                name=name,
                what=f"{what} of the time a guest waits for a missing page, guest and manager on one CPU",
                value=median(samples),
                unit="µs",
                reference=Reference(reference, "a loop in C: read(userfaultfd), UFFDIO_COPY"),
                limit=LIMIT if index == 0 else Limit(),
                samples=samples,
            )
        )
    return figures


def _usual_cpu() -> int:
    return min(os.sched_getaffinity(0))


def _manager(setting: Setting) -> tuple[tuple[float, ...], int]:
    """The percentiles in µs, and the CPU that the manager chose."""
    ours, child = os.pipe()
    child_reads, tell = os.pipe()
    words = [sys.executable, "-m", "tools.benchmarks.fault_manager", setting.guest("faultbench"), str(PAGES)]
    process = subprocess.Popen(
        [*words, str(child_reads), str(child)],
        cwd=ROOT,
        env=environment(),
        pass_fds=(child, child_reads),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    os.close(child)
    os.close(child_reads)
    try:
        assert process.stdin is not None and process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise BenchmarkError("the guest of the fault benchmark did not get ready")
        os.write(tell, b"\n")
        with open(ours, encoding="ascii") as answer:
            chosen = json.loads(answer.read())
        output, _ = process.communicate("go\n", timeout=60)
    finally:
        os.close(tell)
        if process.poll() is None:
            process.kill()
        process.wait()
    if process.returncode != 0:
        raise BenchmarkError(f"the guest of the fault benchmark ended with status {process.returncode}")
    return _percentiles(output), chosen["cpu"] if chosen["cpu"] is not None else _usual_cpu()


def _output(words: list[str]) -> str:
    result = subprocess.run(words, check=False, capture_output=True, text=True)
    if result.returncode != 0:
        raise BenchmarkError(f"{words[0]}: {result.stderr or result.stdout}")
    return result.stdout


def _percentiles(output: str) -> tuple[float, ...]:
    match = _FIGURES.search(output)
    if match is None:
        raise BenchmarkError(f"no percentiles in {output!r}")
    return tuple(int(text) / 1000 for text in match.groups())
