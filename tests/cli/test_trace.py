"""`memvm trace`: its arguments and what it prints, of a guest that goes over its memory again and again."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import memvm
from memvm.cli.main import main
from memvm.cli.trace import parse_pages
from memvm.errors import SaveError, SettingRefused, UsageError
from memvm.recording.reader import Ending, Recording
from memvm.units import MIB


@pytest.fixture
def guest(guests: dict[str, Path]) -> Iterator[memvm.Guest]:
    """A guest called "scanning" that reads 8 MiB for ever."""
    with memvm.Guest([str(guests["scan"]), "8", "0"], ram="64M", name="scanning", stdout=subprocess.DEVNULL) as guest:
        yield guest


@pytest.mark.parametrize(
    ("text", "runs"),
    [("7", [(7, 1)]), ("0-0", [(0, 1)]), ("512-1023,2048", [(512, 512), (2048, 1)]), ("1, 3-4", [(1, 1), (3, 2)])],
)
def test_pages(text: str, runs: list[tuple[int, int]]) -> None:
    assert parse_pages(text) == runs


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "4-3", "1,,2", "1-2-3"])
def test_what_are_no_pages(text: str) -> None:
    with pytest.raises(UsageError):
        parse_pages(text)


def test_accesses_for_people(guest: memvm.Guest, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "scanning", "--access", "r", "--count", "20", "--instruction"]) == 0
    output = capsys.readouterr()
    lines = [line.split() for line in output.out.splitlines()]
    assert len(lines) == 20
    assert {line[1] for line in lines} <= {"read", "write"}
    assert all(int(line[4], 16) == 0x200000 + int(line[3]) * 4096 for line in lines)
    assert any("at" in line for line in lines)
    assert output.err == "memvm: 20 accesses\n"


def test_accesses_for_programs(guest: memvm.Guest, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "scanning", "--again", "5ms", "--count", "3000", "--json"]) == 0
    output = capfd.readouterr()
    first, *lines = [json.loads(line) for line in output.out.splitlines()]
    assert (first["recording"], first["name"], first["ram_size"]) == (1, "scanning", 64 * MIB)
    assert any("regions" in line for line in lines)
    assert lines[-1] == {"end": True}
    events = [line for line in lines if "page" in line]
    pages = [event["page"] for event in events]
    assert len(pages) == 3000
    assert len(set(pages)) < 3000, "no page was traced anew"
    assert {event["access"] for event in events} <= {"r", "w"}
    assert output.err == ""


@pytest.mark.parametrize("as_json", [False, True])
def test_a_recording(guest: memvm.Guest, tmp_path: Path, capfd: pytest.CaptureFixture[str], as_json: bool) -> None:
    path = tmp_path / "scanning.trace"
    arguments = ["trace", "scanning", "--count", "500", "--record", str(path)]
    assert main([*arguments, "--json"] if as_json else arguments) == 0
    output = capfd.readouterr()
    assert (output.out, output.err) == ("", "memvm: 500 accesses\n")
    with Recording.open(path) as recording:
        events = [event for block in recording.blocks() for event in block]
        assert recording.ending == Ending(finished=True)
        assert {region.name for region in recording.regions} >= {"image", "stack"}
    assert len(events) == 500
    assert path.read_bytes().startswith(b"{") == as_json


def test_a_recording_that_cannot_be_written(guest: memvm.Guest, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "scanning", "--record", "/dev/full"]) == SaveError.exit_code
    assert "No space left" in capfd.readouterr().err
    assert main(["ps"]) == 0
    assert "scanning" in capfd.readouterr().out


def test_it_ends_after_its_time(guest: memvm.Guest, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "scanning", "--pages", "0", "--for", "10ms"]) == 0
    assert capsys.readouterr().err == "memvm: 0 accesses\n"


def test_pages_that_the_guest_has_not_got(guest: memvm.Guest, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "scanning", "--pages", "16384"]) == UsageError.exit_code
    assert "guest RAM has 16384" in capsys.readouterr().err


@pytest.mark.parametrize("recorded", [False, True])
def test_a_guest_that_may_not_be_traced_says_so_and_nothing_else(
    guests: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], recorded: bool
) -> None:
    path = tmp_path / "scanning.trace"
    words = ["--record", str(path)] if recorded else ["--json"]
    scan, settings = [str(guests["scan"]), "8", "0"], {"debug": "off:refuse"}
    with memvm.Guest(scan, ram="64M", name="closed", settings=settings, stdout=subprocess.DEVNULL):
        assert main(["trace", "closed", "--for", "10ms", *words]) == SettingRefused.exit_code
        assert main(["trace", "closed", "--for", "10ms"]) == SettingRefused.exit_code
    output = capfd.readouterr()
    assert (output.out, path.exists()) == ("", False), "there is a recording of a trace that there was not"
    assert "accesses" not in output.err
    assert output.err.count("'trace' needs debug=on, and this guest has debug=off") == 2
