"""`memvm replay` as a user sees it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memvm.cli.main import main
from tests.recording.samples import event, record

EVENTS = [event(page % 40, 1 + page % 2, page / 100) for page in range(200)]


@pytest.fixture
def recording(tmp_path: Path) -> str:
    return str(record(tmp_path / "hub.trace", EVENTS))


def test_policies_side_by_side(recording: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", recording]) == 0
    first, pages, costs, _, headings, *lines = capsys.readouterr().out.splitlines()
    assert first == f"{recording}: saved during the first 497.5 ms, then restored and run for 1.49 s"
    assert pages == (
        "  40 pages (160.0 KiB) of data (those that were seen accessed), "
        "40 pages (160.0 KiB) active, 40 pages (160.0 KiB) recorded"
    )
    assert costs == "  a demand fault costs 100 µs, a page 4 µs"
    assert headings.split()[:4] == ["POLICY", "FAULTS", "LOADED", "PREFETCHED"]
    assert [line.split()[:6] for line in lines] == [
        ["demand", "40", "40", "0", "-", "0%"],
        ["sequential", "1", "40", "39", "100%", "98%"],
        ["active", "0", "40", "40", "100%", "100%"],
        ["recorded", "0", "40", "40", "100%", "100%"],
        ["eager", "0", "40", "40", "100%", "100%"],
    ]


def test_for_programs(recording: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "replay",
        recording,
        "--policy",
        "demand",
        "--cut",
        "1s",
        "--fault-cost",
        "1s",
        "--page-cost",
        "0",
        "--json",
    ]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["saved_seconds"], found["costs"]) == (1.0, {"fault": 1.0, "page": 0.0})
    (policy,) = found["policies"]
    assert (policy["policy"], policy["demand_faults"], policy["stall_seconds"]) == ("demand", 40, 40.0)


def test_an_earlier_restore_says_what_is_recorded(
    recording: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = record(tmp_path / "earlier.trace", [event(0), event(1), event(2, at=1.5)])
    assert main(["replay", recording, "--policy", "recorded", "--earlier", str(earlier), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["recorded_pages"], found["policies"][0]["demand_faults"]) == (2, 38)


def test_compare_tries_all_and_the_given_ones(recording: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", recording, "--compare", "--policy", "active", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["policies"]) == 5


def test_what_was_lost_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golden = Path(__file__).parent.parent / "recording" / "golden" / "version1.trace"
    cut = tmp_path / "cut.trace"
    cut.write_bytes(golden.read_bytes()[:-40])
    assert main(["replay", str(cut)]) == 0
    out = capsys.readouterr().out
    assert "only: it was cut short" in out


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--cut", "1h"], "--cut 1h is not in the recording", 64),
        (["--cut", "x%"], "not a share: 'x%'", 64),
        (["--policy", "fast"], "there is no policy 'fast'", 64),
        (["--earlier", "/dev/null"], "/dev/null is not an ordinary file", 65),
    ],
)
def test_mistakes(
    recording: str, arguments: list[str], message: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", recording, *arguments]) == code
    assert message in capsys.readouterr().err


def test_a_checkpoint_of_another_guest(recording: str, capsys: pytest.CaptureFixture[str]) -> None:
    golden = Path(__file__).parent.parent / "checkpoint" / "golden" / "version1.ckpt"
    assert main(["replay", recording, "--checkpoint", str(golden)]) == 64
    assert "is no checkpoint of the recorded guest" in capsys.readouterr().err
