"""Policies name pages; what they name is looked at in one place."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memvm.errors import UsageError
from memvm.memory.pages import PageRun
from memvm.recording.policies import (
    BUILT_IN,
    LEAST_BOUND,
    ActiveList,
    ActivePage,
    Named,
    RestoreFacts,
    in_order,
    load_policy,
)

FACTS = RestoreFacts(
    100,
    [PageRun(0, 10), PageRun(50, 50)],
    active=ActiveList.of([(60, 1), (61, 3), (5, 2)]),
    recorded=[7, 8, 3],
)
MODULE = """
from array import array
from memvm.memory.pages import PageRun

class Good:
    name = "good"
    def prefetch(self, facts): return [(1, 2)]
    def on_fault(self, page, facts): return [PageRun(page, 1)]

class Nameless(Good):
    name = ""

class Answers(Good):
    answer = None
    def prefetch(self, facts): return self.answer

class Nothing(Answers): pass
class Outside(Answers): answer = [PageRun(99, 2)]
class Before(Answers): answer = [PageRun(-1, 2)]
class Empty(Answers): answer = [PageRun(5, 0)]
class Numbers(Answers): answer = [5]
class Texts(Answers): answer = [("a", "b")]
class Truths(Answers): answer = [(True, True)]
class Columns(Answers): answer = array("Q", [7, 99, 7])
class NoColumns(Answers): answer = array("I")
class OutsideColumns(Answers): answer = array("I", [3, 100])
class BeforeColumns(Answers): answer = array("b", [3, -1])
class Fractions(Answers): answer = array("d", [3.0])

class ColumnsAtFault(Good):
    def on_fault(self, page, facts): return array("I", [page])

class Raises(Good):
    def prefetch(self, facts): raise KeyError("lost")

class Half:
    name = "half"
    def prefetch(self, facts): return []

class Unmade(Good):
    def __init__(self): raise RuntimeError("no")

constant = 5
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_policies.py").write_text(MODULE)
    (tmp_path / "broken_policies.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_policies", raising=False)
    return "own_policies"


def runs(named: Named) -> list[PageRun]:
    return named if isinstance(named, list) else in_order(named)


@pytest.mark.parametrize(
    ("name", "before", "at_fault"),
    [
        ("demand", [], []),
        ("sequential", [], [PageRun(64, 36)]),
        ("active", [PageRun(60, 2), PageRun(5, 1)], []),
        ("recorded", [PageRun(7, 2), PageRun(3, 1)], []),
        ("eager", [PageRun(0, 10), PageRun(50, 50)], []),
    ],
)
def test_what_the_built_in_policies_bring(name: str, before: list[PageRun], at_fault: list[PageRun]) -> None:
    policy = load_policy(name)
    assert policy.name == name
    assert runs(policy.prefetch(FACTS)) == before
    assert policy.on_fault(98, FACTS) == at_fault


def test_what_is_brought_ahead_is_bounded_by_half_of_the_data() -> None:
    active = ActiveList.of((page, 1) for page in range(50_000))
    facts = RestoreFacts(1 << 20, [PageRun(0, 60_000), PageRun(70_000, 20_000)], active, range(1 << 20))
    assert runs(load_policy("recorded").prefetch(facts)) == [PageRun(0, 40_000)]
    assert runs(load_policy("active").prefetch(facts)) == [PageRun(0, 40_000)]
    small = facts._replace(data_runs=[PageRun(0, LEAST_BOUND)])
    assert runs(load_policy("active").prefetch(small)) == [PageRun(0, LEAST_BOUND)], "it is soon there"


def test_recorded_brings_what_is_active_as_long_as_nothing_is_recorded() -> None:
    facts = FACTS._replace(recorded=())
    assert load_policy("recorded").prefetch(facts) == load_policy("active").prefetch(facts)
    assert list(load_policy("recorded").prefetch(facts)) == [60, 61, 5]


