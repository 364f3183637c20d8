"""A guest that verifies all its memory, through life after life: each in a manager of its own, and saved at random.

Each life begins with a restore by some policy on some engine, or as one of two clones, and ends with a save: live or
stopped, on top of an earlier file or of none, or a suspend; some files are merged. What all lives have printed is what
the program prints in one. MEMVM_TEST_LIVES and MEMVM_TEST_FIRST_LIFE are as in test_random_lives.py.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import memvm
from memvm.checkpoint.merge import merge
from tests.checkpoint.lives import Life, look, restored, running
from tests.checkpoint.test_incremental import CHANGING, ENGINES
from tests.checkpoint.test_random_lives import FIRST_SEED, LIVES, POLICIES
from tests.checkpoint.test_save_restore import assert_continues, native_output


@contextmanager
def one_of_two_clones(folder: Path, path: Path, engine: str) -> Iterator[Life]:
    """The second one; the first one goes on beside it."""
    folder.mkdir()
    with memvm.restore_clones(path, 2, name="c", engine=engine, output=folder) as clones:
        for name in ("out", "err"):
            (folder / name).symlink_to(f"c-2.{name}")
        yield Life(clones[1], folder)


SAVES = ("suspend", "live", "stopped", "live on a parent", "stopped on a parent")


def save(life: Life, path: Path, kind: str, files: list[Path], dice: random.Random) -> bytes:
    """Save a guest in this way; returns what it had written at that instant. Parents are among the files."""
    if kind == "suspend":
        life.guest.suspend(path, time=dice.choice((0.0, 0.03, 30.0)))
    else:
        parent = dice.choice(files[-4:]) if files and "parent" in kind else None
        life.guest.checkpoint(path, live=kind.startswith("live"), parent=parent)
    offset = look(path).streams[1].file_offset
    assert offset is not None
    return life.output()[:offset]


def test_memory_and_output_go_on(guests: dict[str, Path], tmp_path: Path) -> None:
    dice = random.Random(FIRST_SEED)
    natively = native_output(guests["patterns"], "3", str(40 + 12 * LIVES), *CHANGING[2:])
    files: list[Path] = []
    before, story = b"", list[str]()
    for number in range(LIVES):
        folder, engine, policy = tmp_path / str(number), dice.choice(ENGINES), dice.choice((*POLICIES, "clone"))
        story.append(f"life {number}: {policy} on {engine}")
        if not files:
            life_of = running(folder, guests["patterns"], "3", *CHANGING[1:], engine=engine)
        elif policy == "clone":
            life_of = one_of_two_clones(folder, files[-1], engine)
        else:
            background = dice.random() < 0.6
            life_of = restored(folder, files[-1], engine=engine, policy=policy, background=background, window=0.1)
        try:
            with life_of as life:
                life.await_lines(dice.randint(0, 2))
                for kind in (*dice.choice([(), (), ("live",), ("stopped",)]), dice.choice(SAVES)):
                    path = tmp_path / f"{number}-{len(files)}.ckpt"
                    story.append(f"  {kind}: {path.name}")
                    printed = save(life, path, kind, files, dice)
                    files.append(path)
                assert_continues(before + printed or natively[:1], natively)
                assert life.complaints() == ""
            before += printed
            if dice.random() < 0.2:
                path = tmp_path / f"{number}-merged.ckpt"
                merge(files[-1], path, lambda _done, _total: None)
                files.append(path)
        except BaseException as error:
            error.add_note("\n".join(story))
            raise
    with restored(tmp_path / "last", files[-1]) as life:
        life.await_lines(3)
        assert_continues(before + life.output(), natively)
