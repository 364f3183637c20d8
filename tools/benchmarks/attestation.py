"""What attestation costs: measuring beside SHA-384 over the same bytes, how late guests are, appraisals a second."""

from __future__ import annotations

import base64
import json
import math
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha384
from pathlib import Path
from statistics import median

from memvm.attest.platform import load_device, make_platform
from memvm.attest.tokens import TokenFormat
from memvm.attest.verifier import Session
from memvm.machine.layout import RAM_BASE
from memvm.machine.measurement import measure as measure_ram
from memvm.machine.space import AddressSpace, Region, RegionKind
from memvm.memory.protection import Prot
from memvm.memory.ram import GuestRam
from memvm.units import MIB
from tests.attest.samples import Lab, evidence_for
from tools.benchmarks.figures import Figure, Limit, Reference
from tools.benchmarks.guest_process import GuestProcess, most_late
from tools.benchmarks.setting import BenchmarkError, Setting, environment, in_turn, memvm_command

IMAGE = 64 * MIB
ATTESTED = 16 * MIB
"""The RAM of the guests that are attested."""
APPRAISALS = 400
SERVED = 200
GUESTS, ROUNDS = 3, 10
"""Of each run."""
_SHARE = 0.9
PERIOD_MS = 2
_APPRAISALS_NEEDED = 200
_MEASURING_AT_MOST = 1.1
_STOP_MS = 5.0


def measure(setting: Setting) -> list[Figure]:
    """Medians over the runs; of the stop, the worst of all."""
    measured, hashed, rates, served = [], [], [], []
    for run in range(setting.runs):
        ours, theirs = _measuring(in_turn(run, "measure", "hash"))
        measured.append(ours)
        hashed.append(theirs)
        directory = setting.directory / f"lab-{run}"
        rates.append(_appraisals(directory))
        served.append(_served(setting.directory / f"served-{run}"))
    first, later, quiet = _stopping(setting)
    guest = f"{ATTESTED // MIB} MiB"
    return [
        Figure(
            "attestation.measuring",
            f"the launch digest of {IMAGE // MIB} MiB that are loaded",
            median(measured),
            "ms",
            Reference(median(hashed), "SHA-384 over the same bytes, in one call"),
            Limit(ratio_at_most=_MEASURING_AT_MOST),
            tuple(measured),
        ),
        Figure(
            "attestation.appraisals",
            f"evidence of guests of {guest} appraised and tokens issued, by one thread",
            median(rates),
            "1/s",
            None,
            Limit(value_at_least=_APPRAISALS_NEEDED),
            tuple(rates),
        ),
        Figure(
            "attestation.served",
            "the same by a verifier's process on one core, over HTTP: session, evidence and token",
            median(served),
            "1/s",
            None,
            Limit(value_at_least=_APPRAISALS_NEEDED),
            tuple(served),
        ),
        Figure(
            "attestation.stop",
            f"by how much a guest of {guest} is late while it is attested, at most in {_SHARE:.0%} of the rounds: the "
            f"latest of its lines, which are due each {PERIOD_MS} ms, by its own clock",
            _most_of(later),
            "ms",
            Reference(_most_of(quiet), "the same in as long a time while nothing is done to it"),
            Limit(value_at_most=_STOP_MS),
            tuple(later),
        ),
        Figure(
            "attestation.first",
            "the same in a guest's first round, for which its manager loads the cryptography; the median",
            median(first),
            "ms",
            None,
            Limit(value_at_most=_STOP_MS),
            tuple(first),
        ),
    ]


def _most_of(values: Sequence[float]) -> float:
    """What most of them do not exceed: the very worst is what the machine did meanwhile, also to idle guests."""
    return sorted(values)[math.ceil(_SHARE * len(values)) - 1]


def _measuring(order: Sequence[str]) -> tuple[float, float]:
    """Milliseconds for the launch digest, and for SHA-384 alone, in the order that is given."""
    with _loaded(IMAGE) as (ram, space):
        took = {}
        for what in order:
            began = time.perf_counter()
            if what == "measure":
                measure_ram(ram, space, {})
            else:
                view = ram.readable(RAM_BASE, IMAGE)
                sha384(view).digest()
                view.release()
            took[what] = (time.perf_counter() - began) * 1000
        return took["measure"], took["hash"]


