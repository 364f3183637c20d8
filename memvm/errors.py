"""Every error that memvm raises for a reason that a person can act on.

An error says what failed, on which guest and page where there is one, and what to try (`hint`).
The command line prints it as two lines and exits with the class's `exit_code`; a traceback appears
only with `-v`. Codes follow sysexits.h (64 to 78) where it has a word for the case, so that they
stay clear of what guests return by habit; 124 is what timeout(1) returns.
"""

from __future__ import annotations


class MemvmError(Exception):
    """Base of all memvm errors: a message, and optionally what to try."""

    exit_code = 70  # EX_SOFTWARE

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(MemvmError):
    """The command line or an argument of the Python interface makes no sense."""

    exit_code = 64  # EX_USAGE


class ImageError(MemvmError):
    """The program to run is not an ELF file that this machine can load."""

    exit_code = 65  # EX_DATAERR


class CheckpointError(MemvmError):
    """A checkpoint file is damaged, hostile, of another version, or does not fit this machine."""

    exit_code = 65  # EX_DATAERR


class RecordingError(MemvmError):
    """A recording of a trace is damaged from its beginning, of another version, or none at all."""

    exit_code = 65  # EX_DATAERR


class NoSuchGuest(MemvmError):
    """No running guest has this name."""

    exit_code = 66  # EX_NOINPUT


class HostError(MemvmError):
    """This machine lacks, or forbids, something that is needed."""

    exit_code = 69  # EX_UNAVAILABLE


class GuestStateError(MemvmError):
    """The guest is not in a state in which this can be done (ended, paused, being saved)."""

    exit_code = 75  # EX_TEMPFAIL


class SaveError(MemvmError):
    """A checkpoint or a recording could not be written; the guest goes on, and an old checkpoint is whole."""

    exit_code = 74  # EX_IOERR


class ControlError(MemvmError):
    """A manager could not be spoken to, or said something that makes no sense."""

    exit_code = 76  # EX_PROTOCOL


class TimeLimitExceeded(MemvmError):
    """The guest ran longer than its time limit, and was ended."""

    exit_code = 124


class SettingRefused(MemvmError):
    """A security setting of the guest does not allow this, or must not be changed."""

    exit_code = 77  # EX_NOPERM


class AttestationError(MemvmError):
    """Evidence, a token, a reference value or a key is not what it has to be, or a verifier says no."""

    exit_code = 65  # EX_DATAERR


class DiskError(MemvmError):
    """An encrypted disk is damaged, of another kind than expected, or not to be opened with this key."""

    exit_code = 65  # EX_DATAERR


class BadSector(MemvmError):
    """A sector of a disk is not what was last written there, or could not be read or written."""

    exit_code = 74  # EX_IOERR


class BadPage(MemvmError):
    """A page of guest RAM could not be brought back with its right contents."""

    exit_code = 74  # EX_IOERR

    def __init__(self, page: int, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.page = page
