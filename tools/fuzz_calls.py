#!/usr/bin/env python3
"""Looks for system calls that do harm: a guest with several threads makes random ones, all of those that there are.

    python3 -m tools.fuzz_calls [--seconds 60] [--seed 1]

Numbers, arguments and pointers are random, and calls that end, block, fork or cut off the guest are among them. The
guest may end however it likes; its manager may not fail, hang, or leave files behind. A guest that was too much is
named by the seed that makes it again, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

INTERNAL_ERROR = 70
_LIFE = 2.0
"""Seconds that one guest lives at most: memvm's own time limit."""
_PATIENCE = 20.0
"""Seconds in which it must have ended then."""
_SOURCE = r"""/* Random system calls by four threads, until something ends them. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

static char arena[1 << 16];
static uint64_t state[4];
static int odd; /* Every other guest makes few calls of the kinds that soon end it. */

static uint64_t draw(int thread)
{
    uint64_t z = (state[thread] += 0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static uint64_t argument(int thread)
{
    static const uint64_t edges[] = {0, 1, 2, 8, 9, 128, 1000, 1001, 4096, 0x110f00, -1, -4096, 1UL << 31, 1UL << 63,
                                     0x1f0000, 0x1f1000, 0x200000, 0x7ffffffff000};
    switch (draw(thread) % 6) {
    case 0: return draw(thread) >> draw(thread) % 64;
    case 1: return edges[draw(thread) % (sizeof edges / sizeof *edges)];
    case 2: return draw(thread) % 48; /* a descriptor, or a small number of anything */
    default: return (uint64_t)(arena + draw(thread) % sizeof arena) & -(1UL << draw(thread) % 4);
    }
}

/* Calls on descriptors that others wait for: they mean something only together, so they are made more often. */
static const short together[] = {
    SYS_read, SYS_write, SYS_readv, SYS_writev, SYS_poll, SYS_select, SYS_ppoll, SYS_dup, SYS_close, SYS_fcntl,
    SYS_ioctl, SYS_pipe2, SYS_eventfd2, SYS_timerfd_create, SYS_timerfd_settime, SYS_timerfd_gettime, SYS_signalfd4,
    SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_ctl, SYS_epoll_ctl, SYS_epoll_wait, SYS_epoll_pwait, SYS_epoll_pwait2,
    SYS_socketpair, SYS_sendto, SYS_recvfrom, SYS_sendmsg, SYS_sendmsg, SYS_recvmsg, SYS_sendmmsg, SYS_recvmmsg,
    SYS_shutdown, SYS_setsockopt, SYS_getsockopt, SYS_getsockname, SYS_fstat, SYS_tgkill, SYS_rt_sigprocmask,
};

/* Descriptors of all kinds, and a message that carries some, so that the calls have something to work on. */
static void prepare(void)
{
    int pair[2];
    for (int i = 0; i < 3; i++) {
        static const int kinds[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};
        socketpair(AF_UNIX, kinds[i] | SOCK_NONBLOCK, 0, pair);
        pipe2(pair, O_NONBLOCK);
        eventfd(i, EFD_NONBLOCK);
        epoll_create1(0);
        timerfd_create(i, TFD_NONBLOCK);
    }
}

/* A struct msghdr that makes sense, at the beginning of the arena: one buffer, and two descriptors. */
static void write_message(int thread)
{
    struct msghdr *message = (struct msghdr *)arena;
    struct iovec *part = (struct iovec *)(arena + 128);
    struct cmsghdr *control = (struct cmsghdr *)(arena + 256);
    *part = (struct iovec){arena + 1024, draw(thread) % 512};
    *message = (struct msghdr){.msg_iov = part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = 24};
    control->cmsg_len = 24, control->cmsg_level = SOL_SOCKET, control->cmsg_type = SCM_RIGHTS;
    for (int i = 0; i < 2; i++)
        ((int *)CMSG_DATA(control))[i] = (int)(draw(thread) % 48);
}

static void *fuzz(void *number)
{
    int me = (int)(long)number;
    for (;;) {
        write_message(me);
        if (draw(me) % (odd ? 256 : 2)) {
            long call = together[draw(me) % (sizeof together / sizeof *together)];
            uint64_t at = draw(me) % 2 ? (uint64_t)arena : argument(me);
            syscall(call, draw(me) % 48, draw(me) % 2 ? at : draw(me) % 4, draw(me) % 48, at, argument(me), 0);
            continue;
        }
        for (int i = 0; i < 8; i++)
            *(uint64_t *)(arena + draw(me) % (sizeof arena - 8)) = argument(me);
        long call = draw(me) % 470;
        if (call == SYS_exit_group || (call == SYS_exit && draw(me) % 16) || (call == SYS_pause && draw(me) % 16))
            continue;
        syscall(call, argument(me), argument(me), argument(me), argument(me), argument(me), argument(me));
    }
    return NULL;
}

int main(int argc, char **argv)
{
    for (int i = 0; i < 4; i++)
        state[i] = strtoul(argv[argc - 1], NULL, 10) * 4 + i;
    signal(SIGPIPE, SIG_IGN);
    odd = strtoul(argv[argc - 1], NULL, 10) & 1;
    prepare();
    pthread_t thread;
    for (long i = 1; i < 4; i++)
        pthread_create(&thread, NULL, fuzz, (void *)i);
    fuzz(NULL);
}
"""


def build(directory: Path) -> Path:
    """The guest. Raises CalledProcessError, and FileNotFoundError where there is no gcc."""
    source, program = directory / "calls.c", directory / "calls"
    source.write_text(_SOURCE)
    subprocess.run(["gcc", "-O2", "-static", "-pthread", source, "-o", program], check=True)
    return program


def complaint(program: Path, seed: int) -> str:
    """What was wrong with one guest's life; "" if nothing was."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "memvm", "run", "--ram", "64M", "--time-limit", f"{_LIFE:g}s", "--"]
        try:
            done = subprocess.run(
                [*command, program, str(seed)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                cwd=directory,
                env={**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH") or str(Path.cwd())},
                timeout=_PATIENCE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"it did not end within {_PATIENCE:g} s"
        said = done.stderr.decode(errors="replace")
        if done.returncode == INTERNAL_ERROR or "Traceback" in said or "internal error" in said:
            return f"the manager failed:\n{said[-3000:]}"
        left = sorted(path.name for path in Path(directory).iterdir())
        return f"it left files behind: {left}" if left else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz for a while; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(arguments)
    end, seed, failures = time.monotonic() + given.seconds, given.seed, 0
    with tempfile.TemporaryDirectory() as directory:
        program = build(Path(directory))
        while time.monotonic() < end:
            if wrong := complaint(program, seed):
                print(f"seed {seed}: {wrong}")
                failures += 1
            seed += 1
    print(f"{seed - given.seed} guests, {failures} that were too much")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
