"""What the command line does with mistakes, errors, broken pipes and Ctrl-C."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import memvm.errors
from memvm.cli import kill
from memvm.cli.commands import SUMMARIES
from memvm.cli.main import main
from memvm.cli.parser import Parser
from memvm.errors import BadPage, MemvmError, UsageError
from tests.manager.support import ROOT
from tests.support import MemvmCli

error_classes = [
    kind for kind in vars(memvm.errors).values() if isinstance(kind, type) and issubclass(kind, MemvmError)
]


def raise_in_kill(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def execute(_arguments: object) -> int:
        raise error

    monkeypatch.setattr(kill, "execute", execute)


@pytest.mark.parametrize("kind", error_classes, ids=lambda kind: kind.__name__)
def test_an_error_is_two_lines_and_its_exit_code(
    kind: type[MemvmError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = BadPage(1, "it broke", hint="mend it") if kind is BadPage else kind("it broke", hint="mend it")
    raise_in_kill(monkeypatch, error)
    assert main(["kill", "a"]) == kind.exit_code
    assert capsys.readouterr() == ("", "memvm: it broke\n  try: mend it\n")


def test_an_error_without_a_hint_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raise_in_kill(monkeypatch, UsageError("it broke"))
    main(["kill", "a"])
    assert capsys.readouterr().err == "memvm: it broke\n"


@pytest.mark.parametrize("arguments", [["-v", "kill", "a"], ["kill", "-v", "a"], ["kill", "a", "--verbose"]])
def test_a_traceback_comes_with_v(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raise_in_kill(monkeypatch, UsageError("it broke"))
    assert main(arguments) == 64
    error = capsys.readouterr().err
    assert error.startswith("Traceback") and error.endswith("memvm: it broke\n")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (FileNotFoundError(2, "No such file or directory", "/x"), 74, "/x: No such file or directory"),
        (OSError("odd"), 74, "odd"),
        (ZeroDivisionError("by zero"), 70, "internal error: ZeroDivisionError: by zero"),
    ],
)
def test_other_exceptions_are_no_tracebacks_either(
    error: Exception,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    raise_in_kill(monkeypatch, error)
    assert main(["kill", "a"]) == code
    assert capsys.readouterr().err.splitlines()[0] == f"memvm: {message}"


def test_ctrl_c_is_silent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    raise_in_kill(monkeypatch, KeyboardInterrupt())
    assert main(["kill", "a"]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no command was given"),
        (["fly"], "there is no command 'fly'"),
        (["help", "fly"], "there is no command 'fly'"),
        (["--fly", "ps"], "unrecognized arguments: --fly"),
        (["ps", "--fly"], "unrecognized arguments: --fly"),
        (["ps", "--js"], "unrecognized arguments: --js"),
        (["kill"], "the following arguments are required: NAME"),
        (["run"], "no program was given"),
        (["run", "--"], "no program was given"),
        (["run", "--engine", "steam", "x"], "invalid choice: 'steam'"),
        (["run", "--ram", "lots", "/bin/true"], "not a size: 'lots'"),
        (["run", "--time-limit", "soon", "x"], "not a duration: 'soon'"),
        (["run", "--env", "=x", "/bin/true"], "names no variable"),
        (["run", "--env", "NOT_THERE_AT_ALL", "/bin/true"], "no such variable"),
        (["run", "--name", "a/b", "/bin/true"], "cannot be called 'a/b'"),
        (["restore", "--lazy", "--eager", "x"], "not allowed with argument"),
        (["checkpoint", "a", "b", "--level", "high"], "invalid int value: 'high'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_on_the_command_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == UsageError.exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("memvm: ") and message in err.splitlines()[0]


@pytest.mark.parametrize("command", SUMMARIES)
def test_every_command_has_help_of_its_own(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: memvm {command}")
    assert max(map(len, out.splitlines())) <= 110


@pytest.mark.parametrize(
    ("arguments", "begins"), [(["help"], "usage: memvm [-v] COMMAND"), (["help", "run"], "usage: memvm run")]
)
def test_help_is_a_command_too(arguments: list[str], begins: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(begins)


def test_a_misspelt_command_is_recognized(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chekpoint"]) == UsageError.exit_code
    assert capsys.readouterr().err == "memvm: there is no command 'chekpoint'\n  try: memvm checkpoint\n"


def test_the_help_lists_every_command(memvm_cli: MemvmCli) -> None:
    result = memvm_cli("--help", code=0)
    for name, summary in SUMMARIES.items():
        assert f"  {name}" in result.text and summary in result.text


def test_a_program_that_is_not_there(memvm_cli: MemvmCli) -> None:
    result = memvm_cli("run", "no-such-program", code=65)
    assert result.err == "memvm: there is no program 'no-such-program' in PATH\n  try: is it installed?\n"


@pytest.mark.parametrize("arguments", [["--help"], ["doctor", "--fault-points"], ["ps"]])
def test_a_reader_that_has_gone_is_no_traceback(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)  # before there is a writer, which could be done by then
    try:
        result = subprocess.run(
            [sys.executable, "-m", "memvm", *arguments], check=False, stdout=writing, stderr=subprocess.PIPE, cwd=ROOT
        )
    finally:
        os.close(writing)
    assert (result.returncode, result.stderr) == (128 + signal.SIGPIPE, b"")


def test_closed_standard_streams_are_no_traceback() -> None:
    result = subprocess.run(
        ["sh", "-c", '"$0" -m memvm ps >&- 2>&-; echo $?', sys.executable],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert (result.stdout, result.stderr) == ("0\n", "")


@pytest.mark.parametrize("columns", ["60", "200", "0", "-5", "wide", ""])
def test_help_is_as_wide_as_argparse_makes_it(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    ours, theirs = Parser("memvm", "A test."), argparse.ArgumentParser("memvm")
    assert ours._get_formatter()._width == theirs._get_formatter()._width


@pytest.mark.parametrize("arguments", [["doctor", "--fault-points"], ["ps"]], ids=["much", "little"])
def test_output_that_cannot_be_written_is_an_error_in_words(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "memvm", *arguments],
            check=False,
            stdout=full,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
    # Python tells which file it was if it is written at the end.
    assert result.stderr.replace("standard output: ", "") == "memvm: No space left on device\n"
    assert result.returncode == 74


def test_a_current_directory_that_has_gone(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    result = subprocess.run(
        ["sh", "-c", 'rmdir "$PWD" && exec "$@"', "-", sys.executable, "-m", "memvm", "run", "./program"],
        check=False,
        cwd=gone,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert result.returncode == 74
    assert result.stderr.splitlines()[-2] == "memvm: the current directory is not there any more"


def test_a_standard_error_that_cannot_be_written_changes_no_status(busybox: Path) -> None:
    """What is said there comes from the command line, from the launch of a guest, from its calls, and of its end."""
    for arguments, status in [
        (["ps", "--fly"], 64),
        (["run", "--strace", "--pass", "/usr", "--", str(busybox), "echo", "word"], 0),
    ]:
        with Path("/dev/full").open("w") as full:
            result = subprocess.run(
                [sys.executable, "-m", "memvm", *arguments],
                check=False,
                stdout=subprocess.PIPE,
                stderr=full,
                cwd=ROOT,
            )
        assert result.returncode == status
    assert result.stdout == b"word\n"
