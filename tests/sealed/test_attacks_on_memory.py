"""Attacks on a sealed guest's memory by others of its user, and by its own manager: each fails.

What root could do is not tried: root is trusted (README). The same attacks on an open guest get what they want, so that
it is seen that they are attacks.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

import memvm
from memvm.attest.checkpoint_keys import unwrapped
from memvm.attest.key_files import load_private_to_decrypt
from memvm.checkpoint.encryption import EncryptedHeader
from memvm.errors import MemvmError, SettingRefused
from memvm.linux.secret_memory import Guard, SecretMemory
from memvm.manager.client import connect
from tests.sealed.attacker import ATTACKS
from tests.sealed.conftest import secret
from tests.sealed.lab import SealedLab, ask, guest_of, ready
from tests.support import MemvmCli, descriptors_of, dumps_no_core

NOBODY = 65534


@pytest.fixture
def guest(lab: SealedLab) -> Iterator[memvm.Guest]:
    with lab.launched() as guest:
        yield ready(guest)


def platform_and_guest(guest: memvm.Guest) -> tuple[int, int]:
    """The processes behind a manager."""
    [platform] = psutil.Process(guest.pid).children()
    return platform.pid, guest.status().guest_pid


def attack(*processes: int, user: int) -> dict[str, dict[str, list[object]]]:
    """What the attacker got of each, as that user."""
    others = {"user": user, "group": user, "extra_groups": []} if user != os.geteuid() else {}
    program = Path(__file__).with_name("attacker.py").read_text()  # he may not be able to read it
    result = subprocess.run(
        [sys.executable, "-I", "-c", program, *map(str, processes)],
        check=True,
        capture_output=True,
        text=True,
        cwd="/",
        **others,  # type: ignore[call-overload]
    )
    return dict(json.loads(result.stdout))


def taken(outcome: dict[str, dict[str, list[object]]]) -> list[str]:
    return [f"{name} of {pid}: {got}" for pid, of in outcome.items() for name, (how, got) in of.items() if how == "got"]


def needs_open_processes() -> None:
    """Where Yama keeps users out of each other's processes anyhow, no attack gets anything."""
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    if os.geteuid() != 0 and scope.exists() and int(scope.read_text()):
        pytest.skip("kernel.yama.ptrace_scope keeps others of the same user out of every process here")


def test_attacks_get_an_open_guest(lab: SealedLab) -> None:
    """So that the other tests can fail."""
    needs_open_processes()
    words = [word for word in lab.words if "sealed" not in word and "keeper" not in word]
    with guest_of(lab.environment, "run", *words, "--", *lab.command) as guest:
        ready(guest)
        outcome = attack(guest.pid, user=os.geteuid())
    failed = {name for name, (how, _) in outcome[str(guest.pid)].items() if how == "failed"}
    # That is what it may not, or is not there; all else it gets.
    assert failed <= {"/proc/PID/stack", "/proc/PID/map_files by name", "process_vm_writev", "prlimit core"}


@pytest.fixture(scope="module")
def outcomes(lab: SealedLab) -> dict[str, dict[str, dict[str, list[object]]]]:
    """What attackers of each kind got of a platform and its guest, each attack by its name."""
    with lab.launched() as guest:
        processes = platform_and_guest(ready(guest))
        user = psutil.Process(processes[0]).uids().real
        assert psutil.Process(processes[1]).uids() == psutil.Process(processes[0]).uids()
        found = {"the same user": attack(*processes, user=user)}
        if os.geteuid() == 0:
            assert user not in (0, NOBODY)
            found["another user"] = attack(*processes, user=NOBODY)
        assert ask(guest)
    assert all(of.keys() == ATTACKS.keys() for outcome in found.values() for of in outcome.values())
    return found


ATTACKERS = pytest.mark.parametrize("attacker", ["the same user", "another user"])
Outcomes = Mapping[str, dict[str, dict[str, list[object]]]]


def nothing_taken(outcomes: Outcomes, attacker: str, *names: str) -> None:
    """By attacks whose names begin so."""
    if attacker not in outcomes:
        pytest.skip("only root can be another user")
    of_names = {
        pid: {name: outcome for name, outcome in of.items() if name.startswith(names)}
        for pid, of in outcomes[attacker].items()
    }
    assert all(of_names.values())
    assert not taken(of_names)


@ATTACKERS
def test_attack_29_ptrace_injection(outcomes: Outcomes, attacker: str) -> None:
    """Nobody traces them, so nobody has them make a call of his; nor write into their memory."""
    nothing_taken(outcomes, attacker, "ptrace", "process_vm_writev", "/proc/PID/mem to write")


@ATTACKERS
def test_attack_29_pidfd_getfd(outcomes: Outcomes, attacker: str) -> None:
    """Nor a descriptor of memory by its path, or by the address where it is mapped."""
    nothing_taken(outcomes, attacker, "pidfd_getfd", "kcmp", "/proc/PID/fd", "/proc/PID/map_files")


