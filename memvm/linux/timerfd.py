"""timerfd_create(2): a descriptor that becomes readable at a time, to the nanosecond.

poll(2) through Python waits whole milliseconds, and the kernel adds its timer slack; a timer does neither.
"""

from __future__ import annotations

import ctypes
import os
import struct
import time

from memvm.linux.libc import check, libc

# include/uapi/linux/timerfd.h; the flags are O_NONBLOCK and O_CLOEXEC
_TFD_TIMER_ABSTIME = 1
_SETTING = struct.Struct("=qqqq")  # struct itimerspec: the interval, then the time of the first expiry
_SECOND = 1_000_000_000
_FAR = (1 << 62) // _SECOND


class Timer:
    """One timer of CLOCK_MONOTONIC. `fd` polls as readable from the time that was set until it is set anew."""

    def __init__(self) -> None:
        flags = os.O_NONBLOCK | os.O_CLOEXEC
        self.fd = check(libc.timerfd_create(time.CLOCK_MONOTONIC, flags), "timerfd_create")

    def set(self, when: int) -> None:
        """Expire at this CLOCK_MONOTONIC, in ns; at once if it has passed."""
        seconds, nanoseconds = divmod(max(when, 1), _SECOND)
        self._set(min(seconds, _FAR), nanoseconds)

    def clear(self) -> None:
        """Expire no more."""
        self._set(0, 0)

    def _set(self, seconds: int, nanoseconds: int) -> None:
        setting = ctypes.create_string_buffer(_SETTING.pack(0, 0, seconds, nanoseconds), _SETTING.size)
        check(libc.timerfd_settime(self.fd, _TFD_TIMER_ABSTIME, setting, None), "timerfd_settime")

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.fd)
