"""How fast a checkpoint is made, beside the two things that it cannot do without: compressing, and writing.

The references work on the same bytes: a loop of zstd at the same level, over the guest's touched memory, in pieces
as large as a chunk, in as many threads as there are CPUs; and a write of the checkpoint file's bytes, with fsync, to
the same file system. All are in bytes of guest memory a second; what counts is the slower of the references.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from pathlib import Path
from statistics import median

from memvm.checkpoint.save import DEFAULT_LEVEL
from memvm.checkpoint.staging import CHUNK_PAGES
from memvm.linux.memfd import data_extents
from memvm.units import MIB, PAGE_SIZE
from tools.benchmarks.figures import Figure, Limit, Reference
from tools.benchmarks.guest_process import GuestProcess, save
from tools.benchmarks.setting import BenchmarkError, Setting, warm_memory
from tools.benchmarks.ticking import WARM, ticker

LIMIT = Limit(ratio_at_least=0.8)
_BLOCK = 4 * MIB
_SHARE = 256 * CHUNK_PAGES * PAGE_SIZE


def measure(setting: Setting) -> list[Figure]:
    """Medians over the runs."""
    file = setting.directory / "throughput.ckpt"
    times: dict[str, list[float]] = {"live": [], "stopped": [], "zstd": [], "write": []}
    raw = 0
    with ticker(setting, period=60.0, hot_mib=1) as guest, GuestRamFile(guest) as ram:
        save(guest.name, file)
        contents = file.read_bytes()
        for run in range(setting.runs):
            names = list(times) if run % 2 == 0 else list(reversed(times))
            for name in names:
                warm_memory(WARM)
                if name == "zstd":
                    times[name].append(ram.compress(DEFAULT_LEVEL))
                elif name == "write":
                    times[name].append(_write(setting.directory / "plain", contents))
                else:
                    report = save(guest.name, file, *(["--live"] if name == "live" else []))
                    raw = report["bytes_raw"]
                    times[name].append(report["seconds"])
    rates = {name: median(seconds and raw / seconds / 1e9 for seconds in values) for name, values in times.items()}
    slower = min(("zstd", "write"), key=rates.__getitem__)
    threads = len(os.sched_getaffinity(0))
    what = {
        "zstd": f"zstd level {DEFAULT_LEVEL} of the same bytes, python-zstandard in {threads} threads",
        "write": f"write and fsync of the file's {len(contents) / 1e6:.0f} MB",
    }
    reference = Reference(rates[slower], what[slower])
    samples = {name: tuple(raw / seconds / 1e9 for seconds in values) for name, values in times.items()}
    return [
        Figure(
            "throughput",
            "a live checkpoint of a guest that waits, in bytes of memory",
            rates["live"],
            "GB/s",
            reference,
            LIMIT,
            samples["live"],
        ),
        Figure(
            "throughput.stopped",
            "the same, stopped for the save",
            rates["stopped"],
            "GB/s",
            reference,
            LIMIT,
            samples["stopped"],
        ),
        Figure("throughput.zstd", what["zstd"], rates["zstd"], "GB/s", samples=samples["zstd"]),
        Figure("throughput.write", what["write"], rates["write"], "GB/s", samples=samples["write"]),
    ]


class GuestRamFile:
    """The memory file of a guest that waits, mapped here for the reference to read. A context manager."""

    def __init__(self, guest: GuestProcess) -> None:
        self._fd = os.open(_ram_path(guest.pid), os.O_RDONLY)
        self._size = os.fstat(self._fd).st_size
        self._map = mmap.mmap(self._fd, self._size, mmap.MAP_SHARED | mmap.MAP_POPULATE, mmap.PROT_READ)
        self._view = memoryview(self._map)

    def compress(self, level: int) -> float:
        """Seconds that it takes to compress what has been touched."""
        from zstandard import ZstdCompressor

        shares = [
            (start, min(start + _SHARE, last))
            for first, last in data_extents(self._fd, 0, self._size)
            for start in range(first, last, _SHARE)
        ]
        lock = threading.Lock()

        def work() -> None:
            compressor = ZstdCompressor(level=level)
            while True:
                with lock:
                    if not shares:
                        return
                    start, end = shares.pop()
                for offset in range(start, end, CHUNK_PAGES * PAGE_SIZE):
                    compressor.compress(self._view[offset : min(offset + CHUNK_PAGES * PAGE_SIZE, end)])

        threads = [threading.Thread(target=work) for _ in os.sched_getaffinity(0)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.monotonic() - began

    def __enter__(self) -> GuestRamFile:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._view.release()
        self._map.close()
        os.close(self._fd)


def _ram_path(pid: int) -> str:
    """The manager's descriptor of guest RAM."""
    folder = Path(f"/proc/{pid}/fd")
    for entry in folder.iterdir():
        if os.readlink(entry).startswith("/memfd:memvm-ram"):  # noqa: PTH115 - the target is no path
            return str(entry)
    raise BenchmarkError(f"process {pid} has no guest RAM")


def _write(path: Path, contents: bytes) -> float:
    view = memoryview(contents)
    began = time.monotonic()
    with path.open("wb", buffering=0) as file:
        for offset in range(0, len(view), _BLOCK):
            file.write(view[offset : offset + _BLOCK])
        os.fsync(file.fileno())
    seconds = time.monotonic() - began
    path.unlink()
    return seconds
