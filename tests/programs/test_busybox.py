"""Debian's busybox-static, applet by applet, on megabytes of input."""

from __future__ import annotations

import hashlib
import subprocess
import time
from pathlib import Path

import pytest

from tests.checkpoint.lives import SCALE
from tests.programs.interrupted import MANNERS, Job, Manner, dealt, finish_after_save, seeded_moments
from tests.support import MemvmCli

AWK = "{ for (i = 2; i <= NF; i++) n[$i]++; s += $1 } END { for (w in n) if (n[w] > 900) print w, n[w]; print s }"
APPLETS: dict[str, tuple[list[str], str]] = {
    "sort": (["sort"], "text"),
    "sort by number, backwards": (["sort", "-n", "-r"], "text"),
    "sort by a field, unique": (["sort", "-u", "-k", "2,2"], "text"),
    "uniq": (["uniq", "-c"], "sorted"),
    "sha256sum": (["sha256sum"], "noise"),
    "sha512sum": (["sha512sum"], "noise"),
    "md5sum": (["md5sum"], "noise"),
    "sha1sum": (["sha1sum"], "large"),
    "uuencode": (["uuencode", "text"], "text"),
    "wc": (["wc"], "large"),
    "awk": (["awk", AWK], "text"),
    "gzip": (["gzip", "-c", "-n"], "large"),
    "gunzip": (["gunzip", "-c"], "packed"),
    "bzip2": (["bzip2", "-c"], "text"),
    "bc pi": (["bc", "-l"], "pi"),
    "bc factorials": (["bc"], "factorials"),
    "sed": (["sed", "-e", "s/ka/KA/g", "-e", "/tri/d"], "text"),
    "grep": (["grep", "-c", "sol.*ber"], "large"),
    "tr": (["tr", "a-z", "A-Z"], "large"),
    "cut": (["cut", "-d", " ", "-f", "2-3"], "large"),
    "base64": (["base64"], "large"),
    "od": (["od", "-A", "x", "-t", "x1"], "text"),
    "hexdump": (["hexdump", "-C"], "text"),
    "rev": (["rev"], "text"),
    "tac": (["tac"], "text"),
    "fold": (["fold", "-w", "20"], "text"),
    "nl": (["nl"], "text"),
    "expand": (["expand"], "text"),
    "head": (["head", "-n", "1000"], "text"),
    "tail": (["tail", "-n", "1000"], "large"),
    "strings": (["strings", "-n", "8"], "noise"),
    "factor": (["factor", "1000000007", "600851475143", "18446744073709551557"], "empty"),
    "seq": (["seq", "1", "7", "300000"], "empty"),
    "cat": (["cat"], "noise"),
    "dd": (["dd", "bs=64k", "status=none"], "noise"),
    "tee": (["tee"], "text"),
    "printf": (["printf", "%05d %s\\n", "42", "guest"], "empty"),
    "expr": (["expr", "6", "*", "7"], "empty"),
    "echo": (["echo", "one", "two"], "empty"),
    "unexpand": (["unexpand"], "text"),
}
"""Name: the applet with its arguments, and the input that it gets."""
SAVED_IN_THE_MIDDLE = ["sort", "sha256sum", "awk", "gzip", "gunzip", "bzip2", "bc pi", "sed", "od", "cat"]


def _job(name: str, busybox: Path, inputs: dict[str, Path]) -> Job:
    arguments, stdin = APPLETS[name]
    return Job((str(busybox), *arguments), inputs[stdin])


@pytest.mark.parametrize("name", APPLETS)
def test_output_is_that_of_the_native_run(
    name: str, busybox: Path, inputs: dict[str, Path], memvm_cli: MemvmCli
) -> None:
    job = _job(name, busybox, inputs)
    with job.stdin.open("rb") as given:
        result = memvm_cli("run", "--strict", "--ram", job.ram, "--", *job.argv, stdin=given)
    assert result.err == ""
    assert result.code == 0
    assert result.out == job.native()


@pytest.mark.parametrize("name", SAVED_IN_THE_MIDDLE)
def test_saved_in_the_middle_and_restored(
    name: str, busybox: Path, inputs: dict[str, Path], tmp_path: Path, memvm_cli: MemvmCli
) -> None:
    job = _job(name, busybox, inputs)
    expected = job.native()
    began = time.monotonic()
    with job.stdin.open("rb") as given:
        memvm_cli("run", "--ram", job.ram, "--", *job.argv, stdin=given, code=0)
    whole = time.monotonic() - began
    # Each applet goes through three of the manners; together they go through each save, policy and engine many times.
    manners = dealt(3 * SAVED_IN_THE_MIDDLE.index(name), 3)
    for manner, moment in zip(manners, seeded_moments(name, whole / 2, 3), strict=True):
        assert finish_after_save(job, moment, manner, tmp_path) == expected, f"{name}, saved {manner}, {moment}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "manner"),
    [
        pytest.param(("sort", "gzip", "bc pi")[number % 3], manner, id=str(manner))
        for number, manner in enumerate(MANNERS)
    ],
)
def test_saved_in_every_manner(
    name: str, manner: Manner, busybox: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    job = _job(name, busybox, inputs)
    [moment] = seeded_moments(f"{name} {manner}", 0.4, 1)
    assert finish_after_save(job, moment, manner, tmp_path) == job.native()


def test_stands_in_a_pipeline(busybox: Path, inputs: dict[str, Path], memvm_cli: MemvmCli) -> None:
    with (
        inputs["text"].open("rb") as given,
        memvm_cli.start("run", "--", busybox, "sort", stdin=given) as first,
    ):
        assert first.stdout is not None
        result = memvm_cli("run", "--", busybox, "sha256sum", stdin=first.stdout, code=0)
        assert first.wait(60 * SCALE) == 0
    native = subprocess.run([busybox, "sort", inputs["text"]], stdout=subprocess.PIPE, check=True, env={}).stdout
    assert result.text.split()[0] == hashlib.sha256(native).hexdigest()