@ATTACKERS
def test_attack_29_read_by_process_vm_readv(outcomes: Outcomes, attacker: str) -> None:
    nothing_taken(outcomes, attacker, "process_vm_readv", "move_pages", "get_robust_list")


@ATTACKERS
def test_attack_29_read_by_proc(outcomes: Outcomes, attacker: str) -> None:
    nothing_taken(outcomes, attacker, "/proc", "link /proc")


@ATTACKERS
def test_attack_28_key_in_a_core_dump_that_another_one_allows(outcomes: Outcomes, attacker: str) -> None:
    nothing_taken(outcomes, attacker, "prlimit core")


@ATTACKERS
def test_every_attack_on_processes_fails(outcomes: Outcomes, attacker: str) -> None:
    nothing_taken(outcomes, attacker, "")


AS_PARENT = """\
import json, os, sys
from memvm.linux.prctl import inspection
from memvm.sealed.isolation import fork_platform
if os.geteuid() == 0:
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    inspection(allowed=True)  # which who was root does not allow any more

def run(connection):
    secret = os.urandom(64)
    connection.send(b"ready")
    connection.recv(1)

process = fork_platform(run)
assert process.connection.recv(5) == b"ready"
attacker = {"__name__": "attacker"}
exec(sys.argv[1], attacker)
found = {}
for name, attack in attacker["ATTACKS"].items():
    try:
        found[name] = ["got", attack(process.pid)]
    except OSError as error:
        found[name] = ["failed", error.errno]
process.close()
print(json.dumps(found))
"""


