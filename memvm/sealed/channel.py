"""One end of the connection between a manager and the platform of its sealed guest: asks, and is asked.

A thread of its caller's receives (`serve`); each question that comes is answered in a thread of its own, so that a long
one (a save, the wait for the guest's end) keeps nobody waiting.
"""

from __future__ import annotations

import array
import os
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress

from memvm.errors import ControlError, GuestStateError, HostError, MemvmError
from memvm.linux.own_threads import Thread
from memvm.manager.protocol import error_from_json, error_to_json
from memvm.sealed.protocol import ANSWERS, MAX_MESSAGE, MOST_DESCRIPTORS, Json, Kind, Message

MOST_QUESTIONS = 64
"""That are under way at once."""
_ROOM = MOST_DESCRIPTORS + 2
"""Descriptors for which there is room: one too many has to be seen to be refused."""

Answerer = Callable[[Message, Sequence[int]], Json]
"""Answers a question; gets the descriptors that came with it, and closes them. Raises MemvmError."""


class Channel:
    """One end. `ask` may be called from any thread."""

    def __init__(self, connection: socket.socket, asked: Iterable[Kind], answer: Answerer) -> None:
        """`asked` are the kinds of questions that the other end may ask here."""
        self._connection = connection
        self._asked = frozenset(asked)
        self._answer = answer
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._number = 0
        self._waiting: dict[int, Future[Json]] = {}
        self._answering: set[int] = set()
        self._gone: MemvmError | None = None

    def ask(self, kind: Kind, fields: Json | None = None, descriptors: Sequence[int] = ()) -> Json:
        """Ask the other end, and wait for the answer. Raises what it answers with, and ControlError if it has gone."""
        answer: Future[Json] = Future()
        with self._lock:
            if self._gone is not None:
                raise self._gone
            self._number += 1
            number = self._number
            self._waiting[number] = answer
        try:
            self._send(Message(kind, number, fields or {}, len(descriptors)), descriptors)
        except BaseException:
            with self._lock:
                self._waiting.pop(number, None)
            raise
        return answer.result()

    def _send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        ancillary = []
        if descriptors:
            ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors)))
        try:
            with self._sending:
                self._connection.sendmsg([message.pack()], ancillary)
        except OSError as error:
            raise ControlError(f"the other end of a sealed guest cannot be spoken to: {error.strerror}") from error

    def serve(self) -> None:
        """Receive until the other end has gone. Raises ControlError if it says what makes no sense."""
        gone: MemvmError = GuestStateError("the sealed guest has gone")
        try:
            while (received := self._receive()) is not None:
                self._take(*received)
        except ControlError as error:
            gone = error
            raise
        finally:
            self._end(gone)

    def _receive(self) -> tuple[Message, Sequence[int]] | None:
        room = socket.CMSG_SPACE(_ROOM * array.array("i").itemsize)
        try:
            data, ancillary, flags, _ = self._connection.recvmsg(MAX_MESSAGE, room, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            return None
        descriptors = array.array("i")
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
        try:
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise ControlError("a message between manager and platform that is too long")
            if not data and not descriptors:
                return None
            message = Message.unpack(data, len(descriptors))
        except ControlError:
            close_all(descriptors)
            raise
        return message, descriptors

    def _take(self, message: Message, descriptors: Sequence[int]) -> None:
        if message.kind in ANSWERS:
            with self._lock:
                waiting = self._waiting.pop(message.number, None)
            if waiting is None:
                raise ControlError("an answer between manager and platform that nobody asked for")
            if message.kind is Kind.RESULT:
                waiting.set_result(message.fields["fields"])
            else:
                waiting.set_exception(error_from_json(message.fields["fields"]))
            return
        with self._lock:
            known = message.kind in self._asked and message.number not in self._answering
            full = len(self._answering) >= MOST_QUESTIONS
            if known and not full:
                self._answering.add(message.number)
        if not known or full:
            close_all(descriptors)
            raise ControlError(f"{message.kind.name}: a question that must not be asked, or one too many")
        name = f"answers {message.kind.name.lower()}"
        Thread(target=self._answer_one, args=(message, descriptors), name=name, daemon=True).start()

    def _answer_one(self, message: Message, descriptors: Sequence[int]) -> None:
        kind, fields = Kind.ERROR, error_to_json(HostError("a sealed guest's question could not be answered"))
        try:
            kind, fields = Kind.RESULT, self._answer(message, descriptors)
        except MemvmError as error:
            fields = error_to_json(error)
        except OSError as error:
            fields = error_to_json(HostError(error.strerror or str(error)))
        finally:  # also of an exception that nobody foresaw: the thread's end tells of that on standard error
            with self._lock:
                self._answering.discard(message.number)
            self._send_answer(kind, message.number, fields)

    def _send_answer(self, kind: Kind, number: int, fields: Json) -> None:
        answer = Message(kind, number, {"fields": fields})
        try:
            answer.pack()
        except ControlError as error:  # whoever asked must not wait for ever
            answer = Message(Kind.ERROR, number, {"fields": error_to_json(error)})
        with suppress(ControlError):  # it has gone, which `serve` notices
            self._send(answer)

    def _end(self, gone: MemvmError) -> None:
        with self._lock:
            self._gone = gone
            waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            future.set_exception(gone)

    @property
    def is_open(self) -> bool:
        """Whether questions are answered: the other end is there."""
        with self._lock:
            return self._gone is None

    def hang_up(self) -> None:
        """End the connection: `serve` returns, here and at the other end."""
        with suppress(OSError):  # not connected any more is what was wanted
            self._connection.shutdown(socket.SHUT_RDWR)


def close_all(descriptors: Iterable[int]) -> None:
    """Close each of them."""
    for fd in descriptors:
        os.close(fd)
