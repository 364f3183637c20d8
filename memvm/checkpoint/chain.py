"""A checkpoint with its parents: one object that has every page, whichever file it comes from.

A file that was saved on top of another one inherits pages from it, and that one perhaps from its own parent. Opening
finds the parents, and takes no file for one that has not the id and digest that its child noted.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from memvm.checkpoint.chain_index import ChainIndex
from memvm.checkpoint.file_reader import CheckpointFile, cut_out
from memvm.checkpoint.finding import MAX_FILES, another_file, find_parents, require_apart, require_chain
from memvm.checkpoint.format import FileHeader
from memvm.checkpoint.sections import ActivePages, ParentLink, relative_name
from memvm.errors import SaveError
from memvm.memory.pages import PageRun
from memvm.units import PAGE_SIZE


class Chain:
    """An open checkpoint and its parents. A context manager; its reading methods may be called from any thread.

    Open it with `Chain.open`. Chunks are numbered through all files, and a group of them that is read at once has
    to be of one file: `index.files` tells.
    """

    def __init__(self, files: Sequence[CheckpointFile]) -> None:
        """Takes over open files that have been checked to be a chain, the youngest first."""
        self.files = tuple(files)
        self.index = ChainIndex([file.index for file in files])

    @classmethod
    def open(cls, path: Path, parents: Sequence[Path] = ()) -> Chain:
        """Opens a file with all its parents, and checks everything but the chunks' contents.

        `parents` are looked at first; then each parent is looked for where it was, and beside its child. Raises
        CheckpointError, which names child and parent if a parent is missing, wrong or damaged, and also if one of
        `parents` is none.
        """
        with ExitStack() as opened:
            first = opened.enter_context(CheckpointFile.open(path))
            files = find_parents(first, CheckpointFile.open, _what_is_wrong, parents)
            for file in files[1:]:
                opened.push(file)
            chain = cls(files)
            opened.pop_all()
        return chain

    @classmethod
    def of(cls, files: Sequence[CheckpointFile]) -> Chain:
        """Takes over open files that somebody else has found, the youngest first.

        Raises CheckpointError if they are no chain, or not a whole one, and closes nothing then.
        """
        require_chain(files, _what_is_wrong)
        return cls(files)

    def __enter__(self) -> Chain:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files, which no thread may be reading. Headers, indexes and state stay."""
        for file in self.files:
            file.close()

    @property
    def path(self) -> Path:
        """Of the youngest file: the one that was asked for."""
        return self.files[0].path

    @property
    def header(self) -> FileHeader:
        """Of the youngest file, except that no chunk of any file has more pages than it says."""
        most = max(file.header.chunk_pages for file in self.files)
        return self.files[0].header._replace(chunk_pages=most)

    @property
    def state(self) -> bytes:
        return self.files[0].state

    @property
    def active(self) -> ActivePages:
        return self.files[0].active

    def read_frame(self, chunk: int) -> bytes:
        """The compressed frame of a chunk, checksum compared. Raises CheckpointError."""
        file, number = self.index.place_of(chunk)
        return self.files[file].read_frame(number)

    def read_frames(self, first: int, last: int) -> list[memoryview]:
        """The frames of the chunks `first` to `last` of one file, as CheckpointFile.read_frames has them."""
        file, number = self.index.place_of(first)
        return self.files[file].read_frames(number, number + last - first)

    def decompress(self, chunk: int, frame: bytes | memoryview) -> bytes:
        """The pages of a chunk, those of `index.runs_of`, from its frame. Raises CheckpointError."""
        file, number = self.index.place_of(chunk)
        data = self.files[file].decompress(number, frame)
        return cut_out(data, self.index.places_of(chunk)) if file else data

    def decompress_together(
        self, chunks: Sequence[int], frames: Sequence[bytes | memoryview]
    ) -> list[list[tuple[PageRun, memoryview]]]:
        """The runs of some chunks of one file, each with its pages, from their frames. Raises CheckpointError."""
        file, first = self.index.place_of(chunks[0])
        numbers = [first + chunk - chunks[0] for chunk in chunks]
        contents = self.files[file].decompress_together(numbers, frames)
        return [
            [(run, pages[before * PAGE_SIZE : (before + run.count) * PAGE_SIZE]) for run, before in places]
            for places, pages in zip(map(self.index.frame_places_of, chunks), contents, strict=True)
        ]

    def link_from(self, path: Path) -> ParentLink:
        """What a new file at `path` has to say of this one, to inherit its pages.

        Raises SaveError if there are too many files already, or if the new file would replace one of them.
        """
        self.require_apart(path)
        return self.link(relative_name(self.path, path))

    def link(self, name: bytes) -> ParentLink:
        """The same, for somebody who knows the name, and that the new file replaces none of the chain's.

        Raises SaveError if there are too many files already.
        """
        if len(self.files) >= MAX_FILES:
            raise SaveError(
                f"{self.path} has {len(self.files) - 1} parents already; no more are allowed",
                hint=f"make one file of them with `memvm merge {self.path} OUT`, and use that as the parent",
            )
        parent = self.files[0]
        return ParentLink(parent.checkpoint_id, parent.commit_sha256, name)

    def require_apart(self, path: Path, first: int = 0) -> None:
        """Raises SaveError if a new file at `path` would replace one of the chain's, from number `first` on."""
        require_apart(path, self.files, first)


def _what_is_wrong(child: CheckpointFile, link: ParentLink, file: CheckpointFile) -> str:
    """Why this file is not the child's parent; nothing if it is."""
    if wrong := another_file(link, file.checkpoint_id, file.commit_sha256):
        return wrong
    if (file.header.ram_base, file.header.ram_size) != (child.header.ram_base, child.header.ram_size):
        return "of a guest with other RAM"
    return ""
