"""The whole table of hypercalls: importing this module imports every family, and that fills the table."""

from __future__ import annotations

from memvm.machine.hypercalls import (  # noqa: F401 - that fills the table
    attestation,
    broker,
    copies,
    descriptors,
    directories,
    disks,
    epoll,
    files,
    futex,
    identity,
    lineage,
    mappings,
    privileges,
    process,
    readiness,
    residence,
    signals,
    socket_messages,
    socket_options,
    sockets,
    streams,
    terminal,
    threads,
    time,
    timers,
)
from memvm.machine.hypercalls.table import TABLE

__all__ = ["TABLE"]
