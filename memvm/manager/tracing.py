"""The trace request: what a trace hears of is sent to who asked for it, until that has enough, or the guest ends.

    client → manager    {"do": "trace", "pages": [[first, count], ...], "access": "rw", "again": 0.1,
                         "instruction": true, "events": 1000, "seconds": 5.0}
    manager → client    {"regions": [[start, end, "heap"], ...]}      what RAM is for, first and when it has changed
    manager → client    {"events": [[page, access, vcpu, time, instruction], ...], "dropped": 0}   any number of times
    manager → client    {"ok": {"events": 1000, "dropped": 0}}

All but "do" may be left out, or null: then it is all pages, both accesses, each page once, without instructions, for
ever. A client that reads too slowly loses events, and is told how many; one that goes away ends the trace.
"""

from __future__ import annotations

import select
import socket
import time
from typing import Any

from memvm.errors import ControlError, GuestStateError, UsageError
from memvm.manager.guest import ManagedGuest, Regions
from memvm.manager.protocol import Json, encode
from memvm.memory.engine import GuestGone
from memvm.memory.pages import PageRun
from memvm.memory.traces import Access, Trace, TraceEvent

ACCESSES = {"r": Access.READ, "w": Access.WRITE, "rw": Access.READ | Access.WRITE}
_INTERVAL = 0.05
"""Seconds between two looks at what was heard."""
_REGIONS_INTERVAL = 1.0
"""Seconds between two looks at what parts of RAM are for."""
_BATCH = 4096
"""Events in one line: at most a quarter of what a line may have."""


def trace(guest: ManagedGuest, name: str, connection: socket.socket, ended: int, request: Json) -> Json:
    """Carry the request out; `ended` is a descriptor that is readable once the guest has ended."""
    runs = _runs(request.get("pages"), guest.traces.page_count)
    access = request.get("access") or "rw"
    if access not in ACCESSES:
        raise UsageError(f"a trace of {access!r:.20} accesses", hint="r, w, or rw")
    again, seconds = _positive(request, "again"), _positive(request, "seconds")
    wanted = request.get("events")
    if wanted is not None and (type(wanted) is not int or wanted < 1):
        raise UsageError(f"a trace of {wanted!r:.20} events")
    try:
        with guest.traces.add(
            runs, ACCESSES[access], rearm=again, instruction=request.get("instruction") is True
        ) as traced:
            return _send(traced, guest, connection, ended, wanted, seconds)
    except GuestGone:
        raise GuestStateError(f"guest {name!r} has ended") from None
    except ValueError as error:
        raise UsageError(f"trace: {error}") from None


def _send(
    traced: Trace,
    guest: ManagedGuest,
    connection: socket.socket,
    ended: int,
    wanted: int | None,
    seconds: float | None,
) -> Json:
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    poll.register(connection, select.POLLRDHUP)
    until = None if seconds is None else time.monotonic() + seconds
    from memvm.recording.format import MAX_REGIONS  # for traces alone

    sent = lost = 0
    assert traced.ring is not None
    known: Regions = []
    look_again = 0.0
    while True:
        guest.settings.require("trace")
        if (now := time.monotonic()) >= look_again:
            look_again = now + _REGIONS_INTERVAL
            if known != (known := guest.regions()[:MAX_REGIONS]):
                connection.sendall(encode({"regions": known}))
        left = _INTERVAL if until is None else min(_INTERVAL, max(0.0, until - time.monotonic()))
        ready = {fd for fd, _ in poll.poll(left * 1000)}
        over = ended in ready or (until is not None and time.monotonic() >= until)
        events, dropped = traced.ring.take()
        if wanted is not None and len(events) >= wanted - sent:
            events, over = events[: wanted - sent], True
        _send_events(connection, events, dropped)
        sent, lost = sent + len(events), lost + dropped
        if over:
            return {"events": sent, "dropped": lost}
        if connection.fileno() in ready:
            raise ControlError("the client went away")


def _send_events(connection: socket.socket, events: list[TraceEvent], dropped: int) -> None:
    for start in range(0, len(events), _BATCH):
        connection.sendall(encode({"events": events[start : start + _BATCH], "dropped": dropped}))
        dropped = 0


def _runs(pages: Any, page_count: int) -> list[PageRun]:
    if pages is None:
        return [PageRun(0, page_count)]
    if not isinstance(pages, list):
        raise UsageError("the pages of a trace have to be a list")
    runs = []
    for pair in pages:
        if not (isinstance(pair, list) and [type(number) for number in pair] == [int, int] and pair[1] > 0):
            raise UsageError(f"pages of a trace that make no sense: {pair!r:.40}")
        runs.append(PageRun(*pair))
    return runs


def _positive(request: Json, key: str) -> float | None:
    value = request.get(key)
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 < value < 1e9:
        raise UsageError(f"a trace with {key} {value!r:.20}")
    return float(value)
