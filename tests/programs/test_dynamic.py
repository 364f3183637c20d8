"""Debian's own programs, dynamically linked, as guests that may read the host's files: their output is the native one.

Each has standard input, a directory with the inputs as files, and one to write to, at the same places as on the host.
The guest writes in memory.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.programs.interrupted import Job, Manner, seeded_calls, seeded_moments
from tests.programs.milestones import finish_from_milestones
from tests.programs.undisturbed import Undisturbed, run_undisturbed
from tests.support import MemvmCli

SYSTEM_PATH = "/usr/bin:/bin"
AWK = "{ n[$2]++; s += $1 } END { for (w in n) if (n[w] > 900) print w, n[w]; print s }"
PYTHON_WORK = """
import collections, hashlib, json, re, sys
counts = collections.Counter(re.findall(r"[a-z]+", sys.stdin.read() * 3))
print(json.dumps(sorted(counts.items())[:20]), hashlib.sha256(repr(sorted(counts.items())).encode()).hexdigest())
"""
PYTHON_FILES = """
import os, pathlib, shutil, tempfile
with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    for i in range(50):
        (folder / f"file{i:02}").write_text("x" * i)
    os.rename(folder / "file00", folder / "moved")
    os.link(folder / "file01", folder / "linked")
    os.symlink("file02", folder / "link")
    shutil.copytree(folder, folder / "copy", symlinks=True)
    for path in sorted(folder.rglob("*")):
        print(path.relative_to(folder), path.lstat().st_size if path.is_file() else "-", path.is_symlink())
print(os.path.exists(name))
"""
PYTHON_DECIMAL = "import decimal as d; d.getcontext().prec = 900; print(d.Decimal(2).sqrt())"
PYTHON_SQL = "import sqlite3; c = sqlite3.connect('SCRATCH/d'); print(c.execute('select 1 + 1').fetchall())"
PYTHON_ASYNCIO = """
import asyncio, hashlib, signal, socket
async def answer(end):
    reader, writer = await asyncio.open_unix_connection(sock=end, limit=1 << 21)
    while line := await reader.readline():
        writer.write(line.upper())
        await writer.drain()
    writer.close()
async def main():
    loop, heard = asyncio.get_running_loop(), asyncio.Event()
    ours, theirs = socket.socketpair()
    answering = asyncio.create_task(answer(theirs))
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    digest = hashlib.sha256()
    for number in range(500):
        writer.write(b"line %d\\n" % number)
        digest.update(await reader.readline())
        if not number % 100:
            await asyncio.sleep(0.001)
    writer.write(b"x" * 1000000 + b"\\n")
    digest.update(await reader.readexactly(1000001))
    print(digest.hexdigest())
    writer.close()
    await answering
    loop.add_signal_handler(signal.SIGUSR1, heard.set)
    signal.raise_signal(signal.SIGUSR1)
    await heard.wait()
    print(await asyncio.gather(*(asyncio.sleep(0.001 * (5 - number), number) for number in range(5))))
    print(await asyncio.gather(*(asyncio.to_thread(sum, range(number)) for number in range(1000, 1010))))
    try:
        await asyncio.wait_for(asyncio.Event().wait(), 0.02)
    except TimeoutError:
        print("late")
asyncio.run(main())
"""
PYTHON_SELECTORS = """
import os, selectors, socket, threading
for kind in (selectors.EpollSelector, selectors.PollSelector, selectors.SelectSelector):
    with kind() as selector, socket.socketpair()[0] as one:
        ends = dict(zip(("stream", "datagrams"), map(socket.socketpair, [socket.AF_UNIX] * 2, [1, 2])))
        counter, (reading, writing) = os.eventfd(0), os.pipe()
        waited = {"counter": counter, "pipe": reading} | {name: pair[0] for name, pair in ends.items()}
        for name, what in waited.items():
            selector.register(what, selectors.EVENT_READ, name)
        selector.register(ends["stream"][1], selectors.EVENT_WRITE, "to write")
        ready = lambda: sorted((key.data, events) for key, events in selector.select(0))
        print(kind.__name__, ready())
        os.write(writing, b"x"), os.eventfd_write(counter, 5), ends["datagrams"][1].send(b"abc")
        print(ready(), os.read(reading, 9), os.eventfd_read(counter), ends["datagrams"][0].recv(9))
        selector.unregister(ends["stream"][1])
        timer = threading.Timer(0.01, ends["stream"][1].sendall, [b"at last"])
        timer.start()
        print([key.data for key, _ in selector.select()], ends["stream"][0].recv(99))
        timer.join()
        fds = [os.dup(reading), counter]
        socket.send_fds(ends["stream"][1], [b"given"], fds)
        print(len(socket.recv_fds(ends["stream"][0], 9, 4)[1]), ready())
