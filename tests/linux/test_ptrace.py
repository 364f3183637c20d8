"""What memvm takes the kernel to do with a traced thread, on the kernel that runs this."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from memvm.linux import ptrace
from memvm.linux.ptrace import StopEvent, ThreadGone
from memvm.machine.layout import RAM_BASE
from tests.linux.conftest import MPROTECT, Sealed

LOOP = b"\xeb\xfe"  # jmp to itself
TRAP = b"\xcc"  # int3
U64 = (1 << 64) - 1


def stopped(sealed: Sealed) -> tuple[int, int]:
    """The signal and the event of the next stop."""
    _, status = ptrace.wait(sealed.pid)
    assert os.WIFSTOPPED(status)
    return os.WSTOPSIG(status), ptrace.stop_event(status)


def test_a_thread_that_runs_is_interrupted(sealed: Sealed) -> None:
    sealed.run(LOOP)
    assert ptrace.wait(sealed.pid, hang=False) == (0, 0)
    ptrace.interrupt(sealed.pid)
    assert stopped(sealed) == (signal.SIGTRAP, StopEvent.STOP)
    assert ptrace.get_registers(sealed.pid).rip == RAM_BASE


def test_registers_are_what_they_were_set_to(sealed: Sealed) -> None:
    """But for those that only the kernel sets, and orig_rax, which says that this is no system call."""
    wanted = {
        name: 0x1000 + number for number, name in enumerate(("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"))
    }
    wanted |= {"rax": 1, "rbx": 2, "rcx": 3, "rdx": 4, "rsi": 5, "rdi": U64, "rbp": 7, "rsp": 8}
    wanted |= {"fs_base": 0x7000_0000_1000, "gs_base": 0x7000_0000_2000}
    sealed.run(TRAP, **wanted)
    assert stopped(sealed) == (signal.SIGTRAP, StopEvent.NONE)
    registers = ptrace.get_registers(sealed.pid)
    assert {name: getattr(registers, name) for name in wanted} == wanted
    assert registers.rip == RAM_BASE + 1


def test_only_the_thread_that_seized_it_may_ask(sealed: Sealed) -> None:
    raised: list[BaseException] = []

    def ask() -> None:
        try:
            ptrace.get_registers(sealed.pid)
        except BaseException as error:  # noqa: BLE001  # looked at below
            raised.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert [type(error) for error in raised] == [ThreadGone]
    ptrace.get_registers(sealed.pid)


def test_a_thread_that_died_is_gone_to_every_request(sealed: Sealed) -> None:
    registers, xstate = ptrace.get_registers(sealed.pid), ptrace.get_xstate(sealed.pid)
    sealed.stub.kill()
    _, sealed.stub.wait_status = ptrace.wait(sealed.pid)
    assert os.WTERMSIG(sealed.stub.wait_status) == signal.SIGKILL
    for request in (
        lambda: ptrace.get_registers(sealed.pid),
        lambda: ptrace.set_registers(sealed.pid, registers),
        lambda: ptrace.get_xstate(sealed.pid),
        lambda: ptrace.set_xstate(sealed.pid, xstate),
        lambda: ptrace.get_signal_info(sealed.pid),
        lambda: ptrace.interrupt(sealed.pid),
        lambda: ptrace.resume(sealed.pid),
        lambda: ptrace.resume_to_syscall_exit(sealed.pid),
    ):
        with pytest.raises(ThreadGone):
            request()


def test_a_fault_says_where_it_was(sealed: Sealed) -> None:
    sealed.run(b"\x8b\x00", rax=0x123450)  # mov eax, [rax]
    assert stopped(sealed) == (signal.SIGSEGV, StopEvent.NONE)
    info = ptrace.get_signal_info(sealed.pid)
    assert (info.number, info.code > 0, info.address) == (signal.SIGSEGV, True, 0x123450)


@pytest.mark.parametrize(("code", "number"), [(b"\x0f\x0b", signal.SIGILL), (b"\xf7\xf1", signal.SIGFPE)])
def test_what_a_program_does_wrong_has_a_positive_code(sealed: Sealed, code: bytes, number: int) -> None:
    sealed.run(code, rax=1, rdx=0, rcx=0)
    assert stopped(sealed) == (number, StopEvent.NONE)
    assert ptrace.get_signal_info(sealed.pid).code > 0


def test_a_signal_from_outside_says_who_sent_it_and_is_dropped(sealed: Sealed) -> None:
    sealed.run(LOOP)
    for number in (signal.SIGSEGV, signal.SIGTERM, signal.SIGURG, signal.SIGCHLD):
        os.kill(sealed.pid, number)
        assert stopped(sealed) == (number, StopEvent.NONE)
        info = ptrace.get_signal_info(sealed.pid)
        assert (info.number, info.code <= 0, info.sender) == (number, True, os.getpid())
        ptrace.resume(sealed.pid)
    ptrace.interrupt(sealed.pid)
    assert stopped(sealed) == (signal.SIGTRAP, StopEvent.STOP)


def test_a_traced_call_can_be_let_run_and_stops_again_after(sealed: Sealed) -> None:
    sealed.run(b"\x0f\x05\xcc", rax=MPROTECT, rdi=RAM_BASE + 4096, rsi=4096, rdx=1)
    assert stopped(sealed) == (signal.SIGTRAP, StopEvent.SECCOMP)
    ptrace.resume_to_syscall_exit(sealed.pid)
    number, event = stopped(sealed)
    assert (number, event) == (signal.SIGTRAP | 0x80, StopEvent.NONE)  # PTRACE_O_TRACESYSGOOD
    assert ptrace.get_registers(sealed.pid).rax == 0
    assert f"{RAM_BASE + 4096:08x}-{RAM_BASE + 8192:08x} r--s" in Path(f"/proc/{sealed.pid}/maps").read_text()


def test_vector_registers_are_kept(sealed: Sealed) -> None:
    movups = b"\x0f\x10\x00\x0f\x57\xc9\xcc"  # movups xmm0, [rax]; xorps xmm1, xmm1; int3
    sealed.ram.write(RAM_BASE + 256, bytes(range(16)))
    sealed.run(movups, rax=RAM_BASE + 256)
    assert stopped(sealed) == (signal.SIGTRAP, StopEvent.NONE)
    state = ptrace.get_xstate(sealed.pid)
    assert state[160:176] == bytes(range(16))  # xmm0: Intel SDM, volume 1, 10.5.1
    changed = state[:160] + b"\x77" * 16 + state[176:]
    ptrace.set_xstate(sealed.pid, changed)
    assert ptrace.get_xstate(sealed.pid) == changed
    sealed.run(b"\x0f\x11\x00\xcc", rax=RAM_BASE + 512)  # movups [rax], xmm0; int3
    assert stopped(sealed) == (signal.SIGTRAP, StopEvent.NONE)
    assert sealed.ram.read(RAM_BASE + 512, 16) == b"\x77" * 16


@pytest.mark.parametrize("damage", ["short", "reserved bits", "unknown features"])
def test_vector_registers_that_cannot_be_are_refused(sealed: Sealed, damage: str) -> None:
    state = bytearray(ptrace.get_xstate(sealed.pid))
    match damage:
        case "short":
            state = state[:100]
        case "reserved bits":
            state[24:28] = b"\xff" * 4  # MXCSR
            state[512] |= 3  # x87 and SSE are in use
        case "unknown features":
            state[512:520] = b"\xff" * 8
    with pytest.raises(OSError, match=r"error|argument|address"):
        ptrace.set_xstate(sealed.pid, bytes(state))


def test_the_process_ends_with_its_tracer(time_scale: float) -> None:
    """PTRACE_O_EXITKILL: also when that is killed, without a chance to do anything."""
    program = (
        "import signal; from tests.linux.conftest import Sealed; sealed = Sealed(); sealed.run(b'\\xeb\\xfe');"
        "print(sealed.pid, flush=True); signal.pause()"
    )
    root = Path(__file__).parent.parent.parent
    tracer = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=root)
    assert tracer.stdout is not None
    with tracer.stdout:
        pid = int(tracer.stdout.readline())
    pidfd = os.pidfd_open(pid)
    try:
        tracer.kill()
        tracer.wait()
        deadline = time.monotonic() + 10 * time_scale
        while True:
            try:
                signal.pidfd_send_signal(pidfd, 0)
            except ProcessLookupError:
                break
            assert time.monotonic() < deadline, "the process outlived its tracer"
            time.sleep(0.005)
    finally:
        os.close(pidfd)
