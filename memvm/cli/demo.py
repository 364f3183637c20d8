"""`memvm demo`: everybody who takes part in handing a secret to a sealed guest, on this machine, right and wrong."""

from __future__ import annotations

import argparse
from pathlib import Path

from memvm.errors import ImageError, UsageError

_BUILT = Path(__file__).resolve().parents[2] / "guests" / "build" / "worker"
"""Where it is in a clone."""


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `memvm demo`."""
    parser.epilog = """\
--sealed plays all the parts of a lesson, on loopback and in a temporary directory: a platform, a verifier, a
broker who keeps the key of an encrypted disk, a keeper of checkpoints' keys, and a sealed worker that counts
the words of the secret on that disk. The right worker gets the key. One that was changed, or has other
settings, gets none; a stale token gets none; a disk with another header, or of an earlier time, is found out.
Then the worker is saved and restored, has to prove itself again, and goes on. Status 1 says that something
was not as it should be.

The worker is a program in C, in guests/worker: `tools/build_guests.py worker` builds it, with gcc and
nettle-dev. `tools/demo` is another demonstration: a guest that is saved in mid-run, killed, and brought back.

examples:
  memvm demo --sealed
  memvm demo --sealed --worker guests/build/worker
"""
    parser.add_argument("--sealed", action="store_true", help="show how a secret comes to a sealed guest")
    parser.add_argument(
        "--worker", metavar="FILE", type=Path, help="the compiled worker; that of the clone if not given"
    )


def execute(arguments: argparse.Namespace) -> int:
    """Show it; 0 if everything was as it should be."""
    if not arguments.sealed:
        raise UsageError(
            "demo: which one?", hint="memvm demo --sealed; in a clone of memvm, tools/demo shows saving and restoring"
        )
    worker: Path = arguments.worker or _BUILT
    if not worker.is_file():
        raise ImageError(
            f"{worker}: there is no compiled worker, which is a program in C",
            hint="in a clone of memvm, tools/build_guests.py worker builds it, if gcc and nettle-dev are there: "
            "memvm demo --sealed --worker guests/build/worker",
        )
    from memvm.cli.demo_sealed import show

    return show(worker)
