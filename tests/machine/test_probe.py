"""The probe finds what is there, and survives, with a word of advice, whatever is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from memvm.linux.secret_memory import Guard, SecretMemory
from memvm.machine import probe as probe_module
from memvm.machine import surveys
from memvm.machine.probe import Capability, probe
from memvm.machine.surveys import runtime_directory

# arch/x86/entry/syscalls/syscall_64.tbl
SYSCALLS = {
    "ptrace": 101,
    "sched_setaffinity": 203,
    "seccomp": 317,
    "memfd_create": 319,
    "userfaultfd": 323,
    "pidfd_open": 434,
    "memfd_secret": 447,
}

RESTRICTED = """
import ctypes, dataclasses, json, struct, sys
from memvm.machine.probe import probe

number, errno = map(int, sys.argv[1:])
code = b"".join(struct.pack("=HBBI", *instruction) for instruction in (
    (0x20, 0, 0, 0),                     # load the call's number
    (0x15, 0, 1, number),                # the one to refuse?
    (0x06, 0, 0, 0x00050000 | errno),    # SECCOMP_RET_ERRNO
    (0x06, 0, 0, 0x7FFF0000),            # SECCOMP_RET_ALLOW
))
buffer = ctypes.create_string_buffer(code)
program = ctypes.create_string_buffer(struct.pack("=H6xQ", 4, ctypes.addressof(buffer)))
libc = ctypes.CDLL(None, use_errno=True)
longs = [ctypes.c_long(value) for value in (1, 0, 0, 0)]
assert libc.prctl(38, *longs) == 0                                                    # PR_SET_NO_NEW_PRIVS
assert libc.prctl(22, ctypes.c_long(2), ctypes.c_void_p(ctypes.addressof(program))) == 0  # PR_SET_SECCOMP
print(json.dumps([dataclasses.asdict(capability) for capability in probe()]))
"""


def by_name(capabilities: list[Capability]) -> dict[str, Capability]:
    found = {capability.name: capability for capability in capabilities}
    assert len(found) == len(capabilities), "a name is there twice"
    return found


def probe_without(call: str, errno: int, time_scale: float) -> dict[str, Capability]:
    """What a probe finds in a process that may not make one system call, as in a container."""
    command = [sys.executable, "-c", RESTRICTED, str(SYSCALLS[call]), str(errno)]
    done = subprocess.run(command, check=True, capture_output=True, timeout=60 * time_scale)
    return by_name([Capability(**fields) for fields in json.loads(done.stdout)])


def test_all_that_guests_require_is_here(runtime_dir: Path) -> None:
    lacking = [one for one in probe(runtime_dir) if one.required and not one.available]
    assert lacking == []


def test_what_is_not_available_comes_with_advice(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(surveys, "cpus", lambda: (False, "one"))
    monkeypatch.setattr(probe_module, "_SURVEYS", [("CPUs", surveys.cpus, "buy another")])
    found = by_name(probe(runtime_dir))
    assert found["CPUs"] == Capability("CPUs", False, "one", "buy another")


@pytest.mark.parametrize("errno", [1, 38], ids=["EPERM", "ENOSYS"])
@pytest.mark.parametrize(
    ("call", "lost"),
    [
        ("ptrace", {"ptrace of children", "trial guest"}),
        ("sched_setaffinity", {"CPUs"}),
        ("seccomp", {"seccomp user notification", "trial guest"}),
        ("memfd_create", {"guest RAM", "executable memory file", "trial guest"}),
        ("userfaultfd", {"userfaultfd", "noted writes"}),
        ("pidfd_open", {"process descriptors", "trial guest"}),
    ],
)
def test_a_machine_without_one_system_call(call: str, lost: set[str], errno: int, time_scale: float) -> None:
    everything = by_name(probe())
    found = probe_without(call, errno, time_scale)
    gone = {name for name, one in found.items() if not one.available and everything[name].available}
    gone.discard("memory")  # that is available, of which others take some meanwhile
    assert gone == lost
    assert all(found[name].advice for name in gone)


def test_without_userfaultfd_the_mprotect_engine_is_taken(time_scale: float) -> None:
    assert by_name(probe())["fault engine"].detail.startswith("userfaultfd")
    found = probe_without("userfaultfd", 38, time_scale)
    assert found["fault engine"].available
    assert found["fault engine"].detail.startswith("mprotect")


@pytest.mark.parametrize("errno", [1, 38], ids=["EPERM", "ENOSYS"])
def test_without_memfd_secret_keys_are_locked(errno: int, time_scale: float) -> None:
    before, after = by_name(probe())["memory for keys"], probe_without("memfd_secret", errno, time_scale)
    if not before.available:
        pytest.skip(before.detail)
    assert after["memory for keys"].available
    assert after["memory for keys"].detail.startswith("locked")


def test_a_user_who_may_lock_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SecretMemory, "_guarded", lambda self: Guard.ORDINARY)
    found = by_name(probe())["memory for keys"]
    assert (found.available, found.required) == (False, False)
    assert "may be written to swap" in found.detail
    assert "ulimit -l" in found.advice


def test_a_limit_on_file_size_keeps_guest_ram_from_being_made(time_scale: float) -> None:
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "from memvm.machine.probe import probe\n"
        "print(*sorted(one.name for one in probe() if not one.available), sep='\\n')"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60 * time_scale)
    assert {"guest RAM", "limits"} <= set(done.stdout.splitlines())


def test_a_runtime_directory_that_is_there(tmp_path_factory: pytest.TempPathFactory, runtime_dir: Path) -> None:
    assert runtime_directory(runtime_dir) == str(runtime_dir)


def test_a_runtime_directory_to_be_made(runtime_dir: Path) -> None:
    assert "to be made" in runtime_directory(runtime_dir / "a" / "b")
    assert not (runtime_dir / "a").exists()


def test_a_runtime_directory_with_too_long_a_path(runtime_dir: Path) -> None:
    with pytest.raises(OSError, match="too long"):
        runtime_directory(runtime_dir / ("x" * 100))


def test_a_runtime_directory_inside_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(OSError, match="not a directory"):
        runtime_directory(Path("file"))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_a_runtime_directory_of_somebody_else(runtime_dir: Path) -> None:
    theirs = runtime_dir / "theirs"
    theirs.mkdir()
    os.chown(theirs, 65534, 65534)
    try:
        with pytest.raises(OSError, match="belongs to another user"):
            runtime_directory(theirs)
    finally:
        theirs.rmdir()
