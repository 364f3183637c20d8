"""`memvm replay`: what each prefetch policy would have done."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from memvm.cli.parser import add_json
from memvm.errors import UsageError
from memvm.units import parse_duration

if TYPE_CHECKING:
    from memvm.memory.pages import PageRun
    from memvm.recording.reader import Recording
    from memvm.recording.replay import Cut
    from memvm.recording.survey import Survey

EPILOG = """\
The recording is cut in two. Before the cut the guest is taken to have been saved: what it accessed then are
its active pages. After it the guest is taken to have been restored, and to do again what was recorded.

policies:
  demand      brings nothing before it is asked for
  sequential  brings the 256 KiB around each page that is asked for
  active      brings, before the guest runs, what it used while it was saved
  recorded    brings, before the guest runs, what an earlier restore used: that of --earlier or, without
              one, what this run itself uses in the first --window
  eager       brings everything before the guest runs
  pkg.module:Class   your own; memvm/recording/policies.py says what it has to have

In the table, IN VAIN are prefetched pages that were not used. STARTS is when the guest would have begun to
run, STALLS all the time that it would have waited, RESPONSIVE when a twentieth of a second began of which it
ran four fifths. Nothing is loaded in the background.

examples:
  memvm replay hub.trace
  memvm replay hub.trace --policy demand --policy my.policies:Mine --cut 2s
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `memvm replay`."""
    parser.epilog = EPILOG
    parser.add_argument(
        "recording", metavar="RECORDING", type=Path, help="what `memvm trace` made; - is standard input"
    )
    parser.add_argument(
        "--policy",
        metavar="NAME",
        action="append",
        dest="policies",
        help="a policy to try; may be given several times (default: all that come with memvm)",
    )
    parser.add_argument("--compare", action="store_true", help="all policies that come with memvm, besides those given")
    parser.add_argument(
        "--cut",
        metavar="TIME",
        help="where to cut: a duration from the first access, or a share like 25%% (the default)",
    )
    parser.add_argument("--window", metavar="TIME", default="1s", help="how long a restore records (default: 1s)")
    parser.add_argument("--earlier", metavar="RECORDING", type=Path, help="the recording of an earlier restore")
    parser.add_argument(
        "--checkpoint", metavar="FILE", type=Path, help="the checkpoint that says which pages have data"
    )
    parser.add_argument("--fault-cost", metavar="TIME", default="0.1ms", help="of a demand fault (default: 0.1ms)")
    parser.add_argument(
        "--page-cost", metavar="TIME", default="0.004ms", help="of each page brought (default: 0.004ms)"
    )
    add_json(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Try each policy, and show what it would have done."""
    from memvm.recording.policies import BUILT_IN, load_policy
    from memvm.recording.reader import Recording
    from memvm.recording.replay import CostModel, facts_from, replay
    from memvm.recording.survey import survey
    from memvm.report.records import to_json
    from memvm.report.replays import Comparison, comparison_text

    names = list(arguments.policies or ())
    if arguments.compare or not names:
        names = [*BUILT_IN, *names]
    policies = [load_policy(name) for name in dict.fromkeys(names)]
    costs = CostModel(parse_duration(arguments.fault_cost), parse_duration(arguments.page_cost))
    with Recording.open(arguments.recording) as recording:
        found = survey(recording)
        cut = _cut(arguments, found)
        data_runs = None if arguments.checkpoint is None else _data_runs(arguments.checkpoint, recording)
        hints = None if arguments.earlier is None else _earlier(arguments.earlier, cut.window)
        facts = facts_from(recording.blocks, cut, recording.header.ram_pages, data_runs, hints)
        comparison = Comparison(
            recording.name,
            (cut.at - found.first_time) / 1e9,
            (found.last_time - cut.at) / 1e9,
            len(facts.active),
            len(facts.recorded),
            sum(run.count for run in facts.data_runs),
            "those that were seen accessed" if data_runs is None else str(arguments.checkpoint),
            costs,
            found.dropped,
            found.flaw,
            tuple(replay(recording.blocks, cut, facts, policy, costs) for policy in policies),
        )
    print(to_json(comparison) if arguments.json else comparison_text(comparison))
    return 0


def _cut(arguments: argparse.Namespace, found: Survey) -> Cut:
    from memvm.recording.replay import Cut

    length = found.last_time - found.first_time
    text = arguments.cut or "25%"
    if text.endswith("%"):
        try:
            share = float(text[:-1])
        except ValueError:
            raise UsageError(f"not a share: {text!r}", hint="write it like 25%, or give a duration like 2s") from None
        after = round(length * share / 100)
    else:
        after = round(parse_duration(text) * 1e9)
    if not 0 <= after <= length:
        raise UsageError(
            f"--cut {text} is not in the recording, which is {length / 1e9:.3f} s long", hint="choose it earlier"
        )
    return Cut(found.first_time + after, round(parse_duration(arguments.window) * 1e9))


def _earlier(path: Path, window: int) -> list[int]:
    """The pages that were used in the first so many nanoseconds of an earlier recording, in the order of their use."""
    from memvm.recording.reader import Recording

    used: dict[int, None] = {}
    with Recording.open(path) as recording:
        end = None
        for block in recording.blocks():
            for event in block:
                end = event.time + window if end is None else end
                if event.time < end:
                    used[event.page] = None
    return list(used)


def _data_runs(path: Path, recording: Recording) -> list[PageRun]:
    """The pages that have data in a checkpoint of the recorded guest."""
    from memvm.checkpoint.file_reader import CheckpointFile

    with CheckpointFile.open(path) as file:
        here, there = recording.header, file.header
        if (here.ram_base, here.ram_size) != (there.ram_base, there.ram_size):
            raise UsageError(
                f"{path} is no checkpoint of the recorded guest: its RAM is another",
                hint="`memvm inspect` shows what it is of",
            )
        return file.index.united_runs()
