"""A thread of the guest, as the manager sees it: all that belongs to one vCPU beside its registers."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from memvm.linux.threads import cpu_time
from memvm.machine.callresult import CallError
from memvm.machine.signal_frame import SS_AUTODISARM, SS_DISABLE, SS_ONSTACK, STACK
from memvm.machine.signals import UNMASKABLE, SignalQueue, bit

if TYPE_CHECKING:
    from memvm.files.description import Description
    from memvm.machine.hypercalls.table import Call

_MINSIGSTKSZ = 2048
MOST_THREADS = 512
"""Threads that a guest may have."""
LONGEST_NAME = 15
"""Bytes of a thread's name, which the kernel cuts (TASK_COMM_LEN in include/linux/sched.h, less the NUL)."""


class GuestThread:
    """One thread. What changes it holds the machine's lock."""

    def __init__(self, tid: int, vcpu: int = 0) -> None:
        self.tid = tid
        """What the guest takes for its id; the same after every restore."""
        self.vcpu = vcpu
        """Its kernel id, in this life."""
        self.mask = 0
        """The signals that it blocks."""
        self.mask_afterwards: int | None = None
        """What it blocks once the call has ended that blocks others meanwhile (sigsuspend, ppoll)."""
        self.signals = SignalQueue()
        self.alternate_stack = b""
        self.clear_child_tid = 0
        self.robust_list = (0, 0)
        self.name = b""
        """The file's that it runs, or as prctl(PR_SET_NAME) gives it."""
        self.blocked: Call | None = None
        """The call that it waits in, or whose answer it has not heard yet."""
        self.cpu_before = 0
        """CPU time used in earlier lives, in ns."""
        self.notification = 0
        """Of that call, while it waits for its answer."""

    def cpu_time(self) -> int:
        """CPU time that it has used in all its lives, in ns."""
        try:
            return self.cpu_before + (cpu_time(self.vcpu) if self.vcpu else 0)
        except OSError:  # the process has gone, and its clocks with it
            return self.cpu_before

    @property
    def awaits(self) -> int:
        """The signals that its call waits for (sigtimedwait)."""
        return self.blocked.awaits if self.blocked is not None else 0

    def waits_for(self, what: Description) -> bool:
        """Whether its call waits to be told of a change of this."""
        return self.blocked is not None and what in self.blocked.told_of

    def takes(self, number: int) -> bool:
        """Whether it does not block a signal."""
        return not self.mask & bit(number)

    def block_meanwhile(self, mask: int) -> None:
        """Block other signals until the present call has ended."""
        if self.mask_afterwards is None:
            self.mask_afterwards = self.mask
            self.mask = mask & ~UNMASKABLE

    def set_alternate_stack(self, stack: bytes) -> None:
        """Set the stack for handlers, a stack_t. Raises CallError for one that cannot be."""
        start, flags, size = STACK.unpack(stack)
        mode = flags & ~SS_AUTODISARM
        if mode not in (0, SS_ONSTACK, SS_DISABLE):
            raise CallError(errno.EINVAL)
        if mode == SS_DISABLE:
            self.alternate_stack = b""
            return
        if size < _MINSIGSTKSZ:
            raise CallError(errno.ENOMEM)
        self.alternate_stack = STACK.pack(start, flags & SS_AUTODISARM, size)

    def block_as_before(self) -> None:
        """The call has ended that blocked other signals, if it did."""
        if self.mask_afterwards is not None:
            self.mask, self.mask_afterwards = self.mask_afterwards, None
