"""`memvm dirty` and Guest.dirty on real guests, compared with what the guests say that they wrote."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

import memvm
from memvm.errors import GuestStateError
from memvm.machine.layout import RAM_BASE
from memvm.units import PAGE_SIZE
from tests.support import MemvmCli

ENGINES = ["userfaultfd", "mprotect"]


def read_page(guest: memvm.Guest, page: int) -> bytes:
    return guest.read_memory(RAM_BASE + page * PAGE_SIZE, PAGE_SIZE)


def holds_an_array(pages: set[int], size: int) -> bool:
    """Whether so many pages in a row are among these."""
    return any(pages.issuperset(range(page, page + size)) for page in pages)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_counter_writes_its_hot_set(guests: dict[str, Path], engine: str) -> None:
    """counter 2 0 1: a line every 2 ms, and 1 MiB written for each."""
    command = [str(guests["counter"]), "2", "0", "1"]
    with memvm.Guest(command, ram="64M", engine=engine, stdout=subprocess.PIPE) as guest:
        assert guest.stdout is not None
        guest.stdout.readline()
        with guest.dirty() as look:
            written: set[int] = set()
            while not holds_an_array(written, 256):  # lines may have been waiting in the pipe
                guest.stdout.readline()
                found = look()
                pages = {page for first, count in found.written for page in range(first, first + count)}
                assert found.pages_written == len(pages)
                assert found.pages_punched == 0
                written |= pages
                assert len(written) <= 256 + 64, "the hot set is one array"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_store_writes_where_its_values_are(guests: dict[str, Path], engine: str) -> None:
    pipe = subprocess.PIPE
    with memvm.Guest([guests["kv"]], ram="64M", engine=engine, stdin=pipe, stdout=pipe) as guest:
        assert guest.stdin is not None
        assert guest.stdout is not None

        def ask(line: str) -> bytes:
            assert guest.stdin is not None
            assert guest.stdout is not None
            guest.stdin.write(f"{line}\n".encode())
            guest.stdin.flush()
            return guest.stdout.readline()

        for number in range(2000):
            ask(f"set key{number} {'x' * 400}")
        with guest.dirty() as look:
            ask("get key7")
            quiet = look()
            ask(f"set key7 {'needle' * 50}")
            guest.pause()
            found = look()
            assert any(
                b"needle" * 50 in read_page(guest, page)
                for first, count in found.written
                for page in range(first, first + count)
            )
        assert quiet.pages_written < 64
        assert found.pages_written < 64 + 64


@pytest.mark.parametrize("engine", ENGINES)
def test_two_copies_agree_page_by_page(guests: dict[str, Path], engine: str) -> None:
    """A copy of all memory that is brought up to date with each look is the memory: nothing was missed."""
    with memvm.Guest([guests["patterns"], "2", "0"], ram="16M", engine=engine, stdout=subprocess.PIPE) as guest:
        assert guest.stdout is not None
        guest.stdout.readline()
        page_count = (16 << 20) // PAGE_SIZE
        with guest.dirty() as look:
            copy: dict[int, bytes] = {}
            guest.pause()
            look()
            for page in range(page_count):
                contents = contents_of(guest, page)
                if contents is not None:
                    copy[page] = contents
            for _ in range(4):
                guest.resume()
                guest.stdout.readline()
                guest.stdout.readline()
                guest.pause()
                changes = look()
                for first, count in changes.punched:
                    for page in range(first, first + count):
                        copy.pop(page, None)
                for first, count in changes.written:
                    for page in range(first, first + count):
                        copy[page] = contents_of(guest, page) or bytes(PAGE_SIZE)
            for page in range(page_count):
                contents = contents_of(guest, page)
                if contents is not None:
                    assert copy.get(page, bytes(PAGE_SIZE)) == contents, f"page {page} differs"


def contents_of(guest: memvm.Guest, page: int) -> bytes | None:
    """A page of the guest; None where nothing is allocated."""
    try:
        return read_page(guest, page)
    except memvm.errors.UsageError:
        return None


def test_the_command(memvm_cli: MemvmCli, guests: dict[str, Path]) -> None:
    with memvm.Guest([guests["counter"], "2", "0", "1"], name="beat", ram="64M", stdout=subprocess.DEVNULL):
        lines = memvm_cli("dirty", "beat", "--every", "200ms", "--count", "5", "--json", code=0).text.splitlines()
        looks = [json.loads(line) for line in lines]
        assert len(looks) == 5
        with memvm_cli.start("dirty", "beat", "--every", "200ms", "--json") as process:
            assert process.stdout is not None
            while not any(look["pages_written"] >= 256 for look in looks):  # a beat takes as long as it takes
                looks.append(json.loads(process.stdout.readline()))
    assert all(look["pages_written"] <= 256 + 64 for look in looks)
    assert all(look["bytes_per_second"] == pytest.approx(look["bytes_written"] / look["seconds"]) for look in looks)


def test_a_live_checkpoint_in_between(guests: dict[str, Path], tmp_path: Path) -> None:
    with memvm.Guest([guests["counter"], "2", "0", "1"], ram="64M", stdout=subprocess.PIPE) as guest:
        assert guest.stdout is not None
        guest.stdout.readline()
        with guest.dirty() as look:
            guest.checkpoint(tmp_path / "beat.ckpt")
            written: set[int] = set()
            while not holds_an_array(written, 256):  # a beat of the guest's takes as long as it takes
                guest.stdout.readline()
                written.update(page for first, count in look().written for page in range(first, first + count))
                assert len(written) <= 256 + 64
        assert guest.status().dirty_rate is None


def test_a_guest_that_ends(guests: dict[str, Path]) -> None:
    with memvm.Guest([guests["counter"], "1", "20"], ram="64M", stdout=subprocess.DEVNULL) as guest:
        with pytest.raises(GuestStateError), guest.dirty() as look:
            guest.wait()
            look()
        assert guest.wait().code == 0
