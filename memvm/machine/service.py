"""The service thread: a second thread of the guest's process, which drops page-table entries while the guest runs.

Only a process itself can drop entries of its mapping (madvise(MADV_DONTNEED); process_madvise refuses it), and for a
gigabyte that takes 38 to 100 ms: the guest would stand still if it were made to call it. So there is a thread of
memvm's in its process. It runs a loop of a few instructions in the stub's read-only page, uses no memory, and blocks
all signals. Like the guest it makes no system call that the manager has not let run:

    ask       a notification; the answer says which pages to drop, and is given when there are any
    madvise   a notification too, which is answered with "go on" because it comes from this thread

The thread is not traced: a stop of the guest leaves it alone. It is started when it is first needed, costs nothing
while nobody needs it, and ends with the process. The guest could jump to its code, and would make hypercalls like any
others.

An ask that is interrupted (the process was stopped and continued from outside) comes again; a count of calls made,
which comes with it, tells whether the last piece of work is done.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Sequence

from memvm.errors import GuestStateError, HostError
from memvm.linux import ptrace
from memvm.linux.seccomp import Listener, Notification
from memvm.linux.threads import cpu_time
from memvm.machine.clocks import Clocks
from memvm.machine.stub_image import ASK, MADVISE, SERVICE_COUNT_BITS
from memvm.machine.tracer import Tracer
from memvm.memory.engine import GuestGone
from memvm.memory.pages import PageRun
from memvm.memory.ram import GuestRam
from memvm.units import PAGE_SIZE

_SLICE_PAGES = 8192
"""Pages dropped by one call: a millisecond or three, for which whoever changes mappings has to wait."""
_MADV_DONTNEED = 4


class ServiceThread:
    """The service thread of one guest."""

    def __init__(self, ram: GuestRam, tracer: Tracer, clocks: Clocks, cpus: set[int]) -> None:
        """It runs on any of `cpus`."""
        self._ram, self._tracer, self._clocks, self._cpus = ram, tracer, clocks, cpus
        self.listener: Listener | None = None
        """Where its calls arrive; whoever reads them hands them to `hear`."""
        self.thread = 0
        """Its kernel id, once it was started."""
        self._turn = threading.Lock()
        """Held by who has it work."""
        self._changed = threading.Condition()
        self._asking = 0
        """The notification of an ask that has no answer yet."""
        self._pieces: deque[PageRun] = deque()
        """What is to be dropped, the piece that was given to the thread included."""
        self._given = False
        self._calls = 0
        self._over = False

    def drop(self, runs: Sequence[PageRun]) -> None:
        """Drop the page-table entries of these pages; when it returns, the next access to each is a fault.

        Waits for the thread that reads notifications, which may wait for the machine's lock: do not hold that. On the
        tracer's thread, where the guest stands still anyway, the guest itself is made to call. Raises GuestGone.
        """
        pieces = [
            PageRun(first, min(_SLICE_PAGES, run.end - first))
            for run in runs
            for first in range(run.first, run.end, _SLICE_PAGES)
        ]
        try:
            if self._tracer.is_current():
                for piece in pieces:
                    self._tracer.stub.call_in_between(MADVISE, *self._range(piece), _MADV_DONTNEED)
                return
            with self._turn:
                if not self.thread:
                    self._start()
                self._have_dropped(pieces)
                self._clocks.not_the_guests = self._cpu_time()
        except (GuestStateError, ptrace.ThreadGone) as error:
            raise GuestGone from error

    def _range(self, run: PageRun) -> tuple[int, int]:
        return self._ram.base + run.first * PAGE_SIZE, run.count * PAGE_SIZE

    def _start(self) -> None:
        with self._changed:  # whoever hears its first call waits until its id is known
            try:
                self.thread = self._tracer.call(self._tracer.stub.start_service)
            except OSError as error:
                raise HostError(
                    f"cannot start a thread in the guest's process: {error.strerror}",
                    hint="the limit of processes may be reached: ulimit -u",
                ) from error
        with contextlib.suppress(OSError):  # it stays on the guest's CPU, and is slower
            os.sched_setaffinity(self.thread, self._cpus)

    def _have_dropped(self, pieces: list[PageRun]) -> None:
        with self._changed:
            self._pieces.extend(pieces)
            self._give()
            while self._pieces and not self._over:
                self._changed.wait()
            if self._over:
                raise GuestGone

    def _give(self) -> None:
        assert self.listener is not None
        if self._asking and self._pieces and not self._given:
            address, size = self._range(self._pieces[0])
            work = address // PAGE_SIZE << SERVICE_COUNT_BITS | size // PAGE_SIZE
            self._given = self.listener.answer(self._asking, work)
            self._asking = 0  # answered, or withdrawn: then it comes again

    def hear(self, notification: Notification) -> bool:
        """Take a call that is not the vCPU's; False if it is not the service thread's either."""
        with self._changed:
            if notification.tid != self.thread:
                return False
            assert self.listener is not None
            if notification.number == MADVISE:
                self.listener.let_run(notification.id)
            elif notification.number == ASK:
                self._asked(notification)
            else:
                raise RuntimeError(f"the service thread made system call {notification.number}")
        return True

    def _asked(self, notification: Notification) -> None:
        calls, result = notification.arguments[:2]
        self._asking = notification.id
        if calls != self._calls:
            self._calls = calls
            if result:
                raise RuntimeError(f"madvise in the guest failed: {os.strerror((1 << 64) - result)}")
            self._pieces.popleft()
            if not self._pieces:
                self._changed.notify_all()
        self._given = False  # and if nothing was made, it was interrupted after the answer and never saw it
        self._give()

    def _cpu_time(self) -> int:
        """Nanoseconds of CPU time that the thread has used."""
        try:
            return cpu_time(self.thread)
        except OSError:  # it has gone with the guest
            return self._clocks.not_the_guests

    def end(self) -> None:
        """The guest has ended: nobody waits any more."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
