"""Asking all managers again and again, without ever waiting for one that does not answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from memvm.errors import ControlError, GuestStateError, NoSuchGuest
from memvm.linux.own_threads import Thread
from memvm.machine.config import GuestStatus
from memvm.manager.client import connect, running
from memvm.manager.rundir import Entry

ANSWER_TIME = 2.0
"""Seconds after which a question is given up; the next look asks again."""
LOOK_TIME = 0.25
"""Seconds that a look waits for answers; what comes later is seen by the next one."""


class Answer(NamedTuple):
    """What a manager said of its guest."""

    status: GuestStatus
    taken: float
    """When, in seconds of time.monotonic()."""


@dataclass(frozen=True)
class Sighting:
    """A running guest: the last two answers of its manager, as far as there are any."""

    entry: Entry
    latest: Answer | None
    before: Answer | None
    answering: bool
    """Whether the last question was answered in time."""


def ask(entry: Entry) -> GuestStatus:
    """A guest's figures. Raises NoSuchGuest, GuestStateError and ControlError."""
    with connect(entry.name, ANSWER_TIME) as client:
        return client.status(ANSWER_TIME)


class Watcher:
    """Looks at all guests. For one thread; it asks each manager in a thread of its own, which ends by itself."""

    def __init__(
        self,
        entries: Callable[[], Sequence[Entry]] = running,
        question: Callable[[Entry], GuestStatus] = ask,
        look_time: float = LOOK_TIME,
    ) -> None:
        self._entries = entries
        self._question = question
        self._look_time = look_time
        self._guests: dict[tuple[str, int], _Watched] = {}
        self._changed = threading.Condition()

    def look(self) -> list[Sighting]:
        """All guests that run now, by name. Raises what a question raised that memvm does not expect."""
        entries = {(entry.name, entry.pid): entry for entry in self._entries()}
        with self._changed:
            # A guest that was restarted under its name is another one: its counters began again.
            self._guests = {key: self._guests.get(key) or _Watched(entry) for key, entry in entries.items()}
            guests = list(self._guests.values())
            for guest in guests:
                if not guest.asked:
                    guest.asked = True
                    Thread(target=self._ask, args=(guest,), name="asks", daemon=True).start()
            deadline = time.monotonic() + self._look_time
            while any(guest.asked for guest in guests) and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            for guest in guests:
                if guest.failure is not None:
                    raise guest.failure
            return [guest.sighting() for guest in guests if not guest.gone]

    def _ask(self, guest: _Watched) -> None:
        answer, gone, failure = None, False, None
        try:
            answer = Answer(self._question(guest.entry), time.monotonic())
        except (NoSuchGuest, GuestStateError):
            gone = True
        except ControlError:
            pass  # it runs and does not answer, which `answering` says
        except BaseException as error:  # noqa: BLE001 - the next look raises it
            failure = error
        with self._changed:
            guest.asked, guest.gone, guest.failure = False, gone, failure
            guest.answered = answer is not None
            if answer is not None:
                guest.before, guest.latest = guest.latest, answer
            self._changed.notify_all()


class _Watched:
    """A guest, and what is known of it."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.latest: Answer | None = None
        self.before: Answer | None = None
        self.asked = False
        """A question is under way."""
        self.answered = False
        self.gone = False
        self.failure: BaseException | None = None

    def sighting(self) -> Sighting:
        return Sighting(self.entry, self.latest, self.before, self.answered and not self.asked)
