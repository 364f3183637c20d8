"""What is said of checkpoint files, of small ones made by hand and of real guests."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import FrozenInstanceError, fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from memvm.checkpoint.file_reader import CheckpointFile
from memvm.checkpoint.inspect import Inspection, inspect
from memvm.errors import CheckpointError
from memvm.report.checkpoints import inspection_text
from memvm.report.records import to_json
from memvm.units import MIB, PAGE_SIZE
from tests.checkpoint.lives import Life, chunk_of, damage, look, running
from tests.support import MemvmCli


@pytest.fixture(scope="module")
def original(guests: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a guest that sleeps, with 8 MiB of memory in a region of its own."""
    folder = tmp_path_factory.mktemp("ticker")
    with running(folder / "life", guests["ticker"], "8", "1", "60000", "0", "touched", ram="64M") as life:
        life.await_lines(1)
        save_asleep(life, folder / "ticker.ckpt")
    return folder / "ticker.ckpt"


def save_asleep(life: Life, path: Path) -> None:
    while True:
        report = life.guest.checkpoint(path, live=False, block_size=1 * MIB)
        found = look(path)
        if found.blocked is not None and not found.blocked.answered:
            break
    assert found.storage.blocks == report.block_writes
    assert (found.ram.pages_data, found.ram.pages_zero) == (report.pages_data, report.pages_zero)
    assert found.file_size == report.bytes_file


@pytest.fixture
def path(original: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copy(original, tmp_path / "ticker.ckpt"))


def test_everything_is_said(original: Path, guests: dict[str, Path]) -> None:
    found = look(original)
    assert (found.version, found.generation, found.verified) == (2, 0, False)
    assert found.file_size == original.stat().st_size
    assert found.program == str(guests["ticker"])
    assert found.arguments[1:] == ("8", "1", "60000", "0", "touched")
    assert abs(datetime.fromisoformat(found.saved_at) - datetime.now(UTC)).total_seconds() < 600
    assert found.blocked is not None
    assert "nanosleep" in found.blocked.name
    assert found.blocked.remaining_seconds is not None and 0 < found.blocked.remaining_seconds < 60
    assert [stream.descriptors for stream in found.streams] == [(0,), (1,), (2,)]
    assert found.streams[0].file_offset is None and found.streams[1].file_offset
    assert found.clocks.monotonic_seconds > found.clocks.cpu_seconds > 0
    assert found.vcpu.registers["rip"] and "SSE" in found.vcpu.xsave_features
    assert found.vcpu.xsave_size >= 576


def test_sizes_and_pages_add_up(original: Path) -> None:
    found = look(original)
    ram, storage = found.ram, found.storage
    assert ram.ram_size == 64 * MIB
    assert (ram.pages_data + ram.pages_zero + ram.pages_untouched) * PAGE_SIZE == ram.ram_size
    assert storage.bytes_raw == ram.pages_data * PAGE_SIZE
    assert storage.ratio == pytest.approx(storage.bytes_raw / storage.bytes_compressed)
    assert sum(shape.chunks for shape in storage.shapes) == storage.chunks
    assert sum(shape.chunks * shape.pages for shape in storage.shapes) == ram.pages_data
    whole = 64 + storage.bytes_compressed + found.index_size + found.state_size + 248
    assert found.file_size == whole


