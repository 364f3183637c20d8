"""/proc and the links of /dev: the guest's own process, and the machine that it has, from what the manager knows.

Nothing here is read from the host's /proc: what a guest is told is the same everywhere, and after every restore.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from memvm.files.description import Description
from memvm.files.devices import device_items
from memvm.files.facts import USER
from memvm.files.generated import Item, LinkTo, Names, Text
from memvm.machine.hypercalls.identity import MACHINE_NAME, RELEASE, VERSION, hostname
from memvm.machine.layout import stack_size
from memvm.machine.streams import MAX_DESCRIPTORS
from memvm.machine.thread import LONGEST_NAME
from memvm.memory.protection import Prot

if TYPE_CHECKING:
    from memvm.machine.guest import Guest

PROC_DEVICE = 0x6D78
_KIB = 1024
_REGION_NAMES = {"heap": "[heap]", "stack": "[stack]", "vdso": "[vdso]"}


def dev_items(guest: Guest) -> dict[bytes, Item]:
    """What is in /dev."""
    return device_items(lambda descriptor: LinkTo(lambda: b"/proc/self/fd/%d" % descriptor))


def proc_items(guest: Guest) -> dict[bytes, Item]:
    """What is in /proc."""
    from memvm.machine.guest import GUEST_PID

    own = b"%d" % GUEST_PID
    process = _process_items(guest)
    kernel: dict[bytes, Item] = {
        b"hostname": Text(lambda: hostname(guest).encode() + b"\n"),
        b"osrelease": Text(lambda: RELEASE.encode() + b"\n"),
        b"ostype": Text(lambda: b"Linux\n"),
        b"pid_max": Text(lambda: b"32768\n"),
        b"version": Text(lambda: VERSION.encode() + b"\n"),
        b"random": {b"boot_id": Text(partial(_boot_id, guest)), b"uuid": Text(_uuid)},
    }
    return {
        b"self": LinkTo(lambda: own),
        b"thread-self": LinkTo(lambda: own + b"/task/" + own),
        own: {**process, b"task": {own: process}},
        b"cpuinfo": Text(partial(_cpuinfo, guest)),
        b"meminfo": Text(partial(_meminfo, guest)),
        b"uptime": Text(partial(_uptime, guest)),
        b"loadavg": Text(lambda: b"0.00 0.00 0.00 1/1 %d\n" % GUEST_PID),
        b"stat": Text(partial(_machine_stat, guest)),
        b"version": Text(f"Linux version {RELEASE} (memvm) {VERSION}\n".encode),
        b"filesystems": Text(lambda: b"nodev\tproc\nnodev\ttmpfs\n"),
        b"mounts": LinkTo(lambda: b"self/mounts"),
        b"sys": {
            b"kernel": kernel,
            b"vm": {b"overcommit_memory": Text(lambda: b"0\n"), b"max_map_count": Text(lambda: b"65530\n")},
            b"fs": {b"file-max": Text(lambda: b"%d\n" % MAX_DESCRIPTORS)},
        },
    }


def _process_items(guest: Guest) -> dict[bytes, Item]:
    return {
        b"exe": LinkTo(lambda: os.fsencode(guest.program)),
        b"cwd": LinkTo(lambda: guest.cwd),
        b"root": LinkTo(lambda: b"/"),
        b"fd": Names(partial(_descriptors, guest)),
        b"cmdline": Text(lambda: b"".join(os.fsencode(word) + b"\0" for word in guest.argv)),
        b"comm": Text(lambda: _name(guest) + b"\n"),
        b"maps": Text(partial(_maps, guest)),
        b"mounts": Text(partial(_mounts, guest)),
        b"stat": Text(partial(_stat, guest)),
        b"statm": Text(partial(_statm, guest)),
        b"status": Text(partial(_status, guest)),
        b"limits": Text(partial(_limits, guest)),
        b"oom_score_adj": Text(lambda: b"0\n"),
    }


def _descriptors(guest: Guest) -> dict[bytes, Item]:
    def link(number: int) -> LinkTo:
        def stream() -> Description:
            return guest.files.get(number).stream

        return LinkTo(lambda: stream().path or _shown(stream()), stream)

    return {b"%d" % number: link(number) for number in sorted(guest.files.table)}


def _shown(stream: Description) -> bytes:
    """What a link in /proc/self/fd to something without a path reads."""
    if stream.shown:
        return stream.shown
    facts = stream.facts()
    return (b"pipe:[%d]" if facts.mode & 0o170000 == 0o010000 else b"stream:[%d]") % facts.inode


def _name(guest: Guest) -> bytes:
    return guest.main.name or os.fsencode(guest.program).rpartition(b"/")[2][:LONGEST_NAME]


def _maps(guest: Guest) -> bytes:
    lines = []
    for region in guest.space:
        rights = "".join(
            letter if region.protection & right else "-"
            for letter, right in (("r", Prot.READ), ("w", Prot.WRITE), ("x", Prot.EXEC))
        )
        line = f"{region.start:08x}-{region.end:08x} {rights}p 00000000 00:00 0 "
        name = guest.program if region.kind == "image" else _REGION_NAMES.get(region.kind, "")
        lines.append(os.fsencode(f"{line:<73}{name}".rstrip() + "\n"))
    return b"".join(lines)


def _mounts(guest: Guest) -> bytes:
    kinds = {b"/proc": b"proc"}
    lines = []
    for point, view in sorted(guest.tree.mounts.items()):
        shown = point or b"/"
        lines.append(b"memvm %s %s %s 0 0\n" % (shown, kinds.get(shown, b"tmpfs"), b"rw" if view.writable else b"ro"))
    return b"".join(lines)


def _sizes(guest: Guest) -> tuple[int, int]:
    """Bytes that are allocated, and that hold memory."""
    return sum(region.size for region in guest.space), guest.ram.touched_bytes()


def _stat(guest: Guest) -> bytes:
    from memvm.machine.guest import GUEST_PID, PARENT_PID

    size, resident = _sizes(guest)
    ticks = guest.clocks.cpu_time() // 10_000_000
    head = (GUEST_PID, _name(guest), PARENT_PID, GUEST_PID, GUEST_PID, ticks, size, resident // 4096)
    return b"%d (%s) R %d %d %d 0 -1 0 0 0 0 0 %d 0 0 0 20 0 1 0 0 %d %d" % head + b" 0" * 28 + b"\n"


def _statm(guest: Guest) -> bytes:
    size, resident = (amount // 4096 for amount in _sizes(guest))
    return b"%d %d 0 0 0 %d 0\n" % (size, resident, size)


def _status(guest: Guest) -> bytes:
    from memvm.machine.guest import GUEST_PID, PARENT_PID

    size, resident = (amount // _KIB for amount in _sizes(guest))
    cpus = (1 << guest.cpus) - 1
    lines = [
        f"Name:\t{os.fsdecode(_name(guest))}",
        f"Umask:\t{guest.umask:04o}",
        "State:\tR (running)",
        *(f"{name}:\t{GUEST_PID}" for name in ("Tgid", "Pid")),
        f"PPid:\t{PARENT_PID}",
        "TracerPid:\t0",
        *(f"{name}:\t" + "\t".join([str(USER)] * 4) for name in ("Uid", "Gid")),
        f"VmSize:\t{size:8} kB",
        f"VmRSS:\t{resident:8} kB",
        "Threads:\t1",
        f"SigBlk:\t{guest.main.mask:016x}",
        f"Cpus_allowed:\t{cpus:x}",
    ]
    return os.fsencode("\n".join(lines) + "\n")


def _limits(guest: Guest) -> bytes:
    stack, unlimited = stack_size(guest.ram.size), "unlimited"
    rows = (
        ("Limit", "Soft Limit", "Hard Limit", "Units"),
        ("Max stack size", stack, stack, "bytes"),
        ("Max processes", 1, 1, "processes"),
        ("Max open files", MAX_DESCRIPTORS, MAX_DESCRIPTORS, "files"),
        ("Max address space", guest.ram.size, guest.ram.size, "bytes"),
        ("Max file size", unlimited, unlimited, "bytes"),
    )
    return "".join(f"{name:<25} {soft:<20} {hard:<20} {unit}\n" for name, soft, hard, unit in rows).encode()


def _cpuinfo(guest: Guest) -> bytes:
    one = (
        "processor\t: {0}\nvendor_id\t: memvm\ncpu family\t: 6\nmodel\t\t: 0\nmodel name\t: " + MACHINE_NAME + "\n"
        "stepping\t: 0\nphysical id\t: 0\nsiblings\t: {1}\ncore id\t\t: {0}\ncpu cores\t: {1}\nfpu\t\t: yes\n"
        "flags\t\t: fpu tsc cx8 cmov mmx fxsr sse sse2 syscall lm\nclflush size\t: 64\n"
        "address sizes\t: 46 bits physical, 48 bits virtual\n\n"
    )
    return "".join(one.format(number, guest.cpus) for number in range(guest.cpus)).encode()


def _meminfo(guest: Guest) -> bytes:
    total, used = guest.ram.size // _KIB, guest.ram.touched_bytes() // _KIB
    free = max(0, total - used)
    rows = {"MemTotal": total, "MemFree": free, "MemAvailable": free, "Buffers": 0, "Cached": 0, "Active": used}
    rows |= {"SwapTotal": 0, "SwapFree": 0, "Dirty": 0, "AnonPages": used, "Shmem": 0, "Hugepagesize": 2048}
    return "".join(f"{name + ':':<15} {amount:8} kB\n" for name, amount in rows.items()).encode()


def _uptime(guest: Guest) -> bytes:
    return b"%.2f 0.00\n" % (guest.clocks.monotonic() / 1e9)


def _machine_stat(guest: Guest) -> bytes:
    ticks = guest.clocks.cpu_time() // 10_000_000
    each = b"".join(b"cpu%d %d 0 0 0 0 0 0 0 0 0\n" % (number, ticks * (number == 0)) for number in range(guest.cpus))
    return b"cpu  %d 0 0 0 0 0 0 0 0 0\n%sintr 0\nctxt 0\nbtime 0\nprocesses 1\nprocs_running 1\n" % (ticks, each)


def _boot_id(guest: Guest) -> bytes:
    return _dashed(guest.boot_id.hex())


def _uuid() -> bytes:
    return _dashed(os.urandom(16).hex())


def _dashed(text: str) -> bytes:
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}\n".encode()
