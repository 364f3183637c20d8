"""What a guest is given of the host's files, as it is asked for: which directory, where, and what may be done to it."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from memvm.errors import HostError, UsageError
from memvm.linux.openat2 import open_beneath


class Access(StrEnum):
    """What a guest may do to a directory of the host's."""

    READ = "ro"
    """Read it."""
    LAYER = "rw"
    """Change what it sees of it: changes stay in memory, and go into checkpoints."""
    PASS = "pass"
    """Change it."""


class ViewSpec(NamedTuple):
    """A directory of the host's, and where in the guest's tree it is; both absolute."""

    access: Access
    host: str
    point: str


def parse_view(access: Access, text: str) -> ViewSpec:
    """What "DIRECTORY[:PATH]" stands for; without a path it is where it is on the host. Raises UsageError."""
    host, colon, point = text.partition(":")
    option = f"--{access} {text}"
    if not host or "\0" in text:
        raise UsageError(
            f"{option!r} names no directory", hint=f"write it like --{access} /usr or --{access} data:/data"
        )
    host = os.path.normpath(Path(host).absolute())  # not resolved: it goes by the name that it was given by
    point = point if colon else host
    if not point.startswith("/"):
        raise UsageError(f"{option}: the path in the guest is not absolute", hint=f"--{access} {host}:/{point}")
    return ViewSpec(access, host, os.path.normpath("/" + point.lstrip("/")))


def open_directory(spec: ViewSpec) -> int:
    """A descriptor of the host's directory. Raises UsageError if it is none, HostError."""
    option = f"--{spec.access} {spec.host}"
    try:
        fd = os.open(spec.host, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"{option}: {error.strerror}", hint="give a directory") from error
    except OSError as error:
        raise HostError(f"{option}: {error.strerror}") from error
    try:
        os.close(open_beneath(fd, b".", os.O_PATH))
    except OSError as error:
        os.close(fd)
        raise HostError(
            f"{option}: files cannot be opened safely here (openat2: {error.strerror})",
            hint="it takes Linux 5.6, and a container that lets it be called",
        ) from error
    return fd
