"""zstd frames whose size is known beforehand: what they hold is exactly that long, or an error.

A frame's own word on its size is compared first: python-zstandard believes it, and would allocate what it says.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from memvm.checkpoint.format import MAX_CHUNK_PAGES, FormatError
from memvm.units import PAGE_SIZE

if TYPE_CHECKING:
    import zstandard

_MAX_WINDOW = MAX_CHUNK_PAGES * PAGE_SIZE
"""A whole frame with its size is decompressed in place. Only a cut one asks for a window."""
_thread = threading.local()


def decompress_exactly(frame: bytes | memoryview, size: int) -> bytes:
    """The `size` bytes in a zstd frame. Raises FormatError if it holds another number, or is damaged."""
    import zstandard

    try:
        _require_size(frame, size)
        data = _decompressor().decompress(frame, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise _cannot(error) from None
    if len(data) != size:
        raise FormatError(f"a frame that holds {len(data)} bytes instead of {size}")
    return data


def decompress_together(frames: Sequence[bytes | memoryview], sizes: Sequence[int]) -> list[memoryview]:
    """The bytes in some zstd frames, `sizes` of them each. Raises FormatError if one is damaged or has another size.

    All in one call without the interpreter lock: threads that load do not ask for it at every frame, which whoever has
    it would feel, and they too. Unlike decompress_exactly, it does not look at what a frame has behind its end.
    """
    import zstandard

    try:
        for frame, size in zip(frames, sizes, strict=True):
            _require_size(frame, size)
            if zstandard.get_frame_parameters(frame).window_size > _MAX_WINDOW:
                raise FormatError("a frame with a larger window than any that memvm writes")
        column = array("Q", sizes).tobytes()
        contents = _decompressor().multi_decompress_to_buffer(list(frames), decompressed_sizes=column)
    except zstandard.ZstdError as error:
        raise _cannot(error) from None
    # A segment has the buffer protocol; its type says nothing of that.
    return [memoryview(cast(bytes, contents[number])) for number in range(len(contents))]


def _require_size(frame: bytes | memoryview, size: int) -> None:
    import zstandard

    if zstandard.get_frame_parameters(frame).content_size != size:
        raise FormatError(f"a frame that does not hold {size} bytes")


def _cannot(error: zstandard.ZstdError) -> FormatError:
    return FormatError(f"a frame that cannot be decompressed: {error}")


def _decompressor() -> zstandard.ZstdDecompressor:
    """This thread's own: a decompressor serves one thread at a time, and is not cheap to make."""
    decompressor: zstandard.ZstdDecompressor | None = getattr(_thread, "decompressor", None)
    if decompressor is None:
        import zstandard

        decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
        _thread.decompressor = decompressor
    return decompressor
