"""What a checkpoint keeps of each thread: its vCPU's registers, signals, and the call that it waits in."""

from __future__ import annotations

from typing import Any, NamedTuple

from memvm.linux import ptrace
from memvm.machine.fields import I64, Fields, blob, integer, listed, text, truth
from memvm.machine.hypercalls.table import Call
from memvm.machine.signals import INFO_SIZE, MOST_WAITING, SIGNAL_COUNT, Signal
from memvm.machine.thread import GuestThread
from memvm.machine.vcpu import VcpuState

FIRST_TID = 1000
"""The first thread's id, in files that do not say."""
_MAX_XSTATE = 1 << 16
_LEAST_XSTATE = 576  # the legacy area and the header: Intel SDM, volume 1, 13.4
_MOST_TID = (1 << 30) - 1


class ThreadState(NamedTuple):
    """A thread that stands still."""

    vcpu: VcpuState
    tid: int
    signal_mask: int
    mask_afterwards: int | None
    """The signals that it blocks once its call has ended, if that blocks others."""
    waiting_signals: tuple[Signal, ...]
    alternate_stack: bytes
    blocked: Call | None
    clear_child_tid: int
    robust_list: tuple[int, int]
    name: bytes
    cpu_time: int = 0
    """In ns; 0 in files that do not say."""

    @classmethod
    def capture(cls, thread: GuestThread) -> ThreadState:
        """The state of a thread that stands still."""
        return cls(
            vcpu=VcpuState.capture(thread.vcpu),
            tid=thread.tid,
            signal_mask=thread.mask,
            mask_afterwards=thread.mask_afterwards,
            waiting_signals=tuple(thread.signals.waiting),
            alternate_stack=thread.alternate_stack,
            blocked=thread.blocked and thread.blocked.as_now(),  # it goes on while a live save is written
            clear_child_tid=thread.clear_child_tid,
            robust_list=thread.robust_list,
            name=thread.name,
            cpu_time=thread.cpu_time(),
        )

    def adopt_into(self, thread: GuestThread) -> None:
        """Give a thread this state. Raises CheckpointError if the processor cannot have it."""
        self.vcpu.install(thread.vcpu)
        thread.mask, thread.mask_afterwards = self.signal_mask, self.mask_afterwards
        thread.signals.waiting = list(self.waiting_signals)
        thread.alternate_stack = self.alternate_stack
        thread.clear_child_tid, thread.robust_list = self.clear_child_tid, self.robust_list
        thread.name = self.name
        thread.cpu_before = self.cpu_time
        if self.blocked is not None:
            thread.blocked = self.blocked.made_by(thread)

    def to_fields(self) -> dict[str, Any]:
        """As JSON's object."""
        blocked = self.blocked
        return {
            "registers": self.vcpu.registers,
            "xstate": text(self.vcpu.xstate),
            "tid": self.tid,
            "signal_mask": self.signal_mask,
            "mask_afterwards": self.mask_afterwards,
            "waiting_signals": signals_to_json(self.waiting_signals),
            "alternate_stack": text(self.alternate_stack),
            "blocked": None
            if blocked is None
            else {
                "number": blocked.number,
                "arguments": list(blocked.arguments),
                "deadline": blocked.deadline,
                "progress": blocked.progress,
                "answer": blocked.answer,
                "place": blocked.place,
                "woken": blocked.woken,
            },
            "clear_child_tid": self.clear_child_tid,
            "robust_list": list(self.robust_list),
            "thread_name": text(self.name),
            "thread_cpu_time": self.cpu_time,
        }


def read_thread(fields: Fields) -> ThreadState:
    """A thread from JSON's object. Raises ValueError."""
    robust = fields.items("robust_list", 2, lambda value: integer(value, "robust_list"))
    if len(robust) != 2:
        raise ValueError("robust_list is not complete")
    alternate_stack = fields.data("alternate_stack", 24)
    if len(alternate_stack) not in (0, 24):
        raise ValueError("alternate_stack is not 24 bytes")
    return ThreadState(
        vcpu=_vcpu(fields),
        tid=fields.number("tid", _MOST_TID, 1, FIRST_TID),
        signal_mask=fields.number("signal_mask"),
        mask_afterwards=fields.optional("mask_afterwards", (1 << 64) - 1, default=None),
        waiting_signals=fields.items("waiting_signals", MOST_WAITING, read_signal, default=[]),
        alternate_stack=alternate_stack,
        blocked=_call(fields.get("blocked")),
        clear_child_tid=fields.number("clear_child_tid"),
        robust_list=(robust[0], robust[1]),
        name=fields.data("thread_name", 15),
        cpu_time=fields.number("thread_cpu_time", I64 // 2, default=0),
    )


def _vcpu(fields: Fields) -> VcpuState:
    given = Fields(fields.get("registers"))
    registers = {name: given.number(name) for name in ptrace.REGISTERS}
    xstate = fields.data("xstate", _MAX_XSTATE)
    if len(xstate) < _LEAST_XSTATE:
        raise ValueError("xstate is too short")
    return VcpuState(registers, xstate)


def signals_to_json(waiting: tuple[Signal, ...]) -> list[Any]:
    """Signals that wait: number, and siginfo_t without the zeros at its end."""
    return [[one.number, text(one.info.rstrip(b"\0"))] for one in waiting]


def read_signal(value: Any) -> Signal:
    """One of them. Raises ValueError."""
    number, info = listed(value, 2, "signal")
    data = blob(info, "siginfo", INFO_SIZE)
    return Signal(integer(number, "signal", SIGNAL_COUNT, 1), data.ljust(INFO_SIZE, b"\0"))


def _call(value: Any) -> Call | None:
    if value is None:
        return None
    fields = Fields(value)
    arguments = fields.items("arguments", 6, lambda argument: integer(argument, "argument"))
    if len(arguments) != 6:
        raise ValueError("a call has not six arguments")
    call = Call(fields.number("number", (1 << 33) - 1), arguments)
    call.deadline = fields.optional("deadline")
    call.progress = fields.number("progress", I64)
    call.answer = fields.optional("answer", I64, -4095)
    place = fields.get("place", None)
    if place is not None:
        address, bits, ticket = listed(place, 3, "place")
        most = (1 << 32) - 1
        call.place = (
            integer(address, "address"),
            integer(bits, "bits", most),
            integer(ticket, "ticket", I64),
        )
    call.woken = truth(fields.get("woken", False), "woken")
    return call
