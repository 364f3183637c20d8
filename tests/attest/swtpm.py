"""A TPM in software for tests: swtpm, with its state in a directory."""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from memvm.attest.tpm import Tpm
from memvm.errors import AttestationError

PORTS = range(21000, 32000, 2)
"""Below those that the kernel gives to whoever does not care."""
_ATTEMPTS = 20
_HEADER = 10
"""Bytes of an answer's."""
_INIT = bytes.fromhex("00000002 00000000")
"""CMD_INIT, without flags, on the control channel (swtpm_ioctls(3))."""
_STARTUP = bytes.fromhex("8001 0000000c 00000144 0000")
"""TPM2_Startup(TPM_SU_CLEAR) (Part 3, 9.3)."""


class Swtpm:
    """One such TPM, at two neighbouring ports."""

    def __init__(self, state: Path, time_scale: float) -> None:
        self.state, self._time_scale = state, time_scale
        state.mkdir(exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None
        self.tcti = ""
        for _ in range(_ATTEMPTS):
            port = random.choice(PORTS)
            if _is_free(port) and _is_free(port + 1) and self._try(port):
                return
        raise AssertionError(f"swtpm found no two free ports in {_ATTEMPTS} attempts")

    def stop(self) -> None:
        """Switch it off."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait()

    def start(self) -> None:
        """Switch it on again, where it was: a boot."""
        assert self._try(self._port), "somebody else has taken the port"

    def boot(self) -> None:
        """Switch it off and on again, as a power cut does; the process stays."""
        with socket.create_connection(("127.0.0.1", self._port + 1)) as control:
            control.sendall(_INIT)
            assert control.recv(4, socket.MSG_WAITALL) == bytes(4)
        assert self.answer(_STARTUP)[6:] == bytes(4)

    @property
    def _port(self) -> int:
        return int(self.tcti.rpartition("=")[2])

    def answer(self, command: bytes) -> bytes:
        """What it answers to a command, on a connection for it alone."""
        with socket.create_connection(("127.0.0.1", self._port)) as connection:
            connection.sendall(command)
            answer = b""
            while len(answer) < _HEADER or len(answer) < int.from_bytes(answer[2:6], "big"):
                piece = connection.recv(4096)
                assert piece, "the TPM hung up"
                answer += piece
        return answer

    def _try(self, port: int) -> bool:
        self.tcti = f"swtpm:port={port}"
        command = [
            "swtpm",
            "socket",
            "--tpm2",
            "--tpmstate",
            f"dir={self.state}",
            "--flags",
            "not-need-init,startup-clear",
        ]
        command += ["--server", f"type=tcp,port={port}", "--ctrl", f"type=tcp,port={port + 1}"]
        self._process = process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30 * self._time_scale
        while process.poll() is None:
            try:
                with Tpm(self.tcti) as tpm:
                    tpm.read(0)
            except AttestationError:
                if time.monotonic() > deadline:
                    self.stop()
                    raise
                time.sleep(0.01)
            else:
                return True
        return False


def _is_free(port: int) -> bool:
    """Otherwise somebody who is no TPM might be asked."""
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@contextmanager
def software_tpm(state: Path, time_scale: float) -> Iterator[Swtpm]:
    """A TPM that is there as long as the context. Skips the test where there cannot be one."""
    if shutil.which("swtpm") is None:
        pytest.skip("no TPM in software here: apt-get install swtpm")
    pytest.importorskip("tpm2_pytss", reason="no tpm2-pytss here: apt-get install libtss2-dev; pip install '.[tpm]'")
    tpm = Swtpm(state, time_scale)
    try:
        yield tpm
    finally:
        tpm.stop()
