"""Hint files: they come back as they were, and whatever happens to one does no harm."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path
from zlib import crc32

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from memvm.checkpoint.format import FormatError
from memvm.checkpoint.hint_file import HEADER_SIZE, Hints, hint_path, merged, read_hints, write_hints
from memvm.errors import SaveError
from memvm.recording.hints import MAX_AGE, PageHint
from memvm.units import PAGE_SIZE

FRESH = Hints(bytes(range(16)), 64 * PAGE_SIZE)
SAMPLE = FRESH.with_entries([PageHint(9, 3, 0), PageHint(63, 1, 0), PageHint(0, 255, MAX_AGE - 1)], 3)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tmp_path / "a.ckpt"


def test_hints_come_back_as_they_were(checkpoint: Path) -> None:
    assert read_hints(checkpoint, FRESH) == (FRESH, "")
    write_hints(checkpoint, SAMPLE)
    assert hint_path(checkpoint).name == "a.ckpt.hints"
    assert read_hints(checkpoint, FRESH) == (SAMPLE, "")
    write_hints(checkpoint, FRESH)
    assert read_hints(checkpoint, FRESH) == (FRESH, "")
    assert [path.name for path in checkpoint.parent.iterdir()] == ["a.ckpt.hints"], "nothing else is left"


@given(
    st.lists(st.builds(PageHint, st.integers(0, 63), st.integers(1, 255), st.integers(0, 3)), unique_by=lambda h: h[0])
)
def test_any_hints_come_back(pages: list[PageHint]) -> None:
    hints = FRESH.with_entries(pages, 1)
    assert Hints.unpack(hints.pack()) == hints and hints.entries == pages


def test_merging_counts_restores_and_is_bounded() -> None:
    hints = merged(merged(FRESH, [5, 6], 10), [6, 7], 10)
    assert hints.restores == 2
    assert hints.entries == [PageHint(6, 2, 0), PageHint(7, 1, 0), PageHint(5, 1, 1)]
    assert len(merged(hints, range(20), 4).pages) == 4


def test_hints_of_another_checkpoint_are_not_used(checkpoint: Path) -> None:
    write_hints(checkpoint, SAMPLE._replace(checkpoint_id=bytes(16)))
    hints, problem = read_hints(checkpoint, FRESH)
    assert hints == FRESH and problem == f"{hint_path(checkpoint)} is not used: it is of another checkpoint"


@pytest.mark.parametrize("data", [b"", b"memvmHNT", bytes(64), SAMPLE.pack()[:-1], SAMPLE.pack() + b"x"])
def test_what_is_no_hint_file_is_not_used(data: bytes, checkpoint: Path) -> None:
    hint_path(checkpoint).write_bytes(data)
    hints, problem = read_hints(checkpoint, FRESH)
    assert hints == FRESH and "is not used: it" in problem


def test_a_newer_file_says_so(checkpoint: Path) -> None:
    data = bytearray(SAMPLE.pack())
    data[8] = 2
    hint_path(checkpoint).write_bytes(data)
    assert "written by a newer memvm: version 2" in read_hints(checkpoint, FRESH)[1]


def test_what_is_no_file_is_neither_read_nor_replaced(checkpoint: Path) -> None:
    os.mkfifo(hint_path(checkpoint))
    assert read_hints(checkpoint, FRESH)[0] == FRESH
    with pytest.raises(SaveError, match="not an ordinary file"):
        write_hints(checkpoint, SAMPLE)


def resealed(pages: list[tuple[int, int, int]], **changes: int) -> bytes:
    """A file with every checksum right and the rest as it may be."""
    columns = struct.pack(f"<{len(pages)}I", *_steps([page for page, _, _ in pages]))
    columns += bytes(hits for _, hits, _ in pages) + bytes(age for _, _, age in pages)
    frame = zstandard.compress(columns)
    fields = {"count": len(pages), "ram": FRESH.ram_size, "length": len(frame)} | changes
    header = struct.pack(
        "<8sHHI16sQIII8x",
        *(b"memvmHNT", 1, 64, fields["count"], FRESH.checkpoint_id, fields["ram"], 1, fields["length"], crc32(frame)),
    )
    return header + struct.pack("<I", crc32(header)) + frame


def _steps(pages: list[int]) -> list[int]:
    return [(page - before) % (1 << 32) for before, page in zip([0, *pages], pages, strict=False)]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (resealed([(64, 1, 0)]), "a page that is not in RAM"),
        (resealed([(1, 1, 0), (1, 1, 0)]), "or one twice"),
        (resealed([(1, 0, 0)]), "that no restore used"),
        (resealed([(1, 1, MAX_AGE)]), "that no restore used"),
        (resealed([(1, 1, 0)], count=2), "does not hold 12 bytes"),
        (resealed([(1, 1, 0)], count=1 << 31), "more pages than there may be"),
        (resealed([(1, 1, 0)], ram=PAGE_SIZE), "a page that is not in RAM"),
        (resealed([(1, 1, 0)], length=1), "it is damaged"),
    ],
)
def test_hostile_hints(data: bytes, reason: str) -> None:
    assert Hints.unpack(resealed([(1, 1, 0)])).entries == [PageHint(1, 1, 0)]
    with pytest.raises(FormatError, match=reason):
        Hints.unpack(data)


def test_changed_files_do_no_harm() -> None:
    """Half of them with right checksums: nothing but FormatError comes out, and nothing impossible."""
    data = SAMPLE.pack()
    accepted = 0
    for seed in range(4000):
        rng = random.Random(seed)
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 3))):
            place = rng.randrange(len(changed))
            changed[place : place + rng.choice((0, 1, 4))] = rng.choice(
                (b"", b"\xff", bytes(4), b"\xff" * 4, rng.randbytes(8), changed[:40])
            )
        if rng.random() < 0.5 and len(changed) >= HEADER_SIZE:
            struct.pack_into("<II", changed, 44, len(changed) - HEADER_SIZE, crc32(changed[HEADER_SIZE:]))
            struct.pack_into("<I", changed, 60, crc32(changed[:60]))
        try:
            hints = Hints.unpack(bytes(changed))
        except FormatError:
            continue
        accepted += 1
        assert all(
            0 <= page < hints.ram_size // PAGE_SIZE and hits > 0 and age < MAX_AGE for page, hits, age in hints.entries
        )
    assert 10 < accepted < 3000
