"""Each demo guest, run natively, does what it declares: where one differs under memvm, memvm is to blame."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import pytest

from tests.guests.declaration import Run, Where, built, declared_runs
from tools.build_guests import BUILD, GUESTS, CannotBuild, build, guest_names

RUNS = declared_runs(Where.NATIVE)
LIMIT = 20.0
"""Seconds that a run may take."""
STILL_RUNS = 0.05
"""Seconds that an endless guest is watched for, after its declared beginning: it must not end in them."""


def shell_status(returncode: int) -> int:
    """An exit status as a shell tells it."""
    return returncode if returncode >= 0 else 128 - returncode


def run_to_end(command: list[str], run: Run, directory: Path, limit: float) -> tuple[bytes, int | None]:
    """Standard output and exit status of a guest that ends."""
    result = subprocess.run(command, check=False, input=run.stdin, capture_output=True, cwd=directory, timeout=limit)
    return result.stdout, shell_status(result.returncode)


def run_beginning(command: list[str], run: Run, directory: Path, limit: float) -> tuple[bytes, int | None]:
    """The first lines of an endless guest, and its exit status if it ended, else None."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=directory) as process:
        assert process.stdout is not None
        alarm = threading.Timer(limit, process.kill)  # if it hangs, its end is the end of the reading
        alarm.start()
        lines = [process.stdout.readline() for _ in range(run.beginning)]
        try:
            code = shell_status(process.wait(STILL_RUNS))
        except subprocess.TimeoutExpired:
            code = None
            process.kill()
        alarm.cancel()
        alarm.join()
    return b"".join(lines), code


@pytest.mark.parametrize("run", RUNS, ids=[f"{run.guest}: {run.name}" for run in RUNS])
def test_guest_keeps_to_its_declaration(run: Run, guests: dict[str, Path], tmp_path: Path, time_scale: float) -> None:
    for program in built(run, guests):
        directory = tmp_path / program.name
        directory.mkdir()
        command = [str(program), *run.args]
        start = run_beginning if run.endless else run_to_end
        stdout, code = start(command, run, directory, LIMIT * time_scale)
        assert run.complaints(stdout, code) == [], f"{program} {' '.join(run.args)}"
        assert list(directory.iterdir()) == [], f"{program} left files behind"


def test_every_guest_has_a_readme_line_an_expectation_and_a_place_in_the_readme() -> None:
    readme = (GUESTS / "README.md").read_text()
    for name in guest_names():
        own = name.rpartition("/")[2]
        source = GUESTS / name / f"{own}.c"
        assert source.read_text().startswith(f"/* {own}: "), f"{source} does not say what it shows"
        assert f"`{own}`" in readme, f"guests/README.md has no {own}"
    sources = {str(file.parent.relative_to(GUESTS)) for file in GUESTS.glob("**/*.c")}
    assert sources == set(guest_names())


def test_every_file_of_a_guest_is_used() -> None:
    for name in guest_names():
        declaration = (GUESTS / name / "expected.json").read_text()
        for file in (GUESTS / name).iterdir():
            if file.suffix not in (".c", ".json"):
                assert f'"{file.name}"' in declaration, f"nothing uses {file}"


@pytest.mark.parametrize(
    ("run", "stdout", "code", "complaint"),
    [
        (Run("g", "r", (), stdout=b"a\n"), b"a\nb\n", 0, "output is"),
        (Run("g", "r", (), stdout=b"a\nb\n", endless=True), b"a\n", None, "output is"),
        (Run("g", "r", (), stdout_lines=(r"a \d",)), b"a x\n", 0, "does not match"),
        (Run("g", "r", (), stdout_lines=(r"a \d",)), b"a 1\na 2\n", 0, "has 2 lines"),
        (Run("g", "r", (), stdout_lines=(r"a \d",) * 2, endless=True), b"a 1\n", None, "has 1 lines"),
        (Run("g", "r", (), stdout_has=("x",)), b"", 0, "lacks"),
        (Run("g", "r", (), stdout_lacks=("x",)), b"x", 0, "must not"),
        (Run("g", "r", (), exit=(139,)), b"", 0, "exit status is 0"),
        (Run("g", "r", (), endless=True), b"", 0, "should run for ever"),
    ],
)
def test_a_broken_declaration_is_noticed(run: Run, stdout: bytes, code: int | None, complaint: str) -> None:
    [found] = run.complaints(stdout, code)
    assert complaint in found


def test_a_right_run_has_no_complaints() -> None:
    endless = Run("g", "r", (), stdout=b"a\n", endless=True)
    assert endless.complaints(b"a\nb\n", None) == []
    ended = Run("g", "r", (), stdout_lines=("a+",), stdout_has=("a",), stdout_lacks=("b",), exit=(0, 139))
    assert ended.complaints(b"aaa\n", 139) == []


def test_build_of_one_guest_is_its_variants_and_of_an_unknown_one_an_error(guests: dict[str, Path]) -> None:
    assert set(build(["counter"])) == {name for name in guests if name.startswith("counter")}
    assert build(["bad/null"])["bad/null"] == BUILD / "bad" / "null"
    with pytest.raises(CannotBuild, match=r"no such guest: nemo\. There are: .*counter"):
        build(["nemo"])


def test_without_gcc_the_build_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(CannotBuild, match="apt-get install gcc"):
        build(["counter"])


def test_what_is_up_to_date_is_not_built_again(guests: dict[str, Path]) -> None:
    before = {name: path.stat().st_mtime_ns for name, path in guests.items()}
    assert {name: path.stat().st_mtime_ns for name, path in build().items()} == before
