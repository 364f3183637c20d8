"""What Python programs ask of `memvm run` and `memvm restore`, as options of these commands."""

from __future__ import annotations

import os
from collections.abc import Sequence

from memvm.errors import UsageError
from memvm.machine.config import EngineChoice

StrPath = str | os.PathLike[str]


def manager_options(
    name: str | None,
    engine: str,
    time_limit: float | None,
    strict: bool,
    strace: bool,
    cpu: int | None,
    tpm: bool,
    pause_after_calls: int = 0,
) -> list[str]:
    """The options that `memvm run` and `memvm restore` share."""
    if engine not in list(EngineChoice):
        raise UsageError(f"there is no fault engine {engine!r}", hint=f"one of {', '.join(EngineChoice)}")
    options = [f"--engine={engine}"]
    if name is not None:
        options.append(f"--name={name}")
    if time_limit is not None:
        options.append(f"--time-limit={time_limit:f}")
    if cpu is not None:
        options.append(f"--cpu={cpu}")
    if pause_after_calls:
        options.append(f"--pause-after-calls={pause_after_calls}")
    return options + ["--strict"] * strict + ["--strace"] * strace + ["--tpm"] * tpm


def view_options(ro: Sequence[StrPath], rw: Sequence[StrPath], pass_through: Sequence[StrPath]) -> list[str]:
    given = {"ro": ro, "rw": rw, "pass": pass_through}
    if any(isinstance(views, str) for views in given.values()):
        raise UsageError("ro, rw and pass_through have to be sequences of directories", hint='say ["/usr"]')
    return [f"--{access}={os.fspath(view)}" for access, views in given.items() for view in views]
