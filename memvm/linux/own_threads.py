"""Threads of this process, which the kernel may refuse: a user and a container may have so many (clone(2), EAGAIN).

Python tells it as a RuntimeError, and has a thread that never ran not be joined.
"""

from __future__ import annotations

import resource
import threading

from memvm.errors import HostError


class Thread(threading.Thread):
    """A thread that says in words why it cannot be started."""

    def start(self) -> None:
        """Raises HostError if there may be no more threads."""
        try:
            super().start()
        except RuntimeError as error:
            if self.ident is not None:
                raise
            raise too_many(f"the thread {self.name!r}") from error

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end, if it was started."""
        if self.ident is not None:
            super().join(timeout)


def too_many(what: str) -> HostError:
    """The error for a thread, or a process, that the kernel does not start since there are too many (EAGAIN)."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    most = "" if limit == resource.RLIM_INFINITY else f"; this user may have {limit} (ulimit -u)"
    return HostError(
        f"{what} cannot be started: there are too many processes and threads already{most}",
        hint="a guest takes about ten, most of them threads of its manager: end others, or raise the limit, the "
        "user's or the container's",
    )
