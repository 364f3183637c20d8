"""What a guest has asked a key broker is answered to the call that asked, whatever became of others."""

from __future__ import annotations

import select
import threading
from types import SimpleNamespace
from typing import Any

from memvm.machine.callresult import BLOCKED
from memvm.machine.hypercalls.broker import _answered


class Asking:
    """A guest whose threads ask; nobody is answered before `answers` is set."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.written: list[bytes] = []
        memory = SimpleNamespace(write=lambda address, data: self.written.append(data))
        self.guest: Any = SimpleNamespace(broker_inquiries={}, tell=lambda message: None, memory=memory)

    def call(self, thread: int, about: str) -> Any:
        """Carry the call out once."""
        call: Any = SimpleNamespace(thread=SimpleNamespace(tid=thread), waits_for={})
        return _answered(self.guest, call, 0x1000, lambda: self._ask(about), about)

    def _ask(self, about: str) -> bytes:
        self.answers.wait()
        return about.encode()

    def call_until_answered(self, thread: int, about: str) -> None:
        while self.call(thread, about) is BLOCKED:
            waiting = self.guest.broker_inquiries[thread]
            select.select([waiting.fd], [], [])


def test_each_thread_gets_its_own_answer() -> None:
    asking = Asking()
    assert asking.call(1, "one") is asking.call(2, "two") is BLOCKED
    asking.answers.set()
    asking.call_until_answered(2, "two")
    asking.call_until_answered(1, "one")
    assert asking.written == [b"two", b"one"]
    assert asking.guest.broker_inquiries == {}


def test_what_an_interrupted_call_has_left_is_no_answer_for_the_next_one() -> None:
    asking = Asking()
    assert asking.call(1, "before the signal") is BLOCKED
    asking.answers.set()
    asking.call_until_answered(1, "afterwards")
    assert asking.written == [b"afterwards"]
    assert asking.guest.broker_inquiries == {}
