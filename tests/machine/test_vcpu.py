"""The vCPU's state: a call that waits is rewound, and what another processor cannot hold is refused in words."""

from __future__ import annotations

import struct

import pytest

from memvm.errors import CheckpointError
from memvm.linux import ptrace
from memvm.machine.vcpu import VcpuState

XSTATE_BV, XCR0 = 512, 464
NO_CALL = (1 << 64) - 1
X87, SSE, AVX, AMX = 1, 2, 4, 1 << 18


def xstate(size: int, in_use: int, features: int) -> bytes:
    area = bytearray(size)
    struct.pack_into("=Q", area, XCR0, features)
    struct.pack_into("=Q", area, XSTATE_BV, in_use)
    return bytes(area)


def state(area: bytes) -> VcpuState:
    return VcpuState(dict.fromkeys(ptrace.REGISTERS, 0), area)


class Registers:
    """user_regs_struct with some values."""

    def __init__(self, **values: int) -> None:
        for name in ptrace.REGISTERS:
            setattr(self, name, values.get(name, 0))


@pytest.mark.parametrize("error", [512, 513, 514, 516])
def test_a_call_that_was_interrupted_is_made_again(error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted = Registers(orig_rax=35, rax=(1 << 64) - error, rip=0x401000, rdi=7)
    monkeypatch.setattr(ptrace, "get_registers", lambda tid: interrupted)
    monkeypatch.setattr(ptrace, "get_xstate", lambda tid: b"")
    registers = VcpuState.capture(1).registers
    assert registers["rip"] == 0x401000 - 2
    assert registers["rax"] == 35
    assert registers["rdi"] == 7
    assert registers["orig_rax"] == NO_CALL


@pytest.mark.parametrize(
    ("orig_rax", "rax"),
    [
        (NO_CALL, (1 << 64) - 512),  # not in a call: rax is the program's
        (35, 5),  # a call that has its result
        (35, (1 << 64) - 4),  # EINTR is a result too
    ],
)
def test_anything_else_is_taken_as_it_is(orig_rax: int, rax: int, monkeypatch: pytest.MonkeyPatch) -> None:
    running = Registers(orig_rax=orig_rax, rax=rax, rip=0x401000)
    monkeypatch.setattr(ptrace, "get_registers", lambda tid: running)
    monkeypatch.setattr(ptrace, "get_xstate", lambda tid: b"")
    registers = VcpuState.capture(1).registers
    assert (registers["rip"], registers["rax"], registers["orig_rax"]) == (0x401000, rax, NO_CALL)


def test_state_of_the_same_processor_is_taken_as_it_is() -> None:
    area = xstate(2696, X87 | SSE | AVX, X87 | SSE | AVX)
    assert state(area).fitted_to(xstate(2696, 0, X87 | SSE | AVX)) == area


def test_state_in_use_that_is_missing_here_is_refused_in_words() -> None:
    with pytest.raises(CheckpointError, match="processor state that this machine lacks") as caught:
        state(xstate(11008, X87 | AMX, X87 | SSE | AMX)).fitted_to(xstate(2696, 0, X87 | SSE | AVX))
    assert "restore it on a machine" in caught.value.hint


def test_a_smaller_area_is_filled_up_and_a_larger_one_cut_where_it_is_empty() -> None:
    here = xstate(2696, 0, X87 | SSE | AVX)
    assert len(state(xstate(832, X87, X87 | SSE | AVX)).fitted_to(here)) == 2696
    assert len(state(xstate(11008, X87, X87 | SSE | AVX | AMX)).fitted_to(here)) == 2696
    full = xstate(11008, X87, X87 | SSE | AVX | AMX)[:-1] + b"x"
    with pytest.raises(CheckpointError, match="does not fit"):
        state(full).fitted_to(here)


def test_an_area_of_another_size_is_fitted_though_the_features_are_the_same() -> None:
    features = X87 | SSE | AVX
    assert len(state(xstate(832, X87, features)).fitted_to(xstate(2696, 0, features))) == 2696
