"""`memvm heatmap` as a user sees it."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from memvm.cli.main import main
from tests.recording.samples import event, record
from tests.support import MemvmCli

EVENTS = [event(page % 40, 1 + page % 2, page / 100) for page in range(200)]


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    return record(tmp_path / "hub.trace", EVENTS)


def test_it_keeps_to_the_width(
    recording: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in UTF8.items():
        monkeypatch.setenv(name, value)
    for width in (40, 80, 200):
        assert main(["heatmap", str(recording), "--width", str(width), "--rows", "5"]) == 0
        lines = capsys.readouterr().out.splitlines()
        body = [line for line in lines if "│" in line]
        assert len(body) == 5 and max(map(len, body)) <= width


UTF8 = {"LC_ALL": "", "LC_CTYPE": "", "LANG": "C.UTF-8", "TERM": "xterm", "PYTHONIOENCODING": "utf-8"}


@pytest.mark.parametrize(
    "env",
    [
        {**UTF8, "PYTHONIOENCODING": "ascii"},
        {**UTF8, "LC_ALL": "C"},
        {**UTF8, "LANG": "C"},
        {**UTF8, "LANG": "POSIX"},
        {**UTF8, "TERM": "dumb"},
    ],
    ids=lambda env: ",".join(f"{key}={env[key]}" for key in env if env[key] != UTF8[key]),
)
def test_ascii_where_nothing_else_is_wanted(recording: Path, memvm_cli: MemvmCli, env: dict[str, str]) -> None:
    by_option = memvm_cli("heatmap", "--ascii", recording, env=UTF8, code=0)
    assert by_option.text.isascii()
    assert memvm_cli("heatmap", recording, env=env, code=0).out == by_option.out
    assert "█" in memvm_cli("heatmap", recording, env=UTF8, code=0).text


def test_from_standard_input(recording: Path, memvm_cli: MemvmCli) -> None:
    piped = memvm_cli("heatmap", "-", stdin=recording.read_bytes(), code=0)
    assert piped.out == memvm_cli("heatmap", recording, code=0).out


def test_a_picture(recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "hub.svg"
    assert main(["heatmap", str(recording), "--svg", str(path)]) == 0
    assert capsys.readouterr().out == ""
    assert ElementTree.parse(path).getroot().tag.endswith("svg")


def test_for_programs(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["heatmap", str(recording), "--json", "--access", "w", "--width", "60"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["name"], found["access"], found["events"], found["pages"]) == ("hub", 2, 100, 40)
    assert sum(sum(row["counts"]) for row in found["rows"]) == 100


def test_mistakes(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["heatmap", str(recording), "--rows", "0"]) == 64
    assert "no heat map has" in capsys.readouterr().err
    assert main(["heatmap", "/dev/null"]) == 65
    assert main(["heatmap", str(recording), "--svg", "/no/such/directory/a.svg"]) == 74
