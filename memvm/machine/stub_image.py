"""The bytes of the stub (stub.py): an ELF file of one page, with three pieces of code in it.

It waits for its manager's end; it has a place where calls are injected; and it has the loop of the service thread.
"""

from __future__ import annotations

import struct

from memvm.machine.layout import STUB_BASE
from memvm.units import PAGE_SIZE

PIPE_FD, RAM_FD, MAIL_FD, CLOCK_FD = range(3, 7)
"""The descriptors that the stub is started with."""
_EXIT = 60
_CODE_OFFSET = 0x80
_WAIT_FOR_MANAGER = (
    b"\x31\xc0"  # xor eax, eax              read(
    + (b"\xbf" + struct.pack("<I", PIPE_FD))  # mov edi, 3    the pipe,
    + b"\x48\x8d\x74\x24\xf8"  # lea rsi, [rsp-8]              below the stack pointer,
    + b"\xba\x01\x00\x00\x00"  # mov edx, 1                    one byte)
    + b"\x0f\x05"  # syscall
    + (b"\xb8" + struct.pack("<I", _EXIT) + b"\x31\xff\x0f\x05")  # mov eax, 60; xor edi, edi; syscall
)
_INJECT_OFFSET = 0xC0
_INJECT = b"\x0f\x05\xcc"  # syscall; int3

# The service thread (service.py): made by a clone at _SERVICE_OFFSET, then in its loop for ever.
ASK = 0xFFF
"""The number of the system call by which the service thread asks for work; Linux has none of it."""
MADVISE = 28
SERVICE_COUNT_BITS = 27
"""The answer to an ask: the number of the first page (its address / 4096), and below it the count of pages."""
_SERVICE_OFFSET = 0x100
_SERVICE_START = (
    b"\x0f\x05"  # syscall                   clone
    b"\x48\x85\xc0"  # test rax, rax
    b"\x74\x01"  # jz +1                     the new thread goes on behind the int3
    b"\xcc"  # int3
    b"\x31\xdb"  # xor ebx, ebx              calls made so far
    b"\x31\xf6"  # xor esi, esi              result of the last one
)
_SERVICE_ASK = (
    b"\x48\x89\xdf"  # mov rdi, rbx          ask(calls, result)
    + (b"\xb8" + struct.pack("<I", ASK))  # mov eax, ASK
    + b"\x0f\x05"  # syscall
    + b"\x48\x85\xc0"  # test rax, rax
    + b"\x78\x00"  # js end                   no manager any more (the distance is filled in below)
    + (b"\x48\x89\xc7\x48\xc1\xef" + bytes((SERVICE_COUNT_BITS,)))  # mov rdi, rax; shr rdi, 27
    + b"\x48\xc1\xe7\x0c"  # shl rdi, 12      address
    + (b"\x89\xc6\x81\xe6" + struct.pack("<I", (1 << SERVICE_COUNT_BITS) - 1))  # mov esi, eax; and esi, mask
    + b"\x48\xc1\xe6\x0c"  # shl rsi, 12      size
    + b"\xba\x04\x00\x00\x00"  # mov edx, 4   MADV_DONTNEED
    + (b"\xb8" + struct.pack("<I", MADVISE))  # mov eax, 28
    + b"\x0f\x05"  # syscall
)
_SERVICE_AGAIN = (
    b"\x48\x89\xc6"  # mov rsi, rax
    b"\x48\xff\xc3"  # inc rbx
    b"\xeb\x00"  # jmp ask
    b"\x0f\x0b"  # end: ud2
)

INJECT_ADDRESS = STUB_BASE + _INJECT_OFFSET
SERVICE_ADDRESS = STUB_BASE + _SERVICE_OFFSET
"""Where a clone makes the service thread."""
SERVICE_MADVISE = STUB_BASE + _SERVICE_OFFSET + len(_SERVICE_START) + len(_SERVICE_ASK)
"""What the instruction pointer is in the service thread's madvise: behind the `syscall`."""


def _service_code() -> bytes:
    code = bytearray(_SERVICE_START + _SERVICE_ASK + _SERVICE_AGAIN)
    ask, end = len(_SERVICE_START), len(code) - 2
    leaves = code.index(b"\x78\x00", ask) + 2
    code[leaves - 1] = end - leaves
    code[end - 1] = (ask - end) & 0xFF
    return bytes(code)


def stub_image() -> bytes:
    """The stub as an ELF executable: one read-only, executable page at STUB_BASE."""
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        *(b"\x7fELF\x02\x01\x01", 2, 62, 1, STUB_BASE + _CODE_OFFSET, 64, 0, 0, 64, 56, 1, 0, 0, 0),
    )
    service = _service_code()
    size = _SERVICE_OFFSET + len(service)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, STUB_BASE, STUB_BASE, size, size, PAGE_SIZE)
    image = bytearray(size)
    image[: len(header)] = header
    image[len(header) : len(header) + len(segment)] = segment
    image[_CODE_OFFSET : _CODE_OFFSET + len(_WAIT_FOR_MANAGER)] = _WAIT_FOR_MANAGER
    image[_INJECT_OFFSET : _INJECT_OFFSET + len(_INJECT)] = _INJECT
    image[_SERVICE_OFFSET:] = service
    return bytes(image)
