"""Reads and checks every chunk of a checkpoint and its parents, as a restore reads them, on all cores.

It takes the memory of a group of chunks for each CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from memvm.checkpoint.file_reader import CheckpointFile
from memvm.checkpoint.loading import GROUP_BYTES, pages_text
from memvm.checkpoint.workers import share_out
from memvm.errors import CheckpointError

Progress = Callable[[int, int], None]
"""Told bytes done and bytes in all; may raise to end the verification."""

_SHOWN_BAD = 8


def verify(files: Sequence[CheckpointFile], progress: Progress) -> None:
    """Read, compare and decompress every chunk of every file.

    Raises CheckpointError that tells of all bad ones, and what `progress` raises.
    """
    total = sum(map(_storage_size, files))
    done = 0
    complaints: list[CheckpointError] = []
    for file in files:
        bad = _verify_file(file, lambda more, done=done: progress(done + more, total))  # type: ignore[misc]
        done += _storage_size(file)
        if bad:
            complaints.append(_damage(file, bad))
    if complaints:
        raise CheckpointError("\n".join(error.message for error in complaints), hint=complaints[0].hint)


def _storage_size(file: CheckpointFile) -> int:
    return sum(file.index.chunk_length)


def _verify_file(file: CheckpointFile, progress: Callable[[int], None]) -> list[tuple[int, str]]:
    """The bad chunks of one file, each with the reason. `progress` hears bytes done."""
    done: list[int] = []
    bad: list[tuple[int, str]] = []

    def check(group: range) -> None:
        bad.extend(_bad_chunks(file, group))
        done.append(sum(file.index.chunk_length[group.start : group.stop]))

    groups = _groups(file)
    share_out(lambda: next(groups, None), lambda: check, lambda: progress(sum(done)), name="verify")
    return sorted(bad)


def _groups(file: CheckpointFile) -> Iterator[range]:
    """All chunks, also those that are of no use any more, in groups to be read at once."""
    size = max(1, GROUP_BYTES // file.header.max_frame_size)
    chunks = range(file.index.chunk_count)
    return (chunks[start : start + size] for start in range(0, len(chunks), size))


def _bad_chunks(file: CheckpointFile, group: range) -> list[tuple[int, str]]:
    """The chunks of a group that are not what was saved, with the reason of each."""
    try:
        for chunk, frame in zip(group, file.read_frames(group[0], group[-1]), strict=True):
            file.decompress(chunk, frame)
    except CheckpointError:  # at least one of them: find out which
        return [(chunk, reason) for chunk in group if (reason := _what_is_wrong(file, chunk))]
    return []


def _what_is_wrong(file: CheckpointFile, chunk: int) -> str:
    try:
        file.decompress(chunk, file.read_frame(chunk))
    except CheckpointError as error:
        return error.message.removeprefix(f"{file.path}: chunk {chunk}: ")
    return ""


def _damage(file: CheckpointFile, bad: list[tuple[int, str]]) -> CheckpointError:
    lines = [f"  chunk {chunk}, {_pages_text(file, chunk)}: {reason}" for chunk, reason in bad[:_SHOWN_BAD]]
    if len(bad) > _SHOWN_BAD:
        lines.append(f"  and {len(bad) - _SHOWN_BAD} more")
    pages = sum(file.index.pages_of(chunk) for chunk, _ in bad)
    count = f"{len(bad)} of {file.index.chunk_count} chunks cannot be verified, with {pages} pages"
    return CheckpointError(
        "\n".join([f"{file.path}: {count}", *lines]),
        hint="take another copy of the file, or another checkpoint; restored lazily from this one, "
        "a guest gets an error where it touches these pages",
    )


def _pages_text(file: CheckpointFile, chunk: int) -> str:
    runs = file.index.runs_of(chunk)
    return pages_text(runs) if runs else "superseded pages"
