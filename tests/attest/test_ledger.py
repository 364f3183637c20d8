"""What a verifier remembers: as long as it counts, whatever happens to the machine, and in a file of bounded size."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memvm.attest.ledger import Ledger
from memvm.errors import AttestationError, HostError
from memvm.faultpoints import FaultPoint, arm
from tests.attest.samples import Clock, Lab

HOUR = 3600.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


@pytest.fixture
def ledger(path: Path, clock: Clock) -> Iterator[Ledger]:
    ledger = Ledger(path, clock)
    yield ledger
    ledger.close()


def read_again(path: Path, clock: Clock) -> dict[str, object]:
    ledger = Ledger(path, clock)
    try:
        return {key: ledger.get(key) for key in ledger}
    finally:
        ledger.close()


def test_the_last_of_each_counts_until_it_expires(ledger: Ledger, path: Path, clock: Clock) -> None:
    ledger.note("a", clock.now + HOUR, durable=True, value=1)
    ledger.note("b", clock.now + 2 * HOUR, durable=False, value=2)
    ledger.note("a", clock.now + HOUR, durable=False, value=3)
    assert read_again(path, clock) == {key: ledger.get(key) for key in ("a", "b")}
    assert (ledger.get("a") or {})["value"] == 3
    clock.now += HOUR
    assert "a" not in ledger
    assert list(ledger) == ["b"] == list(read_again(path, clock))
    assert path.stat().st_mode & 0o077 == 0


def test_the_file_is_made_small_by_itself(ledger: Ledger, path: Path, clock: Clock) -> None:
    for number in range(10_000):
        clock.now += 1
        ledger.note(str(number), clock.now + 10, durable=False)
    lines = path.read_bytes().splitlines()
    assert len(lines) < 1100
    assert list(read_again(path, clock)) == list(ledger) == [str(number) for number in range(9990, 10_000)]
    assert path.stat().st_mode & 0o077 == 0


def test_pruning_keeps_what_counts(ledger: Ledger, path: Path, clock: Clock) -> None:
    ledger.note("kept", clock.now + HOUR, durable=True, why="x")
    ledger.note("expired", clock.now, durable=True)
    before = ledger.get("kept")
    ledger.prune()
    assert [json.loads(line) for line in path.read_bytes().splitlines()] == [before]
    ledger.note("later", clock.now + HOUR, durable=True)  # to the new file
    assert set(read_again(path, clock)) == {"kept", "later"}


@pytest.mark.parametrize("torn", [b"{", b'{"key": "torn", "until": 1e12', b"x" * 9000])
def test_a_torn_line_is_cut_off(torn: bytes, path: Path, clock: Clock) -> None:
    """It was never believed, and does not spoil the next one."""
    for name in ("first", "second"):
        ledger = Ledger(path, clock)
        ledger.note(name, clock.now + HOUR, durable=True)
        ledger.close()
        with path.open("ab") as file:
            file.write(torn)
    assert set(read_again(path, clock)) == {"first", "second"}


def test_killed_while_it_prunes(path: Path, clock: Clock) -> None:
    program = (
        "import sys; from pathlib import Path; from memvm.attest.ledger import Ledger\n"
        "ledger = Ledger(Path(sys.argv[1]), lambda: 0.0)\n"
        "ledger.note('kept', 1e12, durable=True)\n"
        "ledger.note('expired', -1.0, durable=True)\n"
        "ledger.prune()\n"
    )
    faults = {"MEMVM_FAULTS": f"{FaultPoint.LEDGER_BEFORE_RENAME}=kill"}
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program, str(path)], cwd=root, env=faults, check=False)
    assert done.returncode == -9
    assert len(path.read_bytes().splitlines()) == 2
    assert set(read_again(path, clock)) == {"kept"}


def test_a_prune_that_fails_loses_nothing(ledger: Ledger, path: Path, clock: Clock) -> None:
    ledger.note("kept", clock.now + HOUR, durable=True)
    with (
        arm(FaultPoint.LEDGER_BEFORE_RENAME, OSError(errno.ENOSPC, "full")),
        pytest.raises(OSError, match="full"),
    ):
        ledger.prune()
    ledger.note("later", clock.now + HOUR, durable=True)
    ledger.prune()
    assert set(read_again(path, clock)) == {"kept", "later"} == set(ledger)


def test_who_remembers_too_much_takes_nothing_new(path: Path, clock: Clock) -> None:
    ledger = Ledger(path, clock, most=3)
    try:
        for name in "abc":
            ledger.note(name, clock.now + HOUR, durable=False)
        ledger.note("a", clock.now + 2 * HOUR, durable=False)
        with pytest.raises(AttestationError, match="no room"):
            ledger.note("d", clock.now + HOUR, durable=False)
        clock.now += HOUR
        ledger.note("d", clock.now + HOUR, durable=False)
        assert set(ledger) == {"a", "d"}
    finally:
        ledger.close()


@pytest.mark.parametrize("contents", ["{}\n", "[]\n", "x\n", '{"key": "a", "until": "soon"}\n', "\n"])
def test_what_cannot_be_read_is_an_error(contents: str, path: Path, clock: Clock) -> None:
    path.write_text(contents)
    with pytest.raises(HostError, match="cannot be read"):
        Ledger(path, clock)


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 5), st.sampled_from(["note", "prune", "open"]))))
def test_it_is_a_mapping_that_forgets(steps: list[tuple[str, int, str]]) -> None:
    clock, model = Clock(), dict[str, tuple[float, int]]()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "ledger"
        ledger = Ledger(path, clock)
        try:
            for number, (key, life, what) in enumerate(steps):
                clock.now += 1
                if what == "note":
                    ledger.note(key, clock.now + life, durable=False, value=number)
                    model[key] = (clock.now + life, number)
                elif what == "prune":
                    ledger.prune()
                else:
                    ledger.close()
                    ledger = Ledger(path, clock)
                expected = {key: value for key, (until, value) in model.items() if until > clock.now}
                assert {key: entry["value"] for key in ledger if (entry := ledger.get(key))} == expected
        finally:
            ledger.close()


def test_two_verifiers_do_not_share_a_memory(lab: Lab) -> None:
    with pytest.raises(HostError, match=r"a verifier runs with the directory .* already"):
        lab.restarted()
    lab.verifier.close()
    lab.restarted()


def test_tokens_are_forgotten_when_they_have_expired(lab: Lab, clock: Clock) -> None:
    """And with them what was said against them: the file of tokens does not grow with those that were issued."""
    for _ in range(3):
        for _ in range(400):
            session = lab.verifier.new_session("broker")
            lab.verifier.answer(session.id, lab.message(session))
        clock.now += lab.policy.token_lifetime + 2 * HOUR
    lines = (lab.directory / "state" / "issued.jsonl").read_bytes().splitlines()
    assert len(lines) < 1100
