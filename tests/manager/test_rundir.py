"""The run-time directory: private, free of what the dead left, and one owner a name."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from memvm.errors import GuestStateError, HostError, NoSuchGuest, UsageError
from memvm.machine.config import RunState
from memvm.manager.rundir import RunDir, check_name, location
from tests.manager.support import ROOT, fake_memvm, wait_for_state


@pytest.fixture
def own_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run-time directory for one test, not yet made."""
    monkeypatch.setenv("MEMVM_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / "run"


class TestLocation:
    def test_ours_before_the_sessions(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("MEMVM_RUNTIME_DIR", "/chosen")
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        assert location() == Path("/chosen")

    def test_the_sessions_if_it_is_there(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv("MEMVM_RUNTIME_DIR")
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        assert location() == tmp_path / "memvm"

    @pytest.mark.parametrize("session", ["", "/does/not/exist"])
    def test_otherwise_the_users_own(self, monkeypatch: pytest.MonkeyPatch, session: str) -> None:
        monkeypatch.delenv("MEMVM_RUNTIME_DIR")
        monkeypatch.setenv("XDG_RUNTIME_DIR", session)
        monkeypatch.setenv("TMPDIR", "/elsewhere")
        assert location() == Path(f"/tmp/memvm-{os.geteuid()}")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root's own directory is /")
    def test_not_another_users(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("MEMVM_RUNTIME_DIR")
        monkeypatch.setenv("XDG_RUNTIME_DIR", "/")
        assert location() == Path(f"/tmp/memvm-{os.geteuid()}")


class TestDirectory:
    def test_it_is_made_private(self, own_dir: Path) -> None:
        RunDir().close()
        assert own_dir.stat().st_mode & 0o777 == 0o700

    @pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
    def test_one_that_others_may_enter_is_refused(self, own_dir: Path, mode: int) -> None:
        own_dir.mkdir()
        own_dir.chmod(mode)
        with pytest.raises(HostError, match=f"mode {mode:04o}") as caught:
            RunDir()
        assert caught.value.hint == f"chmod 700 {own_dir}"

    def test_a_symbolic_link_is_refused(self, own_dir: Path, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir(mode=0o700)
        own_dir.symlink_to(tmp_path / "real")
        with pytest.raises(HostError, match="symbolic link"):
            RunDir()

    def test_a_file_is_refused(self, own_dir: Path) -> None:
        own_dir.write_text("")
        with pytest.raises(HostError, match="cannot be used"):
            RunDir()

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
    def test_another_users_is_refused(self, own_dir: Path) -> None:
        own_dir.mkdir(mode=0o700)
        os.chown(own_dir, 65534, 65534)
        with pytest.raises(HostError, match="belongs to user 65534"):
            RunDir()


class TestNames:
    @pytest.mark.parametrize("name", ["a", "9", "hub-1.x_Y", "a" * 64])
    def test_good(self, name: str) -> None:
        assert check_name(name) == name

    @pytest.mark.parametrize("name", ["", ".", "..", "-a", "_a", "a/b", "a b", "a\n", "ä", "a" * 65, "a\0"])
    def test_bad(self, name: str) -> None:
        with pytest.raises(UsageError):
            check_name(name)

    @pytest.mark.parametrize(
        ("program", "name"),
        [
            ("/bin/busybox", "busybox"),
            ("./.hidden é", "hidden--"),
            ("/", "guest"),
            ("x" * 99, "x" * 48),
        ],
    )
    def test_made_from_the_program(self, program: str, name: str) -> None:
        with RunDir() as directory:
            reservation = directory.reserve(None, program)
            assert check_name(reservation.name) == name
            reservation.release()

    def test_two_guests_of_one_program_differ(self) -> None:
        with RunDir() as directory:
            first, second = directory.reserve(None, "a"), directory.reserve(None, "a")
            assert [entry.name for entry in directory.entries()] == ["a", "a-2"]
            first.release()
            second.release()

    def test_a_taken_name_is_refused_until_it_is_released(self) -> None:
        with RunDir() as directory:
            first = directory.reserve("hub", "p")
            with pytest.raises(GuestStateError, match="'hub' is running already"):
                directory.reserve("hub", "p")
            first.release()
            directory.reserve("hub", "p").release()

    def test_the_longest_name_has_a_socket_in_the_deepest_directory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MEMVM_RUNTIME_DIR", str(tmp_path / ("d" * 200)))
        with RunDir() as directory:
            reservation = directory.reserve("n" * 64, "p")
            directory.connect("n" * 64, 5).close()
            reservation.release()


class TestEntries:
    def test_what_a_lock_file_says(self) -> None:
        with RunDir() as directory:
            reservation = directory.reserve("hub", "/bin/hub")
            (entry,) = directory.entries()
            assert entry[:3] == ("hub", os.getpid(), "/bin/hub")
            reservation.release()
            assert directory.entries() == []

    def test_a_release_does_not_take_anothers_files(self) -> None:
        with RunDir() as directory:
            first = directory.reserve("hub", "p")
            first.release()
            second = directory.reserve("hub", "p")
            first.release()
            assert [entry.name for entry in directory.entries()] == ["hub"]
            second.release()

    def test_connecting_to_nobody_says_who_runs(self) -> None:
        with RunDir() as directory:
            reservation = directory.reserve("hub", "p")
            with pytest.raises(NoSuchGuest, match="called 'hab'") as caught:
                directory.connect("hab", 5)
            assert caught.value.hint == "these run: hub"
            reservation.release()
            with pytest.raises(NoSuchGuest) as caught:
                directory.connect("hub", 5)
            assert "no guest is running" in caught.value.hint

    def test_what_a_killed_manager_left_is_removed(self, runtime_dir: Path, time_scale: float) -> None:
        for look in ("entries", "connect", "reserve"):
            with fake_memvm("run", "--name", "dead", "sleep") as process:
                wait_for_state("dead", RunState.RUNNING, time_scale)
                process.send_signal(signal.SIGKILL)
                process.wait()
            assert {path.name for path in runtime_dir.iterdir()} == {"dead.lock", "dead.sock"}
            with RunDir() as directory:
                if look == "entries":
                    assert directory.entries() == []
                elif look == "connect":
                    with pytest.raises(NoSuchGuest):
                        directory.connect("dead", 5)
                else:
                    directory.reserve("dead", "p").release()
            assert list(runtime_dir.iterdir()) == []

    def test_what_a_killed_rehearsal_left_is_removed(self, own_dir: Path) -> None:
        rehearse = """
import os, signal
from memvm.manager.rundir import RunDir
with RunDir() as outer, outer.rehearsal() as path, RunDir(path) as inner:
    inner.reserve("rehearsal", "p")
    os.kill(os.getpid(), signal.SIGKILL)
"""
        killed = subprocess.run([sys.executable, "-c", rehearse], check=False, cwd=ROOT)
        assert killed.returncode == -signal.SIGKILL
        [left] = own_dir.iterdir()
        assert {path.name for path in left.iterdir()} == {"owner", "rehearsal.lock", "rehearsal.sock"}
        with RunDir() as directory:
            assert directory.entries() == []
        assert list(own_dir.iterdir()) == []

    def test_a_rehearsal_is_left_alone_until_it_is_over(self, own_dir: Path) -> None:
        with RunDir() as directory:
            with directory.rehearsal() as path, RunDir(path) as inner:
                reservation = inner.reserve("hub", "p")
                assert directory.entries() == []
                assert [entry.name for entry in inner.entries()] == ["hub"]
                reservation.release()
            assert list(own_dir.iterdir()) == []

    def test_a_stale_socket_without_a_lock_is_no_obstacle(self, own_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        own_dir.mkdir(mode=0o700)
        monkeypatch.chdir(own_dir)  # the whole path may be longer than an address can be
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind("hub.sock")
        with RunDir() as directory:
            directory.reserve("hub", "p").release()
        assert list(own_dir.iterdir()) == []

    def test_a_lock_file_that_is_a_symbolic_link_is_not_followed(self, own_dir: Path, tmp_path: Path) -> None:
        own_dir.mkdir(mode=0o700)
        victim = tmp_path / "victim"
        victim.write_text("precious")
        (own_dir / "hub.lock").symlink_to(victim)
        with RunDir() as directory, pytest.raises(HostError):
            directory.reserve("hub", "p")
        assert victim.read_text() == "precious"


RACER = """
import sys
from memvm.errors import GuestStateError
from memvm.manager.rundir import RunDir
with RunDir() as directory:
    sys.stdin.readline()
    for _ in range(150):
        try:
            reservation = directory.reserve("hub", "p")
        except GuestStateError:
            print("taken", flush=True)
            continue
        mark = open(sys.argv[1], "x")
        [entry] = [e for e in directory.entries() if e.name == "hub"]
        import os
        assert entry.pid == os.getpid(), entry
        os.unlink(sys.argv[1])
        reservation.release()
        print("mine", flush=True)
"""


def test_processes_that_race_for_a_name_never_both_have_it(tmp_path: Path) -> None:
    """Each owner makes a file that must not exist, and finds itself entered under the name."""
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(tmp_path / "mark")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for _ in range(3)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    results = [racer.communicate(timeout=60) for racer in racers]
    assert [(racer.returncode, errors) for racer, (_, errors) in zip(racers, results, strict=True)] == [(0, "")] * 3
    assert "mine" in "".join(output for output, _ in results)
