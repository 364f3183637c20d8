"""`memvm restore`: a guest that was saved goes on."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from memvm.cli.disks import add_disks
from memvm.cli.launching import add_manager_options, manage
from memvm.cli.parser import add_parents
from memvm.cli.views import add_views
from memvm.errors import UsageError
from memvm.machine.config import RunOptions
from memvm.say import say
from memvm.units import parse_duration

if TYPE_CHECKING:
    from memvm.checkpoint.observing import Observing
    from memvm.checkpoint.restore import RestoreOptions
    from memvm.machine.machine import Machine
    from memvm.recording.restored import RestoreReport

EPILOG = """\
A lazy restore lets the guest run at once; its pages are loaded when it touches them, and in the background
meanwhile. The file, and the files that it was saved on top of, have to stay until all of them are. An eager
one loads them all first. The guest's standard streams are memvm's own, whatever they were when it was saved.
A guest that had disks is given them again, each with --disk, in the order of before.

With --clones, N guests start from the file, called NAME-1 to NAME-N. The file is read once; pages that a
clone does not touch are in memory once for all of them. The clones get no input; each line of their output
has [NAME-1] in front, unless --output is given. SIGINT, SIGTERM and SIGHUP end all of them, `memvm kill` one.
The exit status is 0 if all ended with 0, and otherwise the highest of theirs.

policies, which say what is loaded before the guest runs:
  active      what it used while it was saved, up to half of its pages (or 64 MiB); the default
  recorded    what earlier restores of the file used, up to as much, as FILE.hints has it; if there is no
              such file, what active loads, and this restore makes one
  demand      nothing; later, only the very pages that the guest waits for, while all others bring up to
              16 neighbours along with each
  sequential  nothing, but with a page that the guest waits for, the 256 KiB around it
  eager       everything
  pkg.module:Class   your own; memvm/recording/policies.py says what it has to have. The module is looked for
              where PYTHONPATH says, and in the current directory

--record notes in FILE.hints which pages the guest uses in the first --window, whatever the policy. What
several restores used is merged there; pages that the last four did not use are left out.

A report goes to standard error when the guest is responsive (it ran for a share of a short while, and did not
wait for pages) and the window is over, or at its end. --score adds precision, recall and pollution of what
was loaded before the guest ran: for that, its first access to each page in the window costs a page fault.

examples:
  memvm restore hub.ckpt
  memvm restore --policy recorded hub.ckpt
  memvm restore --report --policy demand --no-background hub.ckpt
  memvm restore --ro /other/usr:/usr program.ckpt
  memvm restore --eager --name hub2 hub.ckpt < input.txt
  memvm restore --clones 8 --name worker --output logs/ worker.ckpt
"""

_REPORTING = ("report", "score", "json", "responsive")
"""The options that ask for a report."""


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `memvm restore`."""
    parser.epilog = EPILOG
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--lazy",
        dest="lazy",
        action="store_true",
        default=True,
        help="run at once, load pages when touched (default)",
    )
    how.add_argument("--eager", dest="lazy", action="store_false", help="load all pages, then run")
    how.add_argument("--policy", metavar="NAME", default="", help="which pages to load before the guest runs")
    parser.add_argument(
        "--no-background",
        dest="background",
        action="store_false",
        help="load only what the guest touches, once it runs",
    )
    parser.add_argument("--record", action="store_true", help="note in FILE.hints which pages the guest uses")
    parser.add_argument(
        "--window", metavar="TIME", type=parse_duration, help="how long to note which pages it uses (default: 2s)"
    )
    parser.add_argument("--report", action="store_true", help="say how the restore went, on standard error")
    parser.add_argument("--score", action="store_true", help="say also how well pages were chosen; slows the guest")
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    parser.add_argument(
        "--responsive",
        metavar="TIME:SHARE",
        help="what counts as responsive: running for this share of this time (default: 50ms:80%%)",
    )
    add_parents(parser)
    add_views(parser)
    parser.add_argument(
        "--accept-changed-files",
        action="store_true",
        help="let the guest go on with files that were changed while it had them open",
    )
    add_disks(parser)
    parser.add_argument("--without-disks", action="store_true", help="let the guest go on with fewer disks than it had")
    add_manager_options(parser)
    parser.add_argument("--clones", metavar="N", type=int, help="start N guests that share their untouched pages")
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        help="with --clones: write the output of each to NAME-1.out and NAME-1.err in this directory",
    )
    # For memvm.clones: a descriptor for each clone, comma-separated.
    for stream in ("ready", "stdout", "stderr"):
        parser.add_argument(f"--{stream}-fds", type=_descriptors, default=(), help=argparse.SUPPRESS)
    parser.add_argument(
        "--key-keeper", metavar="URL", default="", help="who releases the key of a sealed guest's checkpoint"
    )
    parser.add_argument(
        "--keeper-audience", metavar="NAME", default="", help="whom the token for that is for; --audience if not given"
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="the checkpoint")


