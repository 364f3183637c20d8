"""A directory of the host's to give to guests, with something beside it that they must not reach."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from memvm.files.given import given_tree
from memvm.files.nodes import Budget
from memvm.files.specs import Access, ViewSpec
from memvm.files.tree import Tree

SECRET = b"not for guests"


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """The directory that is given; its neighbour `secret` is not."""
    (tmp_path / "secret").write_bytes(SECRET)
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "inside").write_bytes(SECRET)
    folder = tmp_path / "given"
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / "file").write_bytes(b"given")
    (folder / "sub" / "deep" / "file").write_bytes(b"deep")
    return folder


@pytest.fixture(params=list(Access))
def tree(request: pytest.FixtureRequest, given: Path) -> Iterator[Tree]:
    """A tree with the directory at /g, in each of the ways to give it."""
    made = given_tree([ViewSpec(request.param, str(given), "/g")], Budget())
    yield made
    made.close()
