"""What memvm takes the kernel to do with seccomp filters and notifications, on the kernel that runs this."""

from __future__ import annotations

import errno
import os
import platform
import select
import signal
import struct
from fcntl import ioctl

import pytest

from memvm.linux import ptrace, seccomp
from memvm.linux.seccomp import AUDIT_ARCH_X86_64, SECCOMP_IOCTL_NOTIF_RECV, Notification
from memvm.machine.layout import RAM_BASE
from tests.linux.conftest import MPROTECT, Sealed

GETPID, CLOCK_GETTIME = 39, 228
SYSCALL = b"\x0f\x05\xcc"  # syscall; int3
INT80 = b"\xcd\x80\xcc"  # int 0x80; int3
ERESTARTSYS = (1 << 64) - 512
U64 = (1 << 64) - 1


def received(sealed: Sealed) -> Notification:
    """The next notification; there must be one."""
    notification = sealed.listener.receive()
    assert notification is not None
    return notification


def result(sealed: Sealed) -> int:
    """rax where the process has stopped at its int3."""
    _, status = ptrace.wait(sealed.pid)
    assert os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGTRAP
    assert ptrace.stop_event(status) == ptrace.StopEvent.NONE
    return int(ptrace.get_registers(sealed.pid).rax)


def test_a_call_is_a_notification_with_all_its_arguments(sealed: Sealed) -> None:
    sealed.run(SYSCALL, rax=CLOCK_GETTIME, rdi=1, rsi=2, rdx=3, r10=4, r8=5, r9=U64)
    notification = received(sealed)
    assert notification.tid == sealed.pid
    assert (notification.number, notification.arch) == (CLOCK_GETTIME, AUDIT_ARCH_X86_64)
    assert notification.arguments == (1, 2, 3, 4, 5, U64)
    assert notification.instruction == RAM_BASE + 2  # behind the syscall instruction
    assert sealed.listener.is_waiting(notification.id)
    assert sealed.listener.answer(notification.id, 0)
    assert result(sealed) == 0


@pytest.mark.parametrize("value", [0, 1, (1 << 62) + 5, -errno.ENOSYS, -4095])
def test_the_answer_is_what_the_call_returns(sealed: Sealed, value: int) -> None:
    sealed.run(SYSCALL, rax=GETPID)
    assert sealed.listener.answer(received(sealed).id, value)
    assert result(sealed) == value & U64


def test_a_call_that_may_run_is_made_by_the_kernel(sealed: Sealed) -> None:
    sealed.run(SYSCALL, rax=GETPID)
    assert sealed.listener.let_run(received(sealed).id)
    assert result(sealed) == sealed.pid


def test_a_traced_call_stops_before_it_is_made(sealed: Sealed) -> None:
    sealed.run(SYSCALL, rax=MPROTECT, rdi=RAM_BASE, rsi=4096, rdx=7)
    _, status = ptrace.wait(sealed.pid)
    assert ptrace.stop_event(status) == ptrace.StopEvent.SECCOMP
    registers = ptrace.get_registers(sealed.pid)
    assert registers.orig_rax == MPROTECT
    registers.orig_rax, registers.rax = U64, 12345
    ptrace.set_registers(sealed.pid, registers)
    ptrace.resume(sealed.pid)
    assert result(sealed) == 12345


@pytest.mark.parametrize("number", [GETPID, MPROTECT])
def test_calls_by_the_x32_convention_are_notifications_whatever_their_number(sealed: Sealed, number: int) -> None:
    sealed.run(SYSCALL, rax=number | 0x40000000)
    notification = received(sealed)
    assert notification.number == number | 0x40000000
    sealed.listener.answer(notification.id, -errno.ENOSYS)
    assert result(sealed) == -errno.ENOSYS & U64


@pytest.mark.parametrize("number", [20, MPROTECT])
def test_calls_by_int_0x80_are_notifications_of_another_architecture(sealed: Sealed, number: int) -> None:
    sealed.run(INT80, rax=number)
    while not select.select([sealed.listener.fd], [], [], 0.01)[0]:
        stopped, status = ptrace.wait(sealed.pid, hang=False)
        if stopped:
            assert os.WSTOPSIG(status) == signal.SIGSEGV
            pytest.skip("this kernel has no 32-bit calls, so they are faults")
    notification = received(sealed)
    assert (notification.number, notification.arch == AUDIT_ARCH_X86_64) == (number, False)
    sealed.listener.answer(notification.id, -errno.ENOSYS)
    assert result(sealed) == -errno.ENOSYS & U64


def test_the_structure_to_receive_into_must_be_zero(sealed: Sealed) -> None:
    sealed.run(SYSCALL, rax=GETPID)
    with pytest.raises(OSError, match="Invalid argument"):
        ioctl(sealed.listener.fd, SECCOMP_IOCTL_NOTIF_RECV, bytearray(b"\1" * 80))
    for _ in range(2):  # the listener's own buffer is used again and again
        sealed.listener.answer(received(sealed).id, 0)
        result(sealed)
        sealed.run(SYSCALL, rax=GETPID)