def _descriptors(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def execute(arguments: argparse.Namespace) -> int:
    """Run the restored guest, or guests, to the end; the exit status."""
    if arguments.clones is not None:
        if any(getattr(arguments, name) for name in ("policy", "record", *_REPORTING)):
            raise UsageError("restore: clones share their pages, which needs no policy, and report nothing")
        if arguments.disks:
            raise UsageError("restore: a disk belongs to one guest, and cannot be given to clones")
        from memvm.cli.cloning import execute_clones

        return execute_clones(arguments)
    if arguments.output is not None:
        raise UsageError("restore: --output is for --clones", hint="redirect the output: memvm restore FILE > output")

    from memvm.cli.sealing import is_encrypted, restore_sealed

    if is_encrypted(arguments.file):
        return restore_sealed(arguments, _how(arguments))

    def load(options: RunOptions) -> Machine:
        from memvm.checkpoint.restore import restore
        from memvm.report.progress import ProgressBar

        # The bar has gone before the guest writes its first line.
        with ProgressBar(f"restoring {arguments.file.name}") as progress:
            return restore(arguments.file, options, _how(arguments), progress)

    return manage(arguments, arguments.file.stem, load)


def _how(arguments: argparse.Namespace) -> RestoreOptions:
    from memvm.checkpoint.restore import RestoreOptions

    return RestoreOptions(
        lazy=arguments.lazy,
        background=arguments.background,
        parents=tuple(arguments.parent),
        policy=arguments.policy,
        views=tuple(arguments.views),
        accept_changed_files=arguments.accept_changed_files,
        disks=len(arguments.disks),
        without_disks=arguments.without_disks,
        observing=_observing(arguments),
    )


def _observing(arguments: argparse.Namespace) -> Observing | None:
    given = (*_REPORTING, "record", "window")
    if not any(getattr(arguments, name) for name in given):
        return None
    from memvm.checkpoint.observing import Observing

    how = Observing(
        report=any(getattr(arguments, name) for name in _REPORTING),
        score=arguments.score,
        record=arguments.record,
    )
    if arguments.window is not None:
        how = how._replace(window=arguments.window)
    if arguments.responsive is not None:
        window, share = _responsive(arguments.responsive)
        how = how._replace(responsive_window=window, responsive_share=share)
    if how.report and arguments.ready_fd is None:  # a program that started us asks for it
        how = how._replace(tell=_show_json if arguments.json else _show)
    return how


def _responsive(text: str) -> tuple[float, float]:
    time, _, share = text.partition(":")
    try:
        number = float(share.removesuffix("%")) / (100 if share.endswith("%") else 1)
    except ValueError:
        number = -1.0
    if not 0 < number < 1:
        raise UsageError(f"--responsive {text!r} is no time and share", hint="write it like 50ms:80%")
    return parse_duration(time), number


def _show(report: RestoreReport) -> None:
    from memvm.report.restores import restore_text

    say(restore_text(report))


def _show_json(report: RestoreReport) -> None:
    from memvm.report.records import to_json

    say(to_json(report))
