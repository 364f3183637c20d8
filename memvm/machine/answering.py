"""Carries out hypercalls: finds each in the table, and turns what goes wrong in it into what the guest is told."""

from __future__ import annotations

import errno
from collections.abc import Callable

from memvm.errors import BadPage
from memvm.machine.callresult import CallError, CallResult, NotYet
from memvm.machine.config import ExitStatus, RunOptions
from memvm.machine.guest import Guest
from memvm.machine.hypercalls.families import TABLE
from memvm.machine.hypercalls.table import Call, show_result
from memvm.machine.notifications import FOREIGN_CALL
from memvm.machine.space import OutOfMemory
from memvm.say import say

INTERNAL_ERROR = 70
"""EX_SOFTWARE of sysexits.h: the exit status of a guest that was ended because of the manager."""


class Answering:
    """Answers the calls of one guest. The machine's lock is held whenever it does."""

    def __init__(self, guest: Guest, options: RunOptions, failed: Callable[[BaseException], None]) -> None:
        """`failed` ends a guest that must not go on."""
        self._guest, self._options, self._failed = guest, options, failed

    def perform(self, call: Call) -> CallResult:
        """Carry out one hypercall."""
        guest = self._guest
        guest.current = call.thread
        entry = TABLE.get(call.number)
        if entry is None or (entry.traced and call.registers is None):
            # The latter: the guest has jumped to the service thread's code, which nobody has to.
            result: CallResult = self._unknown(call)
        elif guest.allowed_calls is not None and call.number not in guest.allowed_calls:
            result = -errno.EPERM
        else:
            try:
                result = entry.function(guest, call, *call.arguments[: entry.arity])
            except CallError as error:
                result = -error.errno
            except OutOfMemory as error:
                guest.lacked = max(guest.lacked, error.size)
                result = -errno.ENOMEM
            except BadPage as error:
                self._failed(error)
                result = 0
        if self._options.strace and not isinstance(result, NotYet):
            self._print_call(call, result)
        return result

    def _unknown(self, call: Call) -> int:
        number = call.number
        name = f"system call {number}"
        if number >= FOREIGN_CALL:
            name = f"32-bit system call {number - FOREIGN_CALL}"
        self._guest.unknown[name] += 1
        if self._options.strict:
            reason = f"the guest made {name}, which memvm does not answer, and --strict was given"
            self._guest.end(ExitStatus(INTERNAL_ERROR, None, reason))
        return -errno.ENOSYS

    def _print_call(self, call: Call, result: int) -> None:
        entry = TABLE.get(call.number)
        if entry is None:
            shown = ", ".join(hex(value) for value in call.arguments)
            convention = "foreign" if call.number >= FOREIGN_CALL else "unknown"
            text = f"{convention}_{call.number % FOREIGN_CALL}({shown}) = {show_result(result)}"
        else:
            text = entry.show(self._guest, call, result)
        say(text)
