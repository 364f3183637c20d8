"""`memvm measure`: the launch digest of a program, without running it, and what makes two of them differ."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from memvm.cli.parser import add_json
from memvm.cli.run import add_guest_options, guest_config
from memvm.errors import UsageError

if TYPE_CHECKING:
    from memvm.machine.measurement import Measurement

DIFFERENT = 1
"""Exit status, as diff(1) has it."""


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `memvm measure`."""
    parser.usage = "memvm measure [OPTIONS] [--] PROGRAM [ARGUMENTS]"
    parser.epilog = """\
The digest is what `memvm run` with the same options measures while it loads the program, and what a token
says of the guest: SHA-384 over memory, arguments, environment, layout, security settings, the host name and
number of CPUs that it is told, and where in its tree it is given files, to read or to change. Of what is in
those files, the program and its dynamic loader are measured.

--diff compares two measurements, and ends with status 1 if they differ. Each is a file that --json wrote,
or a program, which is measured with the options that are given, under the name of the first.

examples:
  memvm measure -- ./server --port 80
  memvm measure --explain --locked -- ./server
  memvm measure --ro / -- python3 server.py
  memvm measure --json -- ./server > monday.json
  memvm measure --diff monday.json tuesday.json
"""
    add_guest_options(parser)
    parser.add_argument("--explain", action="store_true", help="show what each part contributes")
    parser.add_argument("--diff", action="store_true", help="compare two measurements or programs: A B")
    add_json(parser)
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="PROGRAM", help=argparse.SUPPRESS)


def execute(arguments: argparse.Namespace) -> int:
    """Measure, and say what came out."""
    from memvm.machine.predicting import predict
    from memvm.report.measurements import explanation_text, measurement_json

    words = [word for place, word in enumerate(arguments.command) if place or word != "--"]
    if not words:
        raise UsageError("measure: no program was given", hint="memvm measure --help")
    if arguments.diff:
        return _compare(arguments, words)
    measurement = predict(guest_config(arguments, words), pages=arguments.json)
    if arguments.json:
        print(measurement_json(measurement))
    else:
        print(explanation_text(measurement) if arguments.explain else measurement.digest.hex())
    return 0


def _compare(arguments: argparse.Namespace, words: list[str]) -> int:
    from memvm.machine.measurement import differences
    from memvm.report.measurements import differences_json, differences_text

    if len(words) != 2:
        raise UsageError("measure: --diff takes two measurements or programs", hint="memvm measure --diff A B")
    first, second = (_measurement(arguments, word, words[0]) for word in words)
    found = differences(first, second)
    print(differences_json(found) if arguments.json else differences_text(found))
    return DIFFERENT if first.digest != second.digest else 0


def _measurement(arguments: argparse.Namespace, word: str, name: str) -> Measurement:
    """From a file, or of a program, which is called `name` so that only its contents make a difference."""
    from memvm.machine.predicting import predict
    from memvm.report.measurements import measurement_from_json

    path = Path(word)
    if path.is_file() and path.open("rb").read(1) == b"{":
        return measurement_from_json(path)
    return predict(guest_config(arguments, [word])._replace(argv=(name,)), called=name, pages=True)
