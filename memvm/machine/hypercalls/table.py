"""The table of hypercalls: number, name, arguments and function of each call that is answered.

A call is declared once, by `@hypercall` above its function, and everything else is made from that declaration: the
dispatch, what --strace prints, and the list of what is answered. A function gets the guest, the call, and as many
of the six arguments as it declares, and returns a result (a negative one is an errno), BLOCKED after having said what
it waits for, or raises CallError.

`traced` calls are ptrace stops, handled on the tracer's thread, where they can change the guest's mappings and
registers. All others are seccomp notifications. Both run under the machine's lock.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from memvm.machine.callresult import CallError, CallResult

if TYPE_CHECKING:
    from memvm.files.description import Description
    from memvm.machine.guest import Guest
    from memvm.machine.thread import GuestThread

OWN_CALLS = 0x6D760000
"""The first number of memvm's own calls; Linux answers them with ENOSYS. They are declared to guests in memvm.h."""
_SHOWN_BYTES = 32
_NOTHING: Mapping[int, int] = {}


class Argument:
    """One argument: its name, and how people read its value. The base class shows a number."""

    def __init__(self, name: str) -> None:
        self.name = name

    def show(self, guest: Guest, values: dict[str, int]) -> str:
        """The value as text; `values` has all arguments of the call, and "result" once it is known."""
        value = values[self.name]
        return str(value - (1 << 64) if value >> 63 else value)


class Int(Argument):
    """A C int: the upper half of the register means nothing."""

    def show(self, guest: Guest, values: dict[str, int]) -> str:
        return str(signed(values[self.name], 32))


class Address(Argument):
    """A pointer, or a set of bits."""

    def show(self, guest: Guest, values: dict[str, int]) -> str:
        value = values[self.name]
        return hex(value) if value else "0"


class Flags(Argument):
    """Bits with names; a value without bits reads `none`."""

    def __init__(self, name: str, none: str = "0", **bits: int) -> None:
        super().__init__(name)
        self._none, self._bits = none, bits

    def show(self, guest: Guest, values: dict[str, int]) -> str:
        value = values[self.name]
        names = [name for name, bit in self._bits.items() if bit and value & bit == bit]
        rest = value & ~sum(bit for name, bit in self._bits.items() if name in names)
        return "|".join(names + ([hex(rest)] if rest else [])) or self._none


class Choice(Argument):
    """One of several named values."""

    def __init__(self, name: str, **names: int) -> None:
        super().__init__(name)
        self._names = {value: name for name, value in names.items()}

    def show(self, guest: Guest, values: dict[str, int]) -> str:
        value = values[self.name] & 0xFFFFFFFF
        return self._names.get(value, hex(value))


class Buffer(Argument):
    """A pointer to as many bytes as another argument, or the result, says."""

    def __init__(self, name: str, size: str) -> None:
        super().__init__(name)
        self._size = size

    def show(self, guest: Guest, values: dict[str, int]) -> str:
        size = values.get(self._size, 0)
        if not 0 < size < 1 << 63:
            return hex(values[self.name])
        return _bytes_at(guest, values[self.name], size)


class Text(Argument):
    """A pointer to a NUL-terminated string."""

    def show(self, guest: Guest, values: dict[str, int]) -> str:
        try:
            return _quoted(guest.memory.string(values[self.name]))
        except CallError:
            return hex(values[self.name])


def _bytes_at(guest: Guest, address: int, size: int) -> str:
    try:
        shown = guest.memory.read(address, min(size, _SHOWN_BYTES))
    except CallError:
        return hex(address)
    return _quoted(shown) + ("..." if size > _SHOWN_BYTES else "")


def _quoted(data: bytes) -> str:
    return '"' + repr(data)[2:-1].replace('"', '\\"') + '"'


