"""A server that forwards to another one, and keeps all that passes: what somebody on the wire sees, and can change."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit


class Forwarder:
    """On loopback; each connection is forwarded, in both directions, until both ends have closed it."""

    def __init__(self, url: str, change: Callable[[bytes], bytes] | None = None) -> None:
        """`url` is the other one's; `change` what is done to its answers."""
        self._change = change
        parts = urlsplit(url)
        self._target = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._passed = bytearray()
        self._threads = [threading.Thread(target=self._accept)]

    @contextmanager
    def running(self) -> Iterator[Forwarder]:
        """While it is entered, it forwards."""
        self._threads[0].start()
        try:
            yield self
        finally:
            self._listener.shutdown(socket.SHUT_RDWR)
            for thread in self._threads:
                thread.join()
            self._listener.close()

    @property
    def passed(self) -> bytes:
        """All that has passed, once it has ended; each direction of a connection after the other, as it came."""
        with self._lock:
            return bytes(self._passed)

    def _accept(self) -> None:
        while True:
            try:
                ours, _ = self._listener.accept()
            except OSError:  # it was shut down
                return
            thread = threading.Thread(target=self._forward, args=(ours,))
            self._threads.append(thread)
            thread.start()

    def _forward(self, ours: socket.socket) -> None:
        with ours, socket.create_connection(self._target) as theirs:
            back = threading.Thread(target=self._copy if self._change is None else self._answer, args=(theirs, ours))
            back.start()
            self._copy(ours, theirs)
            back.join()

    def _answer(self, theirs: socket.socket, ours: socket.socket) -> None:
        """A whole answer, changed; each connection has one."""
        assert self._change is not None
        whole = bytearray()
        while data := theirs.recv(1 << 16):
            whole += data
        with suppress(OSError):  # whoever has gone needs not be told
            ours.sendall(self._change(bytes(whole)))
            ours.shutdown(socket.SHUT_WR)

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        whole = bytearray()
        with suppress(ConnectionError):
            while data := source.recv(1 << 16):
                whole += data
                target.sendall(data)
        with suppress(OSError):  # whoever has gone needs not be told
            target.shutdown(socket.SHUT_WR)
        with self._lock:
            self._passed += whole