def test_pages_of_regions(original: Path) -> None:
    found = look(original)
    memory = max(found.regions, key=lambda region: region.pages_data)
    assert (memory.size, memory.protection, memory.kind) == (8 * MIB, "rw-", "anonymous")
    assert (memory.pages_data, memory.pages_zero) == (1536, 512)
    assert sum(region.pages_data for region in found.regions) == found.ram.pages_data
    assert any(region.protection == "r-x" and region.kind == "image" for region in found.regions)
    with CheckpointFile.open(original) as file:
        for region in found.regions:
            first, end = ((address - file.header.ram_base) // PAGE_SIZE for address in (region.start, region.end))
            runs = zip(file.index.run_first, file.index.run_count, strict=True)
            pages = {page for run, count in runs for page in range(run, run + count)}
            assert region.pages_data == len(pages & set(range(first, end)))


def test_it_is_json(original: Path) -> None:
    found = look(original)
    read = json.loads(to_json(found))
    assert read["ram"]["pages_data"] == found.ram.pages_data
    assert read["regions"][0]["protection"] == "r--"
    assert read["vcpu"]["registers"]["rip"] == found.vcpu.registers["rip"]
    assert_frozen(found)


def assert_frozen(value: object) -> None:
    if is_dataclass(value):
        with pytest.raises(FrozenInstanceError):
            setattr(value, fields(value)[0].name, None)
        for field in fields(value):
            assert_frozen(getattr(value, field.name))
    else:
        assert not isinstance(value, list), "a tuple is what a frozen object has"


def test_it_is_text(original: Path) -> None:
    text = inspection_text(look(original))
    assert [line for line in text.splitlines() if line and line[0] != " "] == [
        *(str(original), "Guest", "Pages", "Storage", "Regions", "vCPU")
    ]
    assert re.search(r"waits in +clock_nanosleep\(0x1, 0x\d", text)
    assert re.search(r"checked +all but the contents of pages", text)
    assert re.search(r"untouched +\d+,\d+ ", text)
    assert re.search(r" {2}rip [0-9a-f]{16}", text)


def test_every_byte_is_verified(original: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = inspect(original, True, lambda done, total: seen.append((done, total)))
    assert found.verified
    assert "every byte" in inspection_text(found)
    assert seen == sorted(seen)
    assert seen[-1] == (found.storage.bytes_compressed, found.storage.bytes_compressed)


def test_bad_chunks_are_named_with_their_pages(path: Path) -> None:
    memory = max(look(path).regions, key=lambda region: region.pages_data)
    chunks = sorted(chunk_of(path, memory.start + offset * PAGE_SIZE) for offset in (100, 500, 1000))
    pages = [damage(path, chunk) for chunk in chunks]
    assert isinstance(look(path), Inspection), "without verifying, pages are not read"
    with pytest.raises(CheckpointError) as raised:
        inspect(path, True, lambda done, total: None)
    first, *lines = raised.value.message.splitlines()
    assert first.startswith(f"{path}: 3 of ") and f"with {sum(map(len, pages))} pages" in first
    for line, chunk, damaged in zip(lines, chunks, pages, strict=True):
        assert line.startswith(f"  chunk {chunk}, pages {min(damaged)} to ")
        assert line.endswith(f" to {max(damaged)}: damaged: its checksum is wrong")
    assert raised.value.exit_code == 65
    assert raised.value.hint


def test_many_bad_chunks_are_counted(path: Path) -> None:
    with CheckpointFile.open(path) as file:
        count, end = file.index.chunk_count, file.commit_record.index_offset
    with open(path, "r+b") as raw:
        raw.seek(64)
        raw.write(os.urandom(end - 64))
    with pytest.raises(CheckpointError, match=f": {count} of {count} chunks") as raised:
        inspect(path, True, lambda done, total: None)
    assert raised.value.message.endswith(f"and {count - 8} more")


def test_verification_can_be_given_up(original: Path) -> None:
    class GivenUp(Exception):
        pass

    def give_up(_done: int, _total: int) -> None:
        raise GivenUp

    with pytest.raises(GivenUp):
        inspect(original, True, give_up)


def test_command_line(path: Path, memvm_cli: MemvmCli) -> None:
    assert "every byte" in memvm_cli("inspect", "--verify", path, code=0).text
    found = json.loads(memvm_cli("inspect", "--json", path, code=0).text)
    assert (found["verified"], found["file_size"]) == (False, path.stat().st_size)
    damage(path, 3)
    assert memvm_cli("inspect", path, code=0).err == ""
    result = memvm_cli("inspect", "--verify", path, code=65)
    assert "chunk 3, page" in result.err and result.text == ""