def test_an_interrupted_call_is_withdrawn_and_comes_again(sealed: Sealed) -> None:
    sealed.run(SYSCALL, rax=CLOCK_GETTIME, rdi=7)
    first = received(sealed)
    ptrace.interrupt(sealed.pid)
    _, status = ptrace.wait(sealed.pid)
    assert ptrace.stop_event(status) == ptrace.StopEvent.STOP
    registers = ptrace.get_registers(sealed.pid)
    assert (registers.rax, registers.orig_rax) == (ERESTARTSYS, CLOCK_GETTIME)
    assert not sealed.listener.is_waiting(first.id)
    assert not sealed.listener.answer(first.id, 1)
    assert not sealed.listener.let_run(first.id)
    ptrace.resume(sealed.pid)
    again = received(sealed)
    assert again.id != first.id
    assert (again.number, again.arguments) == (first.number, first.arguments)
    assert sealed.listener.answer(again.id, 3)
    assert result(sealed) == 3


def test_a_call_that_was_withdrawn_before_anybody_received_it(sealed: Sealed) -> None:
    """Receiving may find nothing then, and must not take that for an error: the call comes again."""
    sealed.run(SYSCALL, rax=GETPID)
    assert select.select([sealed.listener.fd], [], [], 5)[0]
    ptrace.interrupt(sealed.pid)
    ptrace.wait(sealed.pid)
    assert sealed.listener.receive() is None
    ptrace.resume(sealed.pid)
    assert select.select([sealed.listener.fd], [], [], 5)[0]
    assert sealed.listener.answer(received(sealed).id, 8)
    assert result(sealed) == 8


def test_other_failures_to_receive_are_errors() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        seccomp.Listener(1 << 20).receive()


def test_the_listener_hangs_up_when_the_process_has_gone(sealed: Sealed) -> None:
    poll = select.poll()
    poll.register(sealed.listener.fd, select.POLLIN)
    assert poll.poll(0) == []
    sealed.stub.kill()
    _, sealed.stub.wait_status = ptrace.wait(sealed.pid)
    ((_, events),) = poll.poll(5000)
    assert events & select.POLLHUP
    assert not events & select.POLLIN


def test_handing_over_on_one_cpu_is_there_since_linux_6_6(sealed: Sealed) -> None:
    release = tuple(int("".join(filter(str.isdigit, part))) for part in platform.release().split(".")[:2])
    assert sealed.listener.hand_over_on_one_cpu() or release < (6, 6)


@pytest.mark.parametrize("count", [0, 1, 5, 200])
def test_a_filter_of_any_length_sends_each_call_where_it_belongs(count: int) -> None:
    """The program is run here, instruction by instruction."""
    traced = set(range(0, 2 * count, 2))
    program = seccomp.filter_program(traced)
    for number in [*range(2 * count + 2), 0x40000000, 0x40000002, 0xFFFFFFFF]:
        expected = seccomp.Action.TRACE if number in traced else seccomp.Action.USER_NOTIF
        assert _interpret(program, number, AUDIT_ARCH_X86_64) == expected
        assert _interpret(program, number, 0x40000003) == seccomp.Action.USER_NOTIF


@pytest.mark.parametrize("count", [0, 1, 5, 200])
def test_where_calls_are_not_traced_all_are_notifications(count: int) -> None:
    traced = set(range(0, 2 * count, 2))
    program = seccomp.filter_program(traced, 0x1_0000_2345)
    for number in range(2 * count + 2):
        elsewhere = seccomp.Action.TRACE if number in traced else seccomp.Action.USER_NOTIF
        assert _interpret(program, number, AUDIT_ARCH_X86_64, 0x1_0000_2345) == seccomp.Action.USER_NOTIF
        for instruction in (0x2345, 0x1_0000_2346, 0x2_0000_2345):
            assert _interpret(program, number, AUDIT_ARCH_X86_64, instruction) == elsewhere


def _interpret(program: bytes, number: int, arch: int, instruction: int = 0x401000) -> int:
    data = struct.pack("=IIQ", number, arch, instruction)
    accumulator = position = 0
    instructions = list(struct.iter_unpack("=HBBI", program))
    while True:
        code, if_true, if_false, operand = instructions[position]
        position += 1
        match code:
            case 0x20:  # BPF_LD | BPF_W | BPF_ABS
                (accumulator,) = struct.unpack_from("=I", data, operand)
            case 0x15:  # BPF_JMP | BPF_JEQ | BPF_K
                position += if_true if accumulator == operand else if_false
            case 0x35:  # BPF_JMP | BPF_JGE | BPF_K
                position += if_true if accumulator >= operand else if_false
            case 0x06:  # BPF_RET | BPF_K
                return int(operand)
            case _:
                raise AssertionError(f"instruction {code:#x}")
