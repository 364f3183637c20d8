"""A few guests of the fuzzer of system calls."""

from __future__ import annotations

import shutil

import pytest

from tools import fuzz_calls


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc here: apt-get install gcc libc6-dev")
def test_random_calls_hurt_nobody() -> None:
    assert fuzz_calls.main(["--seconds", "4", "--seed", "7"]) == 0