class Call:
    """One call that a vCPU makes, from its first notification until it is answered.

    A blocked call is carried out again and again until it has a result; `deadline` and `progress` are what it
    remembers between, and what a checkpoint keeps of it.
    """

    __slots__ = (
        *("answer", "arguments", "awaits", "begins_anew", "deadline", "jumps", "number", "on_interruption"),
        *("place", "progress", "registers", "stays", "thread", "told_of", "waits_for", "woken"),
    )
    _saved = ("answer", "arguments", "deadline", "number", "place", "progress", "woken")

    def __init__(
        self, number: int, arguments: tuple[int, ...], thread: GuestThread | None = None, registers: Any = None
    ) -> None:
        self.number = number
        self.arguments = arguments
        self.deadline: int | None = None
        """Guest CLOCK_MONOTONIC, in ns, at which the call gives up waiting."""
        self.progress = 0
        """Bytes done so far, of a call that does its work in parts."""
        self.answer: int | None = None
        """The result of a call that was carried out but whose caller was interrupted before it heard."""
        self.waits_for: Mapping[int, int] = _NOTHING
        """Host descriptors, with the poll(2) events that let the call go on."""
        self.told_of: Collection[Description] = ()
        """What is the manager's own, and lets the call go on when it says that it has changed."""
        self.place: tuple[int, int, int] | None = None
        """Where it waits for a futex: address, bits, and a ticket that is higher the later it came."""
        self.woken = False
        """Whether that wait has ended."""
        self.awaits = 0
        """The signals that it waits for."""
        self.begins_anew = False
        """When a signal interrupts it: made anew after the handler if that says so (ERESTARTSYS), or always EINTR."""
        self.on_interruption: Callable[[], None] | None = None
        """What is to be done before it ends so."""
        if thread is not None:
            self.thread = thread
        self.registers = registers
        """In a traced call: the vCPU's registers, which the function may change."""
        self.stays = False
        """Of a traced call: whether the thread ends here, and shall not go on."""
        self.jumps = False
        """Of a traced call: whether the function has set all registers, so that there is no result."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Call) and all(getattr(self, n) == getattr(other, n) for n in self._saved)

    __hash__ = None  # type: ignore[assignment]  # it changes

    thread: GuestThread
    """Who makes it."""

    def wait_for(self, waits: Iterable[tuple[Description, int]]) -> None:
        """Have it tried again when of any of these descriptions one of these events may hold."""
        polled: dict[int, int] = {}
        told_of: set[Description] = set()
        for description, events in waits:
            description.awaited = True
            told_of.add(description)
            for fd, wanted in description.host_waits(events).items():
                polled[fd] = polled.get(fd, 0) | wanted
        self.waits_for, self.told_of = polled, told_of

    def made_by(self, thread: GuestThread) -> Call:
        """The same call, as a thread of this life makes it."""
        call = self.as_now()
        call.thread = thread
        return call

    def interrupted(self) -> int | None:
        """A signal interrupts it while it waits: the result, or None if it may be made anew after the handler."""
        if self.on_interruption is not None:
            self.on_interruption()
        return (self.progress or None) if self.begins_anew else -errno.EINTR

    def same_as(self, number: int, arguments: tuple[int, ...]) -> bool:
        """Whether a notification is this call, made again after an interruption."""
        return self.number == number and self.arguments == arguments

    def as_now(self) -> Call:
        """What is remembered of it, apart from what happens to it later: what a checkpoint keeps."""
        call = Call(self.number, self.arguments)
        for name in self._saved:
            setattr(call, name, getattr(self, name))
        return call


Function = Callable[..., CallResult]
F = TypeVar("F", bound=Function)


class Entry(NamedTuple):
    """One line of the table."""

    number: int
    name: str
    arguments: tuple[Argument, ...]
    function: Function
    traced: bool
    arity: int

    @property
    def summary(self) -> str:
        """What a guest gets, in a sentence."""
        return (self.function.__doc__ or "").partition("\n")[0]

    def show(self, guest: Guest, call: Call, result: int) -> str:
        """The call as --strace prints it: name, arguments, result."""
        values = {argument.name: value for argument, value in zip(self.arguments, call.arguments, strict=False)}
        values["result"] = result
        shown = ", ".join(argument.show(guest, values) for argument in self.arguments)
        return f"{self.name}({shown}) = {show_result(result)}"


def show_result(result: int) -> str:
    """A result as strace prints it."""
    if -4096 < result < 0:
        return f"-1 {errno.errorcode.get(-result, -result)}"
    return hex(result) if result > 0xFFFFF else str(result)


TABLE: dict[int, Entry] = {}


def hypercall(number: int, name: str, *arguments: Argument, traced: bool = False) -> Callable[[F], F]:
    """Declare that a function answers a system call (arch/x86/entry/syscalls/syscall_64.tbl), or one of memvm's own.

    Those of memvm's own are numbered from OWN_CALLS, where Linux has none.
    """

    def declare(function: F) -> F:
        if number in TABLE:
            raise ValueError(f"system call {number} is declared twice: {TABLE[number].name} and {name}")
        TABLE[number] = Entry(number, name, arguments, function, traced, len(arguments))
        return function

    return declare


NEVER_DENIED = frozenset(("exit", "exit_group", "rt_sigreturn"))
"""Calls without which a program can neither end nor go on."""


def numbers_of(names: Collection[str]) -> frozenset[int]:
    """The numbers of the calls with these names, and of those that are never denied."""
    return frozenset(entry.number for entry in TABLE.values() if entry.name in names or entry.name in NEVER_DENIED)


def signed(value: int, bits: int = 64) -> int:
    """A register's value as a signed number of so many bits."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value
