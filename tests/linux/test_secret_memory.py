"""Memory for keys: what the kernel says of it, who can read it, and what is left of it."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import pickle
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memvm.linux import secret_memory
from memvm.linux.mlock import address_of, lock_pages, unlock_pages
from memvm.linux.secret_memory import Guard, SecretMemory, overwrite

KEY = bytes(range(1, 65))
NOBODY = 65534


def fails(function: str, code: int) -> Callable[..., int]:
    real = getattr(secret_memory, function)

    def instead(*arguments: object) -> int:
        if function != "syscall" or arguments[0] == secret_memory.SYSCALL_MEMFD_SECRET:
            raise OSError(code, os.strerror(code))
        return int(real(*arguments))

    return instead


@pytest.fixture(params=Guard)
def guard(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guard]:
    """Each kind, where the kernel has the first, and where it has not."""
    wanted: Guard = request.param
    if wanted is not Guard.SECRET:
        monkeypatch.setattr(secret_memory, "syscall", fails("syscall", errno.ENOSYS))
    if wanted is Guard.ORDINARY:
        monkeypatch.setattr(secret_memory, "lock_pages", fails("lock_pages", errno.ENOMEM))
    with SecretMemory(1) as tried:
        if tried.guard is not wanted:
            pytest.skip(f"here keys are {tried.guard.value}")
    yield wanted


def where(secret: SecretMemory) -> int:
    return address_of(secret._memory)


def smaps(address: int) -> dict[str, str]:
    """What /proc says of the mapping in which an address is."""
    fields: dict[str, str] = {}
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if " " in name:  # a mapping begins
            fields = {"span": name.split()[0], "name": line}
        fields[name] = value.strip()
        if name == "VmFlags":
            start, end = (int(part, 16) for part in fields["span"].split("-"))
            if start <= address < end:
                return fields
    raise AssertionError("nothing is mapped there")


def test_what_the_kernel_says_of_it(guard: Guard) -> None:
    """lo: locked. dd: in no core dump. wf: not in forked processes."""
    with SecretMemory.copy_of(KEY) as secret:
        found = smaps(where(secret))
    flags = set(found["VmFlags"].split())
    assert "dd" in flags
    assert ("lo" in flags) == (found["Locked"] == "4 kB") == (guard is not Guard.ORDINARY)
    assert ("wf" in flags) == (guard is not Guard.SECRET)
    assert ("secretmem" in found["name"]) == (guard is Guard.SECRET)


def test_whether_it_is_read_through_proc(guard: Guard) -> None:
    """As root would read it: this process may read its own memory there, the rest of it."""
    with SecretMemory.copy_of(KEY) as secret, open("/proc/self/mem", "rb", buffering=0) as memory:
        memory.seek(where(secret))
        if guard is Guard.SECRET:
            with pytest.raises(OSError, match="Input/output"):
                memory.read(len(KEY))
        else:
            assert memory.read(len(KEY)) == KEY


def test_no_descriptor_of_it_is_left(guard: Guard) -> None:
    before = sorted(Path("/proc/self/fd").iterdir())
    with SecretMemory(64):
        assert sorted(Path("/proc/self/fd").iterdir()) == before


def test_it_holds_what_it_is_given_and_is_wiped(guard: Guard) -> None:
    secret = SecretMemory.copy_of(KEY)
    view, part = secret.view, secret.view[8:]
    assert (len(secret), bytes(view)) == (64, KEY)
    with pytest.raises(TypeError):
        view[0] = 0
    with pytest.raises(BufferError):
        secret.wipe()
    assert bytes(part) == bytes(56)  # what it held is gone, whoever still looks at it
    part.release()
    secret.wipe()
    secret.wipe()
    with pytest.raises(ValueError, match="released"):
        bytes(view)
    with pytest.raises(ValueError, match="released"):
        bytes(secret.view)


def test_random_bytes(guard: Guard) -> None:
    with SecretMemory.random(32) as one, SecretMemory.random(32) as other:
        assert len({bytes(one.view), bytes(other.view), bytes(32)}) == 3


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_what_is_moved_there_is_gone_where_it_was(kind: type[bytes] | type[bytearray]) -> None:
    given = kind(os.urandom(32))
    kept = bytes(reversed(given))
    with SecretMemory.taking(given) as secret:
        assert bytes(secret.view) == kept[::-1]
    assert given == bytes(32)


def test_what_python_has_one_of_is_not_overwritten() -> None:
    one = bytes([200])
    overwrite(one)
    overwrite(b"")
    assert bytes([200]) == one == b"\xc8"


def test_its_text_says_nothing_and_it_is_not_pickled(guard: Guard) -> None:
    with SecretMemory.copy_of(b"K" * 64) as secret:
        assert repr(secret) == str(secret) == f"SecretMemory(64 bytes, {guard.value})"
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(secret)


def test_a_forked_process_has_it_not(guard: Guard) -> None:
    with SecretMemory.copy_of(KEY) as secret:
        part = secret.view[:1]  # somebody is reading
        address = where(secret)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                with open("/proc/self/mem", "rb", buffering=0) as memory:
                    memory.seek(address)
                    is_zero = memory.read(len(KEY)) == bytes(len(KEY))
                try:
                    bytes(secret.view)
                except ValueError:
                    status = 0 if is_zero else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        part.release()
        assert bytes(secret.view) == KEY


def test_nothing_is_said_where_keys_are_locked(guard: Guard) -> None:
    with SecretMemory(64):
        if guard is not Guard.ORDINARY:
            assert not secret_memory.swap_warning()


def test_nothing_is_left_mapped(guard: Guard) -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count("secretmem")

    gc.collect()
    before = mapped()
    for _ in range(200):
        SecretMemory(64).wipe()
        SecretMemory(64)  # and one that is forgotten
    assert mapped() == before


_LIMITED = """\
import resource
resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
from memvm.linux.secret_memory import SecretMemory, swap_warning
with SecretMemory.copy_of(b"k" * 32) as secret:
    assert bytes(secret.view) == b"k" * 32
    print(secret.guard.name, "|", swap_warning())
    assert swap_warning() == ""  # it was said
"""


def test_an_ordinary_user_who_may_lock_nothing() -> None:
    if os.geteuid() == 0:
        preparation = f"import os; import memvm.linux.secret_memory; os.setresuid({NOBODY}, {NOBODY}, {NOBODY})\n"
    else:
        preparation = ""
    done = subprocess.run(
        [sys.executable, "-c", preparation + _LIMITED], check=True, capture_output=True, text=True, timeout=60
    )
    guard, _, words = done.stdout.strip().partition(" | ")
    assert guard == "ORDINARY"
    assert words == "keys in memory may be written to swap: this user may lock 0 B (ulimit -l)"


def test_pages_that_are_locked_and_let_go() -> None:
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit < 3 * mmap.PAGESIZE and os.geteuid() != 0:
        pytest.skip("this user may lock nothing")
    with mmap.mmap(-1, 4 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        lock_pages(memory, mmap.PAGESIZE + 100, mmap.PAGESIZE)
        found = smaps(address_of(memory) + mmap.PAGESIZE)
        assert (found["Locked"], found["Size"]) == ("8 kB", "8 kB")
        unlock_pages(memory, mmap.PAGESIZE + 100, mmap.PAGESIZE)
        assert "lo" not in smaps(address_of(memory))["VmFlags"].split()
