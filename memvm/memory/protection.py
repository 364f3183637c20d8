"""Page protections, with the kernel's own bits: what mmap and mprotect take, and what page metadata keeps."""

from __future__ import annotations

from enum import IntFlag


class Prot(IntFlag):
    """PROT_*: include/uapi/asm-generic/mman-common.h."""

    NONE = 0
    READ = 1
    WRITE = 2
    EXEC = 4
