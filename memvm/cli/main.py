"""The command line: finds the command, lets it do its work, and says what went wrong in people's words."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from memvm.cli.commands import EXAMPLES, SUMMARIES
from memvm.cli.parser import Parser
from memvm.errors import MemvmError, UsageError
from memvm.say import end_saying, say

INTERRUPTED = 130
BROKEN_PIPE = 141
"""What a shell reports of a program that wrote to a pipe which nobody reads: 128 + SIGPIPE."""
IO_ERROR = 74  # EX_IOERR of sysexits.h


def main(arguments: Sequence[str]) -> int:
    """Run `memvm ARGUMENTS`; the exit status. --help and --version raise SystemExit, as argparse does."""
    try:
        return _main(arguments)
    finally:
        end_saying()


def _main(arguments: Sequence[str]) -> int:
    options = argparse.Namespace(verbose=False)
    try:
        try:
            return _run(arguments, options)
        finally:
            _flush_output()
    except BrokenPipeError:
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    except MemvmError as error:
        _complain(error, options.verbose)
        return error.exit_code
    except OSError as error:
        _complain(_in_words(error), options.verbose)
        return IO_ERROR
    except Exception as error:  # noqa: BLE001 - the last resort: what nobody foresaw, still said in a line
        hint = "" if options.verbose else "the same with -v, and report what it prints: this is a bug in memvm"
        _complain(MemvmError(f"internal error: {type(error).__name__}: {error}", hint=hint), options.verbose)
        return MemvmError.exit_code


def _run(arguments: Sequence[str], options: argparse.Namespace) -> int:
    # No option before the command takes a value, so the first word without a dash is the command.
    place = next((i for i, word in enumerate(arguments) if not word.startswith("-")), len(arguments))
    _main_parser().parse_args(arguments[:place], options)
    if place == len(arguments):
        raise UsageError("no command was given", hint="memvm --help")
    name = arguments[place]
    if name == "help":  # as in `memvm help run`
        return _run([*arguments[place + 1 : place + 2], "--help"], options)
    if name not in SUMMARIES:
        raise UsageError(f"there is no command {name!r}", hint=_meant(name))
    if "MEMVM_FAULTS" in os.environ:  # a mistake in it is told now, not when code with a fault point is imported
        import_module("memvm.faultpoints")
    command = import_module(f"memvm.cli.{name}")
    parser = Parser(f"memvm {name}", f"{SUMMARIES[name][0].upper()}{SUMMARIES[name][1:]}.")
    command.configure(parser)
    parser.parse_args(arguments[place + 1 :], options)
    status: int = command.execute(options)
    return status


def _meant(name: str) -> str:
    """The commands that somebody may have meant."""
    from difflib import get_close_matches

    near = get_close_matches(name, SUMMARIES)
    return " or ".join(f"memvm {command}" for command in near) or f"one of {', '.join(SUMMARIES)}"


def _flush_output() -> None:
    """Write what is left of the output, here, where it is understood why that cannot be. Raises OSError."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        # The rest of the output has nowhere to go, and Python would complain about that at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(error, BrokenPipeError):
            raise
        raise OSError(error.errno, error.strerror, "standard output") from error


def _in_words(error: OSError) -> MemvmError:
    if error.filename:
        return MemvmError(f"{error.filename}: {error.strerror}")
    if isinstance(error, FileNotFoundError):  # without a name it comes from getcwd
        return MemvmError("the current directory is not there any more", hint="go to another one with cd")
    return MemvmError(error.strerror or str(error))


def _main_parser() -> Parser:
    width = max(map(len, SUMMARIES))
    commands = "\n".join(f"  {name:{width}}  {summary}" for name, summary in SUMMARIES.items())
    parser = Parser(
        "memvm",
        "Runs ordinary programs as guests, saves them while they run, and brings them back lazily.",
        f"commands:\n{commands}\n\n{EXAMPLES}",
    )
    parser.usage = "memvm [-v] COMMAND [ARGUMENTS]"
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version")
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from memvm import __version__

        print(f"memvm {__version__}")
        parser.exit()


def _complain(error: MemvmError, verbose: bool) -> None:
    from memvm.report.messages import error_text

    if verbose:
        import traceback

        say(traceback.format_exc().rstrip())
    say(error_text(error))