@contextmanager
def _loaded(size: int) -> Iterator[tuple[GuestRam, AddressSpace]]:
    """Guest RAM that is full of a program."""
    ram = GuestRam(RAM_BASE, size)
    try:
        space = AddressSpace(ram, lambda address, size, protection: None)
        space.map(Region(RAM_BASE, RAM_BASE + size, Prot.READ, RegionKind.IMAGE))
        for start in range(0, size, MIB):
            ram.write(RAM_BASE + start, os.urandom(MIB))
        yield ram, space
    finally:
        ram.close()


def _launch_digest() -> bytes:
    with _loaded(ATTESTED) as (ram, space):
        return measure_ram(ram, space, {}).digest


def _appraisals(directory: Path) -> float:
    """Appraisals a second, sessions and signing of evidence not counted."""
    directory.mkdir()
    lab, launch = Lab(directory, time.time), _launch_digest()
    sessions = [lab.verifier.new_session("broker") for _ in range(APPRAISALS)]
    messages = [lab.message(session, launch=launch) for session in sessions]
    began = time.perf_counter()
    for session, message in zip(sessions, messages, strict=True):
        lab.verifier.answer(session.id, message)
    seconds = time.perf_counter() - began
    lab.verifier.close()
    return APPRAISALS / seconds


def _served(directory: Path) -> float:
    """Whole exchanges a second. The verifier has one core, and whoever asks has another."""
    directory.mkdir()
    make_platform(directory / "platform", "bench")
    device, launch = load_device(directory / "platform"), _launch_digest()
    core = max(os.sched_getaffinity(0))
    with _verifier(directory, directory / "platform" / "root.pem", ("taskset", "-c", str(core))) as url:
        began = time.perf_counter()
        for _ in range(SERVED):
            with urllib.request.urlopen(f"{url}/challenge-response/v1/newSession", b"") as response:
                answer, location = json.load(response), response.headers["Location"]
            session = Session("", base64.b64decode(answer["nonce"]), answer["audience"], TokenFormat.IETF, 0.0)
            message = evidence_for(session, launch=launch).sign(device)
            with urllib.request.urlopen(url + location, message) as response:
                json.load(response)
        return SERVED / (time.perf_counter() - began)


def _stopping(setting: Setting) -> tuple[list[float], list[float], list[float]]:
    """By how many milliseconds guests were late in their first round, in each later one, and between rounds."""
    platform = setting.directory / "platform"
    make_platform(platform, "bench")
    os.environ["MEMVM_PLATFORM_DIR"] = str(platform)
    first: list[float] = []
    later: list[float] = []
    quiet: list[float] = []
    try:
        for run in range(GUESTS * setting.runs):
            folder = setting.directory / f"stopping-{run}"
            folder.mkdir()
            name = f"bench-attested-{run}"
            words = ["--ram", f"{ATTESTED // MIB + 16}M", "--", setting.guest("ticker")]
            words += [str(ATTESTED // MIB), "1", str(PERIOD_MS), "0"]
            with _verifier(folder, platform / "root.pem") as url, GuestProcess(name, "run", words) as guest:
                guest.wait_for_lines(200)
                for number in range(ROUNDS):
                    begin = len(guest.lines) - 1
                    with guest.client() as client:
                        client.attest(url, "", "ietf", "")
                    end = len(guest.lines) + 2
                    guest.wait_for_lines(2 * end - begin)
                    lines = guest.lines
                    (later if number else first).append(most_late(lines[begin:end]) * 1000)
                    quiet.append(most_late(lines[end : 2 * end - begin]) * 1000)
    finally:
        del os.environ["MEMVM_PLATFORM_DIR"]
    return first, later, quiet


@contextmanager
def _verifier(directory: Path, root: Path, before: Sequence[str] = ()) -> Iterator[str]:
    """A verifier in a process of its own; its URL."""
    policy = directory / "policy.toml"
    policy.write_text(f'[verifier]\nroots = ["{root}"]\n')
    words = [*before, *memvm_command(), "verifier", "serve", "--json", "--policy", str(policy)]
    words += ["--state", str(directory / "state"), "--port", "0"]
    with (directory / "verifier.log").open("wb") as log:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log, env=environment())
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise BenchmarkError(f"the verifier does not run: {(directory / 'verifier.log').read_text()}")
        yield str(json.loads(line)["url"])
    finally:
        process.terminate()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
