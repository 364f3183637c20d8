"""A checkpoint on top of others: every page from the right file, and a clear error where one of them is not right."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from memvm.checkpoint.active import active_pages
from memvm.checkpoint.chain import Chain
from memvm.checkpoint.file_reader import CheckpointFile
from memvm.checkpoint.file_writer import CheckpointWriter
from memvm.checkpoint.finding import MAX_FILES
from memvm.checkpoint.loading import chunk_groups
from memvm.checkpoint.merge import MergeReport, merge
from memvm.checkpoint.sections import ParentLink
from memvm.errors import CheckpointError, SaveError
from memvm.faultpoints import FaultPoint, arm
from memvm.memory.pages import PageRun, runs_of
from memvm.units import PAGE_SIZE
from tests.checkpoint.lives import damage
from tests.checkpoint.parts import read_everything, take_apart
from tests.checkpoint.random_files import write_random_file
from tests.checkpoint.samples import HEADER, rle_frame, write_small_child, write_small_file

Pages = dict[int, bytes | None]
"""Contents by page; None for a page that was touched and is zero."""


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    path = tmp_path / "parent.ckpt"
    write_small_file(path)
    return path


@pytest.fixture
def child(parent: Path) -> Path:
    path = parent.with_name("child.ckpt")
    write_small_child(path, parent)
    return path


def silent(_done: int, _total: int) -> None:
    pass


def contents(path: Path) -> Pages:
    """All that a file and its parents hold."""
    _, _, zero_runs, pages, bad = read_everything(path)
    assert not bad
    return {**pages, **{page: None for run in zero_runs for page in range(run.first, run.end)}}


def write_next(path: Path, parent: Path | None, said: list[tuple[str, list[int]]], byte: int) -> None:
    """A file, step by step: pages of data, zero pages, inherited pages, holes; the last word on a page counts."""
    identity = bytes([byte % 256, byte // 256, *bytes(14)])
    with CheckpointWriter(path, HEADER._replace(checkpoint_id=identity)) as writer:
        if parent is not None:
            with Chain.open(parent) as chain:
                writer.set_parent(chain.link_from(path))
        for what, pages in said:
            for run in runs_of(sorted(set(pages))):
                writer.supersede(run)
                for first in range(run.first, run.end, HEADER.chunk_pages):
                    piece = PageRun(first, min(run.end - first, HEADER.chunk_pages))
                    if what == "data":
                        data = b"".join(bytes([byte % 256, page]) * 2048 for page in range(piece.first, piece.end))
                        writer.add_chunk(zstandard.compress(data), [piece])
                    elif what == "zero":
                        writer.add_zero(piece)
                    elif what == "inherited" and parent is not None:
                        writer.add_inherited(piece)
        writer.commit(b"state")


_said = st.lists(
    st.tuples(
        st.sampled_from(("data", "zero", "inherited", "hole")),
        st.one_of(
            st.lists(st.integers(0, 63), max_size=12),
            st.builds(
                lambda first, count: list(range(first, min(64, first + count))), st.integers(0, 63), st.integers(1, 30)
            ),
        ),
    ),
    max_size=8,
)


@settings(deadline=None, max_examples=60)
@given(st.lists(_said, min_size=1, max_size=5))
def test_chain_has_what_was_said_last(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[tuple[str, list[int]]]]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    path: Path | None = None
    model: Pages = {}
    for number, said in enumerate(files):
        before, model = model, {}
        for what, pages in said:
            for page in set(pages):
                model.pop(page, None)
                if what == "data":
                    model[page] = bytes([number, page]) * 2048
                elif what == "zero":
                    model[page] = None
                elif what == "inherited" and page in before:
                    model[page] = before[page]
        parent, path = path, folder / f"chain-{number}.ckpt"
        write_next(path, parent, said, number)
        assert contents(path) == model
    assert path is not None
    report = merge(path, folder / "merged.ckpt", silent)
    assert contents(folder / "merged.ckpt") == model
    assert (report.pages_data, report.pages_zero) == (
        sum(data is not None for data in model.values()),
        sum(data is None for data in model.values()),
    )


def test_groups_leave_out_what_nobody_wants(parent: Path, child: Path) -> None:
    with Chain.open(child) as chain:
        assert (chain.index.chunk_count, chain.index.files) == (5, [range(2), range(2, 5)])
        assert list(chain.index.alive) == [1, 1, 0, 1, 1]
        assert chunk_groups(chain) == [range(2), range(3, 5)]
        assert [chain.index.is_cut(chunk) for chunk in range(5)] == [True, False, True, True, True]
        assert chain.index.chunk_of(10) == 3 and chain.index.runs_of(3) == [PageRun(10, 1)]
        assert chain.index.runs_of(4) == [PageRun(12, 1)]
        assert chain.index.places_of(4) == [(PageRun(12, 1), 1)]
        assert [chain.index.chunk_of(page) for page in (0, 1, 31, 50, 63)] == [None] * 5
        assert chain.index.united_runs() == [PageRun(10, 3), PageRun(20, 1), PageRun(29, 2)]


def test_parent_is_found_where_it_was_and_beside_the_child(parent: Path, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "elsewhere").mkdir()
    child = tmp_path / "deep" / "child.ckpt"
    write_small_child(child, parent)
    whole = contents(child)
    with CheckpointFile.open(child) as file:
        assert file.parent is not None and file.parent.name == b"../parent.ckpt"
    moved = Path(shutil.copy(child, tmp_path / "elsewhere"))
    shutil.move(parent, tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"its parent \.\./parent\.ckpt is missing"):
        Chain.open(child)
    assert contents(moved) == whole
    (tmp_path / "link.ckpt").symlink_to(moved)
    assert contents(tmp_path / "link.ckpt") == whole


def test_parent_is_where_the_user_says(parent: Path, child: Path, tmp_path: Path) -> None:
    third = tmp_path / "third.ckpt"
    write_small_child_of(third, child)
    (tmp_path / "elsewhere").mkdir()
    names = [Path(shutil.move(path, tmp_path / "elsewhere" / f"x{path.name}")) for path in (child, parent)]
    for given_paths in (names, names[::-1]):
        with Chain.open(third, given_paths) as chain:
            assert [file.path for file in chain.files] == [third, *names]
    with pytest.raises(CheckpointError, match=r"its parent was child\.ckpt, but .*xparent\.ckpt is another checkpoint"):
        Chain.open(third, names[1:])
    with pytest.raises(CheckpointError, match=r"third\.ckpt: this is no parent of"):
        Chain.open(third, [*names, third])


def test_parents_are_in_a_directory_that_the_user_names(parent: Path, child: Path, tmp_path: Path) -> None:
    third = tmp_path / "third.ckpt"
    write_small_child_of(third, child)
    empty, elsewhere = tmp_path / "empty", tmp_path / "elsewhere"
    empty.mkdir()
    elsewhere.mkdir()
    names = [Path(shutil.move(path, elsewhere)) for path in (child, parent)]
    with Chain.open(third, [empty, elsewhere]) as chain:
        assert [file.path for file in chain.files] == [third, *names]
    with pytest.raises(CheckpointError, match=r"its parent child\.ckpt is missing"):
        Chain.open(third, [empty])


def write_small_child_of(path: Path, parent: Path) -> None:
    write_next(path, parent, [("inherited", list(range(64))), ("data", [5])], 77)


def _no_file(parent: Path) -> None:
    parent.unlink()


def _another_file(parent: Path) -> None:
    write_next(parent, None, [("data", [1])], 99)


def _saved_again(parent: Path) -> None:
    write_small_file(parent, state=b"other")


def _no_checkpoint(parent: Path) -> None:
    parent.write_bytes(b"hello")


def _cut(parent: Path) -> None:
    parent.write_bytes(parent.read_bytes()[:-1])


def _index_flipped(parent: Path) -> None:
    data = bytearray(parent.read_bytes())
    data[int.from_bytes(data[-240:-232], "little") + 50] ^= 1
    parent.write_bytes(data)


def _a_directory(parent: Path) -> None:
    parent.unlink()
    parent.mkdir()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_no_file, r"its parent parent\.ckpt is missing"),
        (_another_file, r"its parent was parent\.ckpt, but .*/parent\.ckpt is another checkpoint: its id is 6300"),
        (_saved_again, r"its parent was parent\.ckpt, but .*/parent\.ckpt is not as it was any more"),
        (_no_checkpoint, r"its parent .*/parent\.ckpt cannot be used: .*not a memvm checkpoint"),
        (_cut, r"its parent .*/parent\.ckpt cannot be used: .*incomplete"),
        (_index_flipped, r"its parent .*/parent\.ckpt cannot be used: .*the index is damaged"),
        (_a_directory, r"its parent .*/parent\.ckpt cannot be used: .*not an ordinary file"),
    ],
)
def test_parent_that_is_not_right(change: Callable[[Path], None], words: str, parent: Path, child: Path) -> None:
    change(parent)
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(CheckpointError, match=words) as raised:
        Chain.open(child)
    assert raised.value.message.startswith(f"{child}: ")
    assert "--parent FILE" in raised.value.hint
    assert len(list(Path("/proc/self/fd").iterdir())) == open_files


def test_damaged_chunk_of_a_parent_is_an_error_there(parent: Path, child: Path) -> None:
    pages = damage(parent, 1)
    assert pages == {10, 20}
    with Chain.open(child) as chain:
        with pytest.raises(CheckpointError, match=r"parent\.ckpt: chunk 1: damaged"):
            chain.read_frame(3)
        assert chain.decompress(4, chain.read_frame(4)) == b"\x33" * PAGE_SIZE
    assert read_everything(child)[-1] == [3]


def test_parent_of_another_size(parent: Path, child: Path) -> None:
    parts = take_apart(parent)
    parts.header = parts.header._replace(ram_size=65 * PAGE_SIZE)
    parent.write_bytes(parts.assemble())
    parts = take_apart(child)
    with CheckpointFile.open(parent) as file:
        parts.parent = ParentLink(HEADER.checkpoint_id, file.commit_sha256, b"parent.ckpt").pack()
    child.write_bytes(parts.assemble())
    with pytest.raises(CheckpointError, match="of a guest with other RAM"):
        Chain.open(child)


def test_circle_of_parents_is_refused(parent: Path, child: Path) -> None:
    for identity in (bytes(16), HEADER.checkpoint_id):
        target = child if identity == bytes(16) else parent
        parts = take_apart(target)
        parts.parent = ParentLink(identity, bytes(32), b"child.ckpt").pack()
        target.write_bytes(parts.assemble())
        with pytest.raises(CheckpointError, match="has it as a parent itself"):
            Chain.open(target)


def test_too_many_parents(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.ckpt" for number in range(MAX_FILES)]
    for number, path in enumerate(paths):
        said = [("data", [number]), ("inherited", [page for page in range(64) if page != number])]
        write_next(path, paths[number - 1] if number else None, said, number)
    whole = contents(paths[-1])
    assert len(whole) == 64
    with Chain.open(paths[-1]) as chain, pytest.raises(SaveError, match="has 63 parents already") as raised:
        chain.link_from(tmp_path / "next.ckpt")
    assert "memvm merge" in raised.value.hint
    with Chain.open(paths[-2]) as chain:
        link = chain.link_from(paths[-1])
    parts = take_apart(paths[0])
    parts.header = parts.header._replace(checkpoint_id=b"x" * 16)
    parts.parent = ParentLink(b"y" * 16, bytes(32), b"none").pack()
    paths[0].write_bytes(parts.assemble())
    with CheckpointFile.open(paths[0]) as file:
        first = ParentLink(b"x" * 16, file.commit_sha256, b"0.ckpt")
    for path in paths[1:]:
        parts = take_apart(path)
        parts.parent = first.pack()
        path.write_bytes(parts.assemble())
        with CheckpointFile.open(path) as file:
            first = ParentLink(file.header.checkpoint_id, file.commit_sha256, os.fsencode(path.name))
    assert link.name == b"62.ckpt"
    with pytest.raises(CheckpointError, match="more than 63 parents"):
        Chain.open(paths[-1])


def test_new_file_may_not_replace_its_parents(parent: Path, child: Path, tmp_path: Path) -> None:
    with Chain.open(child) as chain:
        for path in (parent, child):
            with pytest.raises(SaveError, match="needs it to stay"):
                chain.link_from(path)
        assert chain.link_from(tmp_path / "new.ckpt").name == b"child.ckpt"
    with pytest.raises(SaveError, match=r"parent\.ckpt cannot be replaced"):
        merge(child, parent, silent)


def test_merged_file_needs_no_parent(parent: Path, child: Path, tmp_path: Path) -> None:
    whole, target = contents(child), tmp_path / "merged.ckpt"
    report = merge(child, target, silent)
    parent.unlink()
    assert contents(target) == whole
    assert isinstance(report, MergeReport)
    assert report.files == (str(child), str(parent))
    assert (report.chunks_copied, report.chunks_rebuilt) == (1, 2), "active chunks and others apart"
    assert report.bytes_file == target.stat().st_size
    with CheckpointFile.open(target) as file:
        assert file.parent is None and file.index.superseded_pages == file.index.inherited_pages == 0
        assert file.state == b'{"golden": 2}'
        assert (list(file.active.pages), file.active.kinds) == ([30, 10], bytes([3, 1]))
        assert file.index.chunk_of(30) == 0, "active pages are in front"


def test_file_may_be_merged_onto_itself(parent: Path, child: Path) -> None:
    whole = contents(child)
    merge(child, child, silent)
    parent.unlink()
    assert contents(child) == whole


def test_whole_chunks_are_copied_as_they_are(tmp_path: Path) -> None:
    base, child, target = (tmp_path / name for name in ("base", "child", "merged"))
    with CheckpointWriter(base, HEADER) as writer:
        for first in range(0, 64, 4):
            writer.add_chunk(rle_frame(first + 1, 4), [PageRun(first, 4)])
        writer.commit(b"")
    write_next(child, base, [("inherited", list(range(64))), ("data", [9])], 3)
    report = merge(child, target, silent)
    assert (report.chunks_copied, report.chunks_rebuilt, report.pages_data) == (16, 1, 64)
    with Chain.open(child) as chain, CheckpointFile.open(target) as file:
        for page in (0, 9, 63):
            chunk, copy = chain.index.chunk_of(page), file.index.chunk_of(page)
            assert chunk is not None and copy is not None
            assert chain.read_frame(chunk) == file.read_frame(copy)
    assert contents(target) == contents(child)


def test_file_of_version_1_is_merged_with_its_active_chunks(tmp_path: Path) -> None:
    old, target = tmp_path / "old.ckpt", tmp_path / "merged.ckpt"
    parts = take_apart(Path(__file__).parent / "golden" / "version1.ckpt")
    state = b'{"active_chunks": [[1, 2]]}'
    parts.state_frame, parts.state_length = zstandard.compress(state), len(state)
    old.write_bytes(parts.assemble())
    with Chain.open(old) as chain:
        assert (chain.header.version, list(active_pages(chain).pages)) == (1, [10, 20, 11, 12])
    report = merge(old, target, silent)
    assert (report.chunks_copied, report.chunks_rebuilt) == (3, 0)
    assert contents(target) == contents(old)
    with Chain.open(target) as chain:
        assert (chain.header.version, list(active_pages(chain).pages)) == (2, [10, 20, 11, 12])


def test_merge_that_fails_leaves_the_old_file(parent: Path, child: Path, tmp_path: Path) -> None:
    target = tmp_path / "merged.ckpt"
    write_small_file(target, state=b"old")
    names = sorted(tmp_path.iterdir())
    with arm(FaultPoint.SAVE_BEFORE_COMMIT_RECORD, OSError(28, "")), pytest.raises(SaveError, match="the disk is full"):
        merge(child, target, silent)
    damage(parent, 1)
    with pytest.raises(CheckpointError, match=r"parent\.ckpt: chunk 1: damaged"):
        merge(child, target, silent)
    with CheckpointFile.open(target) as file:
        assert file.state == b"old"
    assert sorted(tmp_path.iterdir()) == names


def test_random_files_are_merged(tmp_path: Path) -> None:
    rng = random.Random(5)
    parent, child, target = (tmp_path / name for name in ("parent", "child", "merged"))
    for _ in range(30):
        write_random_file(parent, rng)
        write_random_file(child, rng, parent)
        seen: list[tuple[int, int]] = []
        merge(child, target, lambda done, total, seen=seen: seen.append((done, total)))  # type: ignore[misc]
        assert contents(target) == contents(child)
        assert seen == sorted(seen) and all(done <= total for done, total in seen)
