"""Real guests from checkpoints with parents: restored in every way, inspected, verified and merged."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest

import memvm
from memvm.checkpoint.chain import Chain
from memvm.checkpoint.inspect import inspect
from memvm.errors import CheckpointError
from memvm.report.checkpoints import inspection_text
from tests.checkpoint.lives import damage, look, on_top_of, restored, running, traced_saves_held
from tests.checkpoint.test_save_restore import assert_continues, native_output
from tests.support import MemvmCli

ENGINES = ("auto", "mprotect")
ARGUMENTS = ("4", "0", "25", "25", "50", "all")


class Saved(NamedTuple):
    """Three checkpoints of one guest's life, each on top of the one before."""

    folder: Path
    written: bytes
    """What the guest had written at the last one."""
    natively: bytes

    @property
    def last(self) -> Path:
        return self.folder / "c.ckpt"


@pytest.fixture(scope="module")
def saved(guests: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saved]:
    folder = tmp_path_factory.mktemp("chain")
    with traced_saves_held(folder / "gate") as gate, running(folder / "life", guests["patterns"], *ARGUMENTS) as life:
        for name in ("a", "b"):
            life.await_lines(life.output().count(b"\n") + 1)
            life.save(folder / f"whole-{name}.ckpt", live=False)
        with gate.shut_for_lines(life, 2):
            written = life.save(folder / "whole-c.ckpt")
    (folder / "whole-a.ckpt").rename(folder / "a.ckpt")
    on_top_of(folder / "a.ckpt", folder / "whole-b.ckpt", folder / "b.ckpt")
    on_top_of(folder / "b.ckpt", folder / "whole-c.ckpt", folder / "c.ckpt")
    yield Saved(folder, written, native_output(guests["patterns"], "4", "40", *ARGUMENTS[2:]))


@pytest.mark.parametrize(("engine", "lazy"), list(product(ENGINES, (True, False))))
def test_guest_goes_on_from_a_chain(engine: str, lazy: bool, saved: Saved, tmp_path: Path) -> None:
    with restored(tmp_path / "life", saved.last, engine=engine, lazy=lazy) as life:
        life.await_lines(5)
        assert_continues(saved.written + life.output(), saved.natively)
        assert life.complaints() == ""


def test_chain_is_inspected_and_verified(saved: Saved) -> None:
    found, whole = look(saved.last), look(saved.folder / "whole-c.ckpt")
    with Chain.open(saved.last) as chain:
        assert [file.path.name for file in chain.files] == ["c.ckpt", "b.ckpt", "a.ckpt"]
        parent = chain.files[1].header.checkpoint_id.hex()
    assert found.parent is not None and (found.parent.file, found.parent.checkpoint_id) == ("b.ckpt", parent)
    assert found.ram.pages_inherited > 0
    assert whole.parent is None and whole.ram.pages_inherited == 0
    pages = found.ram.pages_data + found.ram.pages_inherited + found.ram.pages_zero
    assert pages == whole.ram.pages_data + whole.ram.pages_zero
    # A page that was given back may still be there as a zero page, in no region.
    assert 0 < sum(region.pages_inherited for region in found.regions) <= found.ram.pages_inherited
    # How many these are is up to what the guest came to do during the saves.
    assert found.active == whole.active and found.active.pages_written <= found.active.pages
    text = inspection_text(found)
    assert f"b.ckpt, id {parent}" in text and "inherited" in text
    verified = inspect(saved.last, True, lambda done, total: None)
    assert verified.verified and "every byte, of the parents too" in inspection_text(verified)


def test_active_pages_of_a_chain_come_first(saved: Saved, tmp_path: Path) -> None:
    with restored(tmp_path / "life", saved.last, cpu=min(os.sched_getaffinity(0))) as life:
        life.await_lines(1)
        assert life.complaints() == ""
    with Chain.open(saved.last) as chain:
        chunks = {chain.index.chunk_of(page) for page in chain.active.pages} - {None}
        assert chunks


@pytest.fixture
def copied(saved: Saved, tmp_path: Path) -> Path:
    """A copy of the chain, to be damaged: its last file."""
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.ckpt").write_bytes((saved.folder / f"{name}.ckpt").read_bytes())
    return tmp_path / "c.ckpt"


@pytest.mark.parametrize("lazy", [True, False])
def test_missing_parent_is_an_error_before_anything_runs(lazy: bool, copied: Path) -> None:
    copied.with_name("b.ckpt").rename(copied.with_name("x.ckpt"))
    with pytest.raises(CheckpointError, match=r"c\.ckpt: its parent b\.ckpt is missing"):
        memvm.restore(copied, lazy=lazy)
    with memvm.restore(copied, lazy=lazy, parents=[copied.with_name("x.ckpt")]) as guest:
        assert guest.status().engine


def test_damaged_parent_is_named(copied: Path, memvm_cli: MemvmCli) -> None:
    with Chain.open(copied) as chain:
        numbers = chain.index.files[2]
        chunk = next(chunk for chunk in reversed(numbers) if chain.index.alive[chunk]) - numbers.start
    pages = damage(copied.with_name("a.ckpt"), chunk)
    with pytest.raises(CheckpointError) as raised:
        inspect(copied, True, lambda done, total: None)
    first, second = raised.value.message.splitlines()
    assert first.startswith(f"{copied.with_name('a.ckpt')}: 1 of ")
    assert second.startswith(f"  chunk {chunk}, page") and str(max(pages)) in second
    assert "a.ckpt: chunk" in memvm_cli("merge", copied, copied.with_name("out"), code=65).err
    assert not copied.with_name("out").exists()
    assert memvm_cli("inspect", copied, code=0).err == "", "without --verify no parent is read"


def test_merged_chain_is_the_whole_guest(saved: Saved, tmp_path: Path, memvm_cli: MemvmCli) -> None:
    target = tmp_path / "merged.ckpt"
    report = json.loads(memvm_cli("merge", "--json", saved.last, target, code=0).text)
    assert report["files"] == [str(saved.folder / f"{name}.ckpt") for name in ("c", "b", "a")]
    assert report["chunks_copied"] > 0 and report["bytes_file"] == target.stat().st_size
    found, whole = look(target), look(saved.folder / "whole-c.ckpt")
    assert (found.ram.pages_data, found.active, found.vcpu) == (whole.ram.pages_data, whole.active, whole.vcpu)
    assert found.parent is None
    assert inspect(target, True, lambda done, total: None).verified
    with restored(tmp_path / "life", target) as life:
        life.await_lines(4)
        assert_continues(saved.written + life.output(), saved.natively)
    text = memvm_cli("merge", saved.last, target, code=0).text
    assert text.startswith(f"{target}: 3 files of ")
