"""The tracer: the one thread that may ptrace the guest, and its loop over the guest's stops.

Linux lets only the thread that seized a process make ptrace calls, so all of them happen here. Other threads hand
in work with `call`: a function that runs here while the guest stands still. One of its threads is brought to a stop by
a signal of its own (KICK), which it never sees; a stop that is already there serves as well; then all others are
interrupted. That is how a guest is paused, looked at, frozen for a checkpoint, and its mappings changed.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol, TypeVar

from memvm.errors import GuestStateError
from memvm.linux import ptrace
from memvm.linux.own_threads import Thread
from memvm.linux.threads import send_to_thread
from memvm.machine.stub import Stub

T = TypeVar("T")

KICK = signal.SIGURG
"""Stops the guest on the tracer's behalf: its default is to be ignored, so a spare one is harmless."""


class ExitHandler(Protocol):
    """Who answers the guest's stops, on the tracer's thread."""

    # `vcpu` is the thread that stands still, by its kernel id; calls are injected into it.

    def traced_call(self, vcpu: int) -> None:
        """It stands before a system call that changes mappings or registers, or ends it."""

    def kicked(self, vcpu: int) -> None:
        """It was stopped on the tracer's behalf, or somebody's who called `kick`."""

    def signal(self, vcpu: int, info: ptrace.SignalInfo) -> None:
        """A signal is about to be delivered to it; it is dropped when this returns."""

    def ended(self, wait_status: int) -> None:
        """The guest's process is gone."""

    def failed(self, error: BaseException) -> None:
        """Answering went wrong for a reason of the manager's own: the guest must end."""


class Tracer:
    """Runs one guest's stops, on a thread of its own."""

    def __init__(self) -> None:
        self.stub = Stub()
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._handler: ExitHandler | None = None
        self._held = True
        self._running: set[int] = set()
        self._standing: set[int] = set()
        """The guest's threads, by their kernel ids. One that is parked is in neither."""
        self._parked = False
        self._ended = threading.Event()
        self._thread = Thread(target=self._run, name="tracer", daemon=True)
        self._thread.start()

    def is_current(self) -> bool:
        """Whether the calling thread is the tracer."""
        return threading.current_thread() is self._thread

    def call(self, function: Callable[[], T]) -> T:
        """Run a function on the tracer's thread while the guest stands still; its result, or its exception.

        Raises GuestStateError if the guest has ended.
        """
        if self.is_current():
            return function()
        future: Future[T] = Future()

        def work() -> None:
            try:
                future.set_result(function())
            except ptrace.ThreadGone:
                future.set_exception(GuestStateError("the guest has ended"))
            except BaseException as error:  # noqa: BLE001  # whoever asked hears of it
                future.set_exception(error)

        with self._lock:
            if self._ended.is_set():
                raise GuestStateError("the guest has ended")
            self._work.put(work)
        self.kick()
        return future.result()

    def kick(self, vcpu: int = 0) -> None:
        """Have a thread of the guest stop soon, whichever if none is named, and the handler hear of that."""
        if self._handler is not None and self.stub.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                if vcpu and vcpu != self.stub.pid:
                    send_to_thread(self.stub.pid, vcpu, KICK)
                else:
                    signal.pidfd_send_signal(self.stub.pidfd, KICK)

    def add(self, vcpu: int) -> None:
        """A new thread, which stands still, is one of the guest's; on the tracer's thread."""
        self._standing.add(vcpu)

    def park(self) -> None:
        """The thread that is being answered shall not go on, and not end either; on the tracer's thread.

        The process's first thread, that is: without it there would be little to be seen of the process in /proc.
        """
        self._parked = True

    def begin(self, handler: ExitHandler, settle: Callable[[], None]) -> None:
        """Let the guest run for the first time; `settle` is called on the tracer's thread right before."""

        def release() -> None:
            self._handler = handler
            self._held = False
            settle()

        self.call(release)

    def hold(self) -> None:
        """Keep the guest stopped until `release`."""
        self.call(lambda: setattr(self, "_held", True))

    def hold_soon(self, vcpu: int) -> None:
        """The same for who cannot wait for it: this thread, which is being answered, runs no further instruction."""
        self._held = True
        if not self.is_current():  # otherwise the loop sees it next
            self.kick(vcpu)

    def release(self) -> None:
        """Let a held guest go on."""
        self.call(lambda: setattr(self, "_held", False))

    def _run(self) -> None:
        try:
            self._follow()
        finally:
            with self._lock:
                self._ended.set()
            while not self._work.empty():
                work = self._work.get()
                if work is not None:
                    work()

    def _follow(self) -> None:
        while self._handler is None:  # the guest is being made
            work = self._work.get()
            if work is None:
                return
            work()
        self._standing.add(self.stub.pid)
        try:
            while True:
                if self._held or not self._work.empty():
                    self._stop_all()
                    self._do_work()
                self._let_run()
                self._answer(*self.stub.wait_any())
        except ptrace.ThreadGone:
            self._handler.ended(self.stub.wait_status or 0)

    def _stop_all(self) -> None:
        """Bring all threads to a stop, and answer what they stopped for. Raises ThreadGone if the process ends."""
        for vcpu in self._running:
            with contextlib.suppress(ptrace.ThreadGone):  # its end is to be waited for
                ptrace.interrupt(vcpu)
        while self._running:
            self._answer(*self.stub.wait_any())

    def _do_work(self) -> None:
        """Do what others handed in, while all stand still."""
        assert self._handler is not None
        while self._held or not self._work.empty():
            work = self._work.get()
            if work is None:
                return
            self.stub.vcpu = next(iter(self._standing), self.stub.pid)
            work()
        for vcpu in self._standing:  # a call that was injected may have used up a kick
            with contextlib.suppress(ptrace.ThreadGone):
                self._handler.kicked(vcpu)

    def _let_run(self) -> None:
        for vcpu in self._standing:
            with contextlib.suppress(ptrace.ThreadGone):  # SIGKILL came between: the wait says so
                ptrace.resume(vcpu)
        self._running |= self._standing
        self._standing.clear()

    def _answer(self, vcpu: int, status: int) -> None:
        """Answer a thread that has stopped. Raises nothing: what goes wrong ends the guest."""
        assert self._handler is not None
        self._running.discard(vcpu)
        if not os.WIFSTOPPED(status):
            return
        self.stub.vcpu = vcpu
        self._parked = False
        event = ptrace.stop_event(status)
        try:
            if event == ptrace.StopEvent.SECCOMP:
                self._handler.traced_call(vcpu)
            elif event == ptrace.StopEvent.NONE:
                info = ptrace.get_signal_info(vcpu)
                if info.number == KICK and info.code <= 0:
                    self._handler.kicked(vcpu)
                else:
                    self._handler.signal(vcpu, info)
        except ptrace.ThreadGone:
            pass
        except Exception as error:  # noqa: BLE001  # the machine ends the guest and reports it
            self._handler.failed(error)
        if not self._parked:
            self._standing.add(vcpu)

    def kill(self) -> None:
        """End the guest, also one that is held."""
        self.stub.kill()
        self._work.put(None)

    def close(self) -> None:
        """End the guest if it lives, wait for it, and end the thread; idempotent."""
        self.kill()
        self._thread.join()
        if self.stub.pid and self.stub.wait_status is None:  # it never ran
            os.waitpid(self.stub.pid, ptrace.WALL)
        self.stub.close()
