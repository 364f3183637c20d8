"""Something that a guest asked somebody else for, in a thread of its own; the guest waits for a descriptor."""

from __future__ import annotations

import os
from collections.abc import Callable

from memvm.errors import MemvmError
from memvm.linux.own_threads import Thread


class Inquiry:
    """One question. `fd` is readable when it is over."""

    def __init__(self, what: str, ask: Callable[[], bytes], tell: Callable[[str], None], about: object) -> None:
        """`ask` asks, and returns what the guest gets; `tell` hears why it gets nothing, when it asked `what`.

        `about` tells this question from others: a call that was interrupted leaves it to the next one, which may want
        to know something else.
        """
        self._what, self._ask, self._tell, self.about = what, ask, tell, about
        self.answer = b""
        """Empty if there is none."""
        self.fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = Thread(target=self._run, name="inquiry", daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        """Whether the guest need not wait any more."""
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self.answer = self._ask()
        except MemvmError as error:
            self._tell(f"it asked {self._what}, and got nothing: {error.message}")
        except Exception as error:  # noqa: BLE001  # the guest gets nothing, and somebody is told why
            self._tell(f"it asked {self._what}, and that failed: {type(error).__name__}: {error}")
        finally:
            os.eventfd_write(self.fd, 1)

    def close(self) -> None:
        """Wait for the thread, and close the descriptor."""
        self._thread.join()
        os.close(self.fd)
