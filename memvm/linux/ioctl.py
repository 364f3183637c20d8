"""How Linux numbers ioctl requests (include/uapi/asm-generic/ioctl.h)."""

from __future__ import annotations

_WRITE, _READ = 1, 2


def _request(direction: int, kind: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | kind << 8 | number


def io_read(kind: int, number: int, size: int) -> int:
    """_IOR: the kernel fills a structure of `size` bytes."""
    return _request(_READ, kind, number, size)


def io_write(kind: int, number: int, size: int) -> int:
    """_IOW: the kernel reads a structure of `size` bytes."""
    return _request(_WRITE, kind, number, size)


def io_read_write(kind: int, number: int, size: int) -> int:
    """_IOWR: the kernel reads a structure of `size` bytes and fills in its answer."""
    return _request(_READ | _WRITE, kind, number, size)