def test_attack_29_ptrace_injection_by_the_manager_itself() -> None:
    """The parent, of the same user: whom Yama would let trace its child."""
    program = Path(__file__).with_name("attacker.py").read_text()
    done = subprocess.run([sys.executable, "-c", AS_PARENT, program], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert found.keys() == ATTACKS.keys()
    assert not taken({"platform": found})


def test_attack_29_inherited_descriptor(guest: memvm.Guest) -> None:
    """Manager and platform have the standard streams in common, and nothing else."""
    if os.geteuid() != 0:
        pytest.skip("only root can see what a platform has open")
    platform, inside = platform_and_guest(guest)
    streams = {os.readlink(f"/proc/{guest.pid}/fd/{number}") for number in range(3)}  # noqa: PTH115
    common = opened_by(guest.pid) & opened_by(platform)
    assert common <= streams
    assert opened_by(inside) <= {"anon_inode:[userfaultfd]"}


def opened_by(pid: int) -> set[str]:
    """What can be told apart of a process's descriptors: files, pipes and sockets, and not all timers, say."""
    return {name for _, name in descriptors_of(pid) if not name.startswith("anon_inode") or "userfaultfd" in name}


def test_attack_29_read_by_proc_of_memory_opened_before_it_refused(lab: SealedLab) -> None:
    """Somebody opens the memory of every process that he sees, as soon as it is there, and reads it later."""
    if os.geteuid() == 0:
        pytest.skip("root may open whatever it likes")
    needs_open_processes()
    held: dict[int, int] = {}
    watching = True

    def watch() -> None:
        while watching:
            for pid in map(int, filter(str.isdigit, (path.name for path in Path("/proc").iterdir()))):
                if pid not in held:
                    try:
                        held[pid] = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
                    except OSError:
                        continue

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        with lab.launched() as guest:
            processes = platform_and_guest(ready(guest))
            deadline = time.monotonic() + 30 * lab.cli.time_scale
            while guest.pid not in held:
                assert time.monotonic() < deadline
            watching = False
            thread.join()
            assert not set(processes) & held.keys()
    finally:
        watching = False
        thread.join()
        for fd in held.values():
            os.close(fd)


def memory_of(pid: int) -> Iterator[bytes]:
    """All that a process has mapped and that can be read."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights, *_ = line.split()
            start, end = (int(address, 16) for address in span.split("-"))
            if "r" in rights and "[v" not in line:
                memory.seek(start)
                try:
                    yield memory.read(end - start)
                except OSError:
                    continue  # a mapping behind the end of its file


def test_attack_28_key_in_the_managers_memory_and_the_guests_secret(
    lab: SealedLab, guest: memvm.Guest, runtime_dir: Path, tmp_path: Path
) -> None:
    file = tmp_path / "guest.ckpt"
    ask(guest)
    guest.checkpoint(file)
    ask(guest)
    header = EncryptedHeader.unpack(file.read_bytes())
    key = bytes(unwrapped(header, load_private_to_decrypt(lab.directory / "keeper.pem")).key.view)
    wanted = {"the secret": secret()[:32], "the key of checkpoints": key, "and that in text": key.hex().encode()}
    if os.geteuid() == 0:  # the same search finds what is there
        found = found_in(memory_of(platform_and_guest(guest)[0]), wanted)
        assert "the secret" in found
        with SecretMemory(1) as kept:
            if kept.guard is Guard.SECRET:  # not even root finds the key, nor a copy that was left somewhere
                assert "the key of checkpoints" not in found
    assert not found_in(memory_of(guest.pid), wanted)
    files = [path for folder in (runtime_dir, tmp_path, lab.directory) for path in folder.rglob("*") if path.is_file()]
    assert file in files
    assert not found_in((path.read_bytes() for path in files), wanted)


def found_in(parts: Iterable[bytes], wanted: Mapping[str, bytes]) -> set[str]:
    return {name for part in parts for name, data in wanted.items() if data in part}


def test_attack_28_key_in_a_core_dump_is_forbidden_twice(guest: memvm.Guest) -> None:
    """By the limit of core files, and by the mark that memory may not be dumped, which /proc shows by its owner."""
    for pid in platform_and_guest(guest):
        assert dumps_no_core(pid)
        assert Path(f"/proc/{pid}/environ").stat().st_uid != psutil.Process(pid).uids().real


@pytest.mark.parametrize("whose", ["platform", "guest", "manager"])
def test_attack_28_key_in_a_core_dump(lab: SealedLab, tmp_path: Path, whose: str) -> None:
    """Each is made to crash, where cores would be written: by the others there is none, the manager's has no secret."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    tmp_path.chmod(0o777)
    file = tmp_path / "guest.ckpt"
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    try:
        with lab.launched(cwd=tmp_path) as guest:
            ask(ready(guest))
            guest.checkpoint(file)
            platform, inside = platform_and_guest(guest)
            resource.prlimit(guest.pid, resource.RLIMIT_CORE, (hard, hard))
            victim = {"platform": platform, "guest": inside, "manager": guest.pid}[whose]
            everybody = [psutil.Process(pid) for pid in (guest.pid, platform, inside)]
            os.kill(victim, signal.SIGABRT)
            with suppress(MemvmError):
                guest.wait(30 * lab.cli.time_scale)
            assert have_ended(everybody, 30 * lab.cli.time_scale)
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
    lab.cli("ps", code=0)  # removes what the manager could not
    cores = [path for path in tmp_path.iterdir() if path != file]
    if whose != "manager":
        assert not cores
    elif hard and Path("/proc/sys/kernel/core_pattern").read_text().strip() == "core":
        assert cores  # so that the others mean something
    header = EncryptedHeader.unpack(file.read_bytes())
    key = bytes(unwrapped(header, load_private_to_decrypt(lab.directory / "keeper.pem")).key.view)
    assert not found_in((path.read_bytes() for path in cores), {"the secret": secret()[:32], "the key": key})


def test_attack_28_key_in_a_crash_report(lab: SealedLab, guests: dict[str, Path], memvm_cli: MemvmCli) -> None:
    bad = guests["bad-null"] if "bad-null" in guests else next(path for name, path in guests.items() if "null" in name)
    crashed = memvm_cli("run", "--sealed", "--", bad, env=lab.environment)
    assert crashed.code == 128 + 11
    assert "SIGSEGV" in crashed.err
    assert "rip" not in crashed.err and "0x" not in crashed.err


def test_attack_14_debug_switched_on_after_launch_of_a_sealed_guest(guest: memvm.Guest) -> None:
    with pytest.raises(SettingRefused, match="refused"):
        guest.change_setting("debug", "on")
    assert guest.config().changes == 0


@pytest.mark.parametrize("setting", ["debug=on", "debug=off:record", "observers=on:refuse", "checkpoint=free:refuse"])
def test_a_sealed_guest_cannot_be_launched_with_it(lab: SealedLab, setting: str) -> None:
    refused = lab.cli("run", *lab.words, f"--setting={setting}", "--", *lab.command, env=lab.environment)
    assert refused.code == 64
    assert "a sealed guest cannot have" in refused.err


def test_the_manager_is_told_nothing_of_memory(guest: memvm.Guest) -> None:
    with connect(guest.name) as client:
        for attempt in (
            lambda: client.read_memory(0x400000, 16),
            lambda: client.write_memory(0x400000, b"x"),
            client.registers,
        ):
            with pytest.raises(SettingRefused):
                attempt()
    with pytest.raises(MemvmError):
        list(guest.trace(seconds=0.1))
    assert ask(guest)


def have_ended(processes: list[psutil.Process], timeout: float) -> bool:
    """Wait for that. What nobody has waited for yet has ended, too."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if all(_has_ended(process) for process in processes):
            return True
        time.sleep(0.01)
    return False


def _has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_the_platform_ends_with_its_manager_and_the_guest_with_it(lab: SealedLab) -> None:
    with lab.launched() as guest:
        processes = [psutil.Process(pid) for pid in platform_and_guest(ready(guest))]
        psutil.Process(guest.pid).kill()
        assert have_ended(processes, 30 * lab.cli.time_scale)
    lab.cli("ps", code=0)  # removes what the manager could not


def test_the_manager_tells_when_its_platform_was_killed(lab: SealedLab) -> None:
    with lab.launched() as guest:
        platform, inside = (psutil.Process(pid) for pid in platform_and_guest(ready(guest)))
        platform.kill()
        ending = guest.wait(30 * lab.cli.time_scale)
        assert "its platform ended by signal 9" in ending.reason
        assert ending.code == 69
        assert have_ended([inside], 30 * lab.cli.time_scale)