def test_which_policies_look_at_faults_and_recordings(module: str) -> None:
    names = [*BUILT_IN, f"{module}:Good"]
    assert [name for name in names if load_policy(name).goes_around] == ["sequential", f"{module}:Good"]
    assert [name for name in names if load_policy(name).wants_recorded] == ["recorded", f"{module}:Good"]


def test_a_policy_in_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "policies_here.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    assert load_policy("policies_here:Good").name == "good"
    assert sys.path == path
    del sys.modules["policies_here"]


@given(st.lists(st.tuples(st.integers(0, 1 << 32 - 1), st.integers(1, 3))))
def test_the_active_list_is_a_sequence_in_columns(accesses: list[tuple[int, int]]) -> None:
    active = ActiveList.of(accesses)
    pages = [ActivePage(*access) for access in accesses]
    assert list(active) == pages == active[:] and len(active) == len(pages)
    assert [active[place] for place in range(-len(pages), len(pages))] == pages + pages
    assert active[1:3] == pages[1:3]
    assert list(active.pages) == [page for page, _ in pages]


@given(st.lists(st.integers(0, 30)))
def test_runs_keep_the_order_of_the_pages(pages: list[int]) -> None:
    runs = in_order(pages)
    assert [page for run in runs for page in range(run.first, run.end)] == pages


def test_a_users_own_policy(module: str) -> None:
    policy = load_policy(f"{module}:Good")
    assert (policy.name, policy.prefetch(FACTS), policy.on_fault(9, FACTS)) == (
        "good",
        [PageRun(1, 2)],
        [PageRun(9, 1)],
    )
    assert load_policy(f"{module}:Nameless").name == f"{module}:Nameless"
    assert list(load_policy(f"{module}:Columns").prefetch(FACTS)) == [7, 99, 7]
    assert list(load_policy(f"{module}:NoColumns").prefetch(FACTS)) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fast", "there is no policy 'fast'"),
        (":", "there is no policy ':'"),
        ("own_policies:", "there is no policy"),
        ("no_such_module:A", "no_such_module cannot be imported: ModuleNotFoundError"),
        ("broken_policies:A", "broken_policies cannot be imported: ZeroDivisionError"),
        ("own_policies:Missing", "own_policies has no Missing"),
        ("own_policies:Unmade", "cannot be made: RuntimeError: no"),
        ("own_policies:Half", "Half is no policy: it has no on_fault()"),
        ("own_policies:constant", "cannot be made: TypeError"),
    ],
)
def test_what_is_no_policy(name: str, message: str, module: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_policy(name)
    assert message in caught.value.message and caught.value.hint


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Nothing", "named a NoneType, not a list of page runs"),
        ("Outside", "named 2 pages from page 99, where RAM has pages 0 to 99"),
        ("Before", "named 2 pages from page -1"),
        ("Empty", "named 0 pages from page 5"),
        ("Numbers", "named 5, which is no run of pages"),
        ("Texts", "named ('a', 'b'), which is no run of pages"),
        ("Truths", "named (True, True), which is no run of pages"),
        ("OutsideColumns", "named page 100, where RAM has pages 0 to 99"),
        ("BeforeColumns", "named page -1, where"),
        ("Fractions", "named an array of type 'd', which are no page numbers"),
        ("Raises", "failed: KeyError: 'lost'"),
    ],
)
def test_a_policy_that_misbehaves(name: str, message: str, module: str) -> None:
    policy = load_policy(f"{module}:{name}")
    with pytest.raises(UsageError) as caught:
        policy.prefetch(FACTS)
    assert caught.value.message.startswith("policy good ") and message in caught.value.message


def test_at_a_fault_pages_are_named_as_runs(module: str) -> None:
    with pytest.raises(UsageError, match="policy good named a array, not a list of page runs"):
        load_policy(f"{module}:ColumnsAtFault").on_fault(9, FACTS)


def test_the_names_are_those_of_the_policies() -> None:
    assert {name: kind().name for name, kind in BUILT_IN.items()} == {name: name for name in BUILT_IN}