"""
PERL_WORDS = "$n{$_}++ for split; END { print map { qq($_ $n{$_}\\n) } sort keys %n }"
SQL = """
create table t(a integer primary key, b text);
with recursive n(i) as (select 1 union all select i + 1 from n where i < 20000)
insert into t select i, i * 7 % 1000 from n;
create index u on t(b); select b, count(*), sum(a) from t group by b order by b limit 20; select sum(a) from t;
"""
BASH = """
declare -A n; i=0; while ((i < 3000)); do ((n[k$((i % 7))] += i, i++)); done
for k in k0 k1 k6; do printf '%s %d\\n' "$k" "${n[$k]}"; done; printf 'one\\ntwo\\n' > SCRATCH/of-bash
while read -r line; do echo "<$line>"; done < SCRATCH/of-bash; cd /usr; echo "$PWD"; [[ -d lib ]] && echo there; type cd
"""
DASH = (
    "i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done; echo $i > SCRATCH/of-dash; read x < SCRATCH/of-dash; echo $x"
)


class Case(NamedTuple):
    """A program with its arguments, and its standard input. INPUTS is where the input files are, SCRATCH is empty."""

    argv: Sequence[str]
    stdin: str = "empty"


PROGRAMS: dict[str, Case] = {
    "python3: print": Case(["python3", "-c", "print(6 * 7)"]),
    "python3: count words": Case(["python3", "-c", PYTHON_WORK], "text"),
    "python3: files": Case(["python3", "-c", PYTHON_FILES]),
    "python3: decimal": Case(["python3", "-c", PYTHON_DECIMAL]),
    "python3: sqlite3": Case(["python3", "-c", PYTHON_SQL]),
    "python3: where it is": Case(["python3", "-c", "import os; print(os.getcwd(), os.uname().sysname)"]),
    "python3: asyncio": Case(["python3", "-c", PYTHON_ASYNCIO]),
    "python3: selectors": Case(["python3", "-W", "ignore", "-c", PYTHON_SELECTORS]),
    "perl: arithmetic": Case(["perl", "-e", "my $s = 0; $s += $_ ** 2 % 7 for 1 .. 4000000; print qq($s\n)"]),
    "perl: count words": Case(["perl", "-ne", PERL_WORDS], "text"),
    "perl: modules": Case(["perl", "-MDigest::SHA=sha256_hex", "-MPOSIX", "-e", "print sha256_hex(q(x)), floor(7.5)"]),
    "sqlite3: a file": Case(["sqlite3", "SCRATCH/new.db", SQL]),
    "sqlite3: in memory": Case(["sqlite3", ":memory:", SQL]),
    "lua5.4": Case(["lua5.4", "-e", "local s = 0 for i = 1, 30000000 do s = s + i % 7 end print(s, _VERSION)"]),
    "bash: built-ins": Case(["bash", "-c", BASH]),
    "dash": Case(["dash", "-c", DASH]),
    "mawk": Case(["mawk", AWK], "text"),
    "gzip": Case(["gzip", "-nc"], "text"),
    "gunzip": Case(["gzip", "-dc", "INPUTS/packed"]),
    "bzip2": Case(["bzip2", "-c"], "text"),
    "xz": Case(["xz", "-1", "-T1", "-c"], "text"),
    "sort": Case(["sort", "INPUTS/text"]),
    "sort: by number, unique": Case(["sort", "-n", "-u", "-k", "1,1"], "text"),
    "sort: with temporary files": Case(["sort", "-S", "300k", "--parallel=1", "INPUTS/text"]),
    "bc": Case(["bc", "-l"], "pi"),
    "openssl: digest": Case(["openssl", "dgst", "-sha512", "INPUTS/text"]),
    "openssl: encrypt": Case(["openssl", "enc", "-aes-256-ctr", "-K", "00" * 32, "-iv", "11" * 16], "text"),
    "openssl: version": Case(["openssl", "version"]),
    "jq": Case(["jq", "-n", "[range(20000)] | map(. * 3 % 11) | group_by(.) | map(length)"]),
    "grep": Case(["grep", "-c", "sol.*ber", "INPUTS/large"]),
    "grep: recursively": Case(["grep", "-rlE", "^[0-9]+ (ka|mi)+ ", "INPUTS"]),
    "sed": Case(["sed", "-e", "s/ka/KA/g", "-e", "/tri/d"], "text"),
    "tar": Case(["tar", "-C", "INPUTS", "--mtime=@0", "--owner=0", "--group=0", "-cf", "-", "text", "pi"]),
    "cat": Case(["cat", "INPUTS/noise", "-", "INPUTS/large"], "text"),
    "wc": Case(["wc", "INPUTS/large", "INPUTS/text"]),
    "cut": Case(["cut", "-d", " ", "-f", "2-3"], "text"),
    "tr": Case(["tr", "a-z", "A-Z"], "text"),
    "uniq": Case(["uniq", "-c"], "sorted"),
    "head": Case(["head", "-n", "1000", "INPUTS/text"]),
    "tail": Case(["tail", "-n", "1000", "INPUTS/text"]),
    "od": Case(["od", "-A", "x", "-t", "x1", "INPUTS/pi"]),
    "base64": Case(["base64"], "text"),
    "sha256sum": Case(["sha256sum", "INPUTS/text", "INPUTS/noise"]),
    "md5sum": Case(["md5sum"], "noise"),
    "cksum": Case(["cksum", "INPUTS/noise"]),
    "nl": Case(["nl", "INPUTS/text"]),
    "fold": Case(["fold", "-w", "20"], "text"),
    "fmt": Case(["fmt", "-w", "60"], "text"),
    "paste": Case(["paste", "INPUTS/pi", "INPUTS/factorials"]),
    "comm": Case(["comm", "-12", "INPUTS/sorted", "INPUTS/sorted"]),
    "seq": Case(["seq", "1", "7", "300000"]),
    "factor": Case(["factor", "1000000007", "600851475143"]),
    "numfmt": Case(["numfmt", "--to=iec", "1000", "1000000", "123456789"]),
    "date": Case(["date", "-u", "-d", "@86400", "+%F %T %A"]),
    "expr": Case(["expr", "6", "*", "7"]),
    "ls": Case(["ls", "-g", "-o", "--time-style=+%s", "INPUTS"]),
    "stat": Case(["stat", "-c", "%n %s %a %F", "INPUTS/text", "INPUTS"]),
    "find": Case(["find", "INPUTS", "-size", "+1M", "-name", "[ln]*"]),
    "cmp": Case(["cmp", "INPUTS/text", "INPUTS/text"]),
    "diff": Case(["diff", "INPUTS/pi", "INPUTS/pi"]),
    "realpath": Case(["realpath", "INPUTS/./text", "INPUTS/.."]),
    "dd": Case(["dd", "if=INPUTS/text", "bs=64k", "status=none"]),
}  # fmt: skip
"""Name: what is run."""
COMPUTING = {"python3: count words", "perl: arithmetic", "lua5.4", "bzip2", "bc", "jq"}
"""Those that compute for long without a system call: the clock says when they are saved. All others are saved after so
many calls, however quick they are."""
MANNERS = [Manner("live", policy, "userfaultfd") for policy in ("active", "demand", "sequential")]


def _job(name: str, inputs: dict[str, Path], scratch: Path) -> Job:
    case = PROGRAMS[name]
    program = shutil.which(case.argv[0], path=SYSTEM_PATH)
    if program is None:
        pytest.skip(f"no {case.argv[0]} here")
    folder = str(inputs["text"].parent)
    arguments = [word.replace("INPUTS", folder).replace("SCRATCH", f"{scratch}/here") for word in case.argv[1:]]
    for name_of_two in ("here", "given"):
        (scratch / name_of_two).mkdir()
    views = (f"{scratch}/given:{scratch}/here",)
    return Job((program, *arguments), inputs[case.stdin], cwd="/", ro=("/", folder), rw=views)


@pytest.fixture(scope="module")
def undisturbed(
    inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, memvm_cli: MemvmCli
) -> Callable[[str], Undisturbed]:
    """Runs a program, once for all that want to know."""

    @cache
    def run(name: str) -> Undisturbed:
        return run_undisturbed(_job(name, inputs, tmp_path_factory.mktemp("scratch")), memvm_cli)

    return run


@pytest.mark.parametrize("name", PROGRAMS)
def test_output_is_that_of_the_native_run(name: str, undisturbed: Callable[[str], Undisturbed]) -> None:
    undisturbed(name).check()


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_saved_in_the_middle_and_restored(name: str, undisturbed: Callable[[str], Undisturbed], tmp_path: Path) -> None:
    run = undisturbed(name)
    if name in COMPUTING:
        moments = seeded_moments(name, run.seconds, len(MANNERS))
    else:
        moments = seeded_calls(name, run.calls, len(MANNERS))
    first = list(PROGRAMS).index(name) % len(MANNERS)
    manners = MANNERS[first:] + MANNERS[:first]
    outputs = finish_from_milestones(run.job, moments, run.calls, manners, tmp_path / "saved")
    for output, moment, manner in zip(outputs, moments, manners, strict=True):
        assert output == run.native.stdout, f"{name}, saved at {moment}, restored {manner}"
