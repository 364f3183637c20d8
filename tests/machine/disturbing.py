"""Disturbs a guest, in a process of its own whose standard streams are the guest's. See test_interruptions.py.

    python -m tests.machine.disturbing freeze|kill ENGINE SEED PROGRAM [ARGUMENTS]

`freeze` stops the guest as often as it can, in every way, until it ends. `kill` starts it again and again and ends it
at a moment that chance chooses. Either then says in JSON, in the last line of standard error, how often and what was
left behind.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from memvm.errors import GuestStateError
from memvm.machine.config import EngineChoice, GuestConfig, RunOptions
from memvm.machine.machine import Machine
from memvm.machine.vcpu import VcpuState
from memvm.units import MIB
from tests.checkpoint.lives import SCALE
from tests.leaks import leaks_since, take_census
from tests.machine.conftest import PROGRAMS

KILLS = 40
PATIENCE = 10.0 * SCALE
"""Seconds in which a guest that was killed has to be gone."""
GRACE = 5.0 * SCALE
"""Seconds that threads have to end in, once they were waited for."""


@dataclass(frozen=True)
class Disturbance:
    """How a guest ended, and how often it was disturbed."""

    code: int
    reason: str
    times: int


def launch(engine: str, command: list[str]) -> Machine:
    config = GuestConfig(command[0], tuple(command), ram_size=64 * MIB)
    return Machine.launch(config, RunOptions("disturbed", engine=EngineChoice(engine)))


def freeze(machine: Machine, chance: random.Random) -> Disturbance:
    """Stop the guest and let it go on, until it ends by itself."""
    ways: list[Callable[[], object]] = [
        lambda: machine.frozen(lambda: None),
        lambda: machine.frozen(lambda: VcpuState.capture(machine.guest.main.vcpu)),
        machine.registers,
        lambda: pause(machine),
    ]
    machine.start()
    times = 0
    while machine.wait(chance.random() * 0.002) is None:
        try:
            chance.choice(ways)()
        except GuestStateError:
            break
        times += 1
    ending = machine.wait(PATIENCE)
    machine.close()
    assert ending is not None
    return Disturbance(ending.code, ending.reason, times)


def pause(machine: Machine) -> None:
    """Stop it and let it go on."""
    machine.pause()
    machine.resume()


def kill(machine: Machine, chance: random.Random) -> Disturbance:
    """End the guest after up to 20 ms, perhaps while it stands still."""
    machine.start()
    time.sleep(chance.random() ** 2 * 0.02)
    if chance.random() < 0.3:
        machine.pause()
    if chance.random() < 0.7:
        machine.kill("chance")
        ending = machine.wait(PATIENCE)
        assert ending is not None
        assert (ending.code, ending.reason) == (128 + 9, "chance"), ending
    machine.close()
    return Disturbance(0, "", 1)


def main(way: str, engine: str, seed: str, *command: str) -> None:
    """Do it, and say what came of it."""
    chance = random.Random(int(seed))
    if way == "kill":
        kill(launch(engine, [*command]), chance)  # what the first one imports and keeps open is no leak
    before = take_census(PROGRAMS)
    if way == "freeze":
        done = freeze(launch(engine, [*command]), chance)
    else:
        for _ in range(KILLS):
            done = kill(launch(engine, [*command]), chance)
    left = leaks_since(before, PROGRAMS, GRACE)
    report = {"code": done.code, "reason": done.reason, "times": done.times, "left": left}
    sys.stderr.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
