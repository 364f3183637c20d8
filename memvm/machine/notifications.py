"""The hypercall loop: receives the guest's system calls and answers them, on a thread of its own.

A call that must wait stays unanswered; the loop then also waits for what the call waits for, and carries it out again.
When the guest is interrupted, the kernel withdraws the notification, and notifies the same call anew when the guest
goes on. So what a call has done is remembered (GuestThread.blocked): an answer that nobody heard is given to the
repeat, and nothing is done twice.

A thread for which a signal waits is interrupted before it is answered. Whether it hears the answer or not, it stops
before it goes on, and the signal is delivered then, after the call. The guest's timers are awaited here too.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable

from memvm.linux.own_threads import Thread
from memvm.linux.seccomp import AUDIT_ARCH_X86_64, Listener, Notification
from memvm.linux.timerfd import Timer
from memvm.machine.callresult import BLOCKED, CallResult
from memvm.machine.guest import Guest
from memvm.machine.hypercalls.table import Call
from memvm.machine.service import ServiceThread
from memvm.machine.thread import GuestThread

FOREIGN_CALL = 1 << 32
"""Added to the number of a call that was not made by the x86-64 convention."""


class HypercallLoop:
    """Answers the notifications of one guest."""

    def __init__(
        self,
        listener: Listener,
        guest: Guest,
        lock: threading.Lock,
        perform: Callable[[Call], CallResult],
        failed: Callable[[BaseException], None],
        service: ServiceThread,
    ) -> None:
        """Calls of a thread that is not the guest's go to `service`."""
        self._service = service
        service.listener = listener
        self._listener, self._guest, self._lock = listener, guest, lock
        self._perform, self._failed = perform, failed
        self._threads = guest.by_vcpu
        self._waiting: dict[int, GuestThread] = {}
        """Threads whose calls wait, by kernel id."""
        self._changed = False
        """Whether there is something else to wait for than the last time."""
        self._over = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(listener.fd, select.POLLIN)
        self._poll.register(self._wake, select.POLLIN)
        self._timer = Timer()
        self._timer_due: int | None = None
        self._poll.register(self._timer.fd, select.POLLIN)
        self._polled: dict[int, int] = {}
        self._thread: threading.Thread | None = None

    def start(self, settle: Callable[[], None]) -> None:
        """Start the thread; `settle` brings it to the guest's CPU."""
        self._thread = Thread(target=self._run, args=(settle,), name="hypercalls", daemon=True)
        self._thread.start()

    def poke(self) -> None:
        """Have the loop look at Guest.woken, and at the timers; from any other thread."""
        os.eventfd_write(self._wake, 1)

    def _run(self, settle: Callable[[], None]) -> None:
        settle()
        poll, listener, guest, timers = self._poll.poll, self._listener.fd, self._guest, self._guest.timers
        try:
            while True:
                if self._changed or timers.changed:
                    self._watch()
                ready = poll()
                others = False
                for fd, events in ready:
                    if fd != listener:
                        others = True
                    elif not events & select.POLLIN:  # hung up: the guest has gone
                        return
                    else:
                        notification = self._listener.receive()
                        if notification is not None:
                            self._answer(notification)
                if others:
                    self._look_around({fd for fd, _ in ready})
                if self._over:
                    return
                if guest.woken:
                    self._try_woken()
        except BaseException as error:  # noqa: BLE001  # the machine ends the guest and reports it
            self._failed(error)
        finally:
            self._service.end()

    def _answer(self, notification: Notification) -> None:
        thread = self._threads.get(notification.tid)
        if thread is None and self._service.hear(notification):
            return
        if not self._lock.acquire(blocking=False):
            self._lock.acquire()
            if not self._listener.is_waiting(notification.id):  # frozen meanwhile: it will come again
                self._lock.release()
                return
        try:
            if thread is None:
                raise RuntimeError(f"a call of thread {notification.tid}, which is nobody's")
            if thread.notification:
                self._wait_no_more(thread)
            number, arguments = notification.number, notification.arguments
            if notification.arch != AUDIT_ARCH_X86_64:
                number += FOREIGN_CALL
            call = thread.blocked
            if call is None or not call.same_as(number, arguments):
                call = Call(number, arguments, thread)
                result = self._perform(call)
                self._guest.count_call(thread)
            else:
                result = self._perform(call) if call.answer is None else call.answer
            self._settle(call, notification.id, result)
        finally:
            self._lock.release()

    def _settle(self, call: Call, identity: int, result: CallResult) -> None:
        thread = call.thread
        if result is not BLOCKED:
            thread.block_as_before()
        if self._guest.has_signal(thread):
            self._guest.interrupt(thread)
        if result is BLOCKED:
            thread.blocked, thread.notification = call, identity
            self._waiting[thread.vcpu] = thread
            self._changed = True
        elif self._listener.answer(identity, result):
            thread.blocked = None
        else:
            call.answer = result
            thread.blocked = call

    def _look_around(self, ready: set[int]) -> None:
        """Something else than a call has come: descriptors, a time, or somebody who poked."""
        if self._wake in ready:
            os.eventfd_read(self._wake)
        with self._lock:
            if self._timer.fd in ready:
                self._timer_due = None
                self._changed = True
                self._timer.clear()
            self._guest.send_timers()
            now = self._guest.clocks.monotonic()
            for thread in list(self._waiting.values()):
                call = thread.blocked
                if (
                    call is None
                    or call.waits_for.keys() & ready
                    or (call.deadline is not None and call.deadline <= now)
                ):
                    self._try_again(thread)

    def _try_woken(self) -> None:
        with self._lock:
            woken = self._guest.woken
            while woken:
                self._try_again(woken.pop(0))

    def _try_again(self, thread: GuestThread) -> None:
        identity, call = thread.notification, thread.blocked
        if identity:
            self._wait_no_more(thread)
            if call is not None and call.answer is None and self._listener.is_waiting(identity):
                self._settle(call, identity, self._perform(call))

    def _wait_no_more(self, thread: GuestThread) -> None:
        thread.notification = 0
        self._waiting.pop(thread.vcpu, None)
        self._changed = True

    def _watch(self) -> None:
        """Wait for what the waiting calls, and timers, wait for."""
        with self._lock:
            self._changed = self._guest.timers.changed = False
            due, wanted = self._guest.timers.next_look(), dict[int, int]()
            for thread in self._waiting.values():
                call = thread.blocked
                if call is not None:
                    for fd, events in call.waits_for.items():
                        wanted[fd] = wanted.get(fd, 0) | events
                    if call.deadline is not None:
                        due = call.deadline if due is None else min(due, call.deadline)
            if due is not None:
                due -= self._guest.clocks.monotonic_offset
        if wanted != self._polled:
            for fd in self._polled.keys() - wanted.keys():
                self._poll.unregister(fd)
            for fd, events in wanted.items():
                self._poll.register(fd, events)
            self._polled = wanted
        if due != self._timer_due:
            self._timer_due = due
            if due is None:
                self._timer.clear()
            else:
                self._timer.set(due)

    def stop(self) -> None:
        """End the thread and close the listener; the guest has ended."""
        self._over = True
        os.eventfd_write(self._wake, 1)
        if self._thread is not None:
            self._thread.join()
        os.close(self._wake)
        self._timer.close()
        os.close(self._listener.fd)
