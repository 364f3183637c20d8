"""The numbers and layouts in memvm/linux are those of the C headers: a C program prints them, and we compare.

A distribution's headers may be older than the kernel. What they lack is allowed only for the names in
NEWER_THAN_SOME_HEADERS, each with the release that brought it.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from collections.abc import Iterable
from enum import IntEnum, IntFlag
from pathlib import Path

import pytest

from memvm.linux import files, memfd, openat2, pagemap, passing, ptrace, seccomp, userfaultfd

HEADERS = """
#define _GNU_SOURCE
#include <elf.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/memfd.h>
#include <linux/openat2.h>
#include <linux/ptrace.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
"""

NEWER_THAN_SOME_HEADERS = {
    "UFFD_FEATURE_WP_UNPOPULATED": "6.4",
    "UFFD_FEATURE_POISON": "6.6",
    "UFFDIO_POISON": "6.6",
    "UFFD_FEATURE_WP_ASYNC": "6.7",
    "UFFD_FEATURE_MOVE": "6.8",
    "PAGEMAP_SCAN": "6.7",
    "PM_SCAN_WP_MATCHING": "6.7",
    "PM_SCAN_CHECK_WPASYNC": "6.7",
    "PAGE_IS_PRESENT": "6.7",
    "PAGE_IS_WRITTEN": "6.7",
    "MFD_EXEC": "6.3",
    "SECCOMP_IOCTL_NOTIF_SET_FLAGS": "6.6",
    "SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP": "6.6",
}


def members(prefix: str, enum: type[IntEnum] | type[IntFlag]) -> dict[str, int]:
    """C names and values of an enum's members; zero members are Python's own."""
    return {prefix + name: int(member) for name, member in enum.__members__.items() if member}


CONSTANTS: dict[str, int] = {
    "F_ADD_SEALS": memfd.F_ADD_SEALS,
    "F_SEAL_SHRINK": memfd.F_SEAL_SHRINK,
    "F_SEAL_GROW": memfd.F_SEAL_GROW,
    "F_SEAL_FUTURE_WRITE": memfd.F_SEAL_FUTURE_WRITE,
    "FALLOC_FL_KEEP_SIZE": memfd.FALLOC_FL_KEEP_SIZE,
    "FALLOC_FL_PUNCH_HOLE": memfd.FALLOC_FL_PUNCH_HOLE,
    "MFD_EXEC": memfd.MFD_EXEC,
    "PAGEMAP_SCAN": pagemap.PAGEMAP_SCAN,
    **members("PM_SCAN_", pagemap.ScanFlag),
    **members("PAGE_IS_", pagemap.Category),
    "SYNC_FILE_RANGE_WRITE": files.SYNC_FILE_RANGE_WRITE,
    "__NR_sync_file_range": files.SYSCALL_SYNC_FILE_RANGE,
    "__NR_fallocate": files.SYSCALL_FALLOCATE,
    "__NR_openat2": openat2.SYSCALL_OPENAT2,
    **members("RESOLVE_", openat2.Resolve),
    "__NR_sendmsg": passing.SYSCALL_SENDMSG,
    "SOL_SOCKET": passing.SOL_SOCKET,
    "SCM_RIGHTS": passing.SCM_RIGHTS,
    "CMSG_LEN(sizeof(int))": passing._CMSG_LENGTH,
    "CMSG_SPACE(sizeof(int))": passing._CMSG.size,
    "PTRACE_CONT": ptrace.PTRACE_CONT,
    "PTRACE_SYSCALL": ptrace.PTRACE_SYSCALL,
    "PTRACE_GETEVENTMSG": ptrace.PTRACE_GETEVENTMSG,
    "PTRACE_GETREGSET": ptrace.PTRACE_GETREGSET,
    "PTRACE_SETREGSET": ptrace.PTRACE_SETREGSET,
    "PTRACE_SEIZE": ptrace.PTRACE_SEIZE,
    "PTRACE_INTERRUPT": ptrace.PTRACE_INTERRUPT,
    "PTRACE_GETSIGMASK": ptrace.PTRACE_GETSIGMASK,
    "PTRACE_SETSIGMASK": ptrace.PTRACE_SETSIGMASK,
    "NT_X86_XSTATE": ptrace.NT_X86_XSTATE,
    "__WALL": ptrace.WALL,
    "__WNOTHREAD": ptrace.WNOTHREAD,
    **members("PTRACE_O_", ptrace.Option),
    **members("PTRACE_EVENT_", ptrace.StopEvent),
    "__NR_seccomp": seccomp.SYSCALL_SECCOMP,
    "SECCOMP_SET_MODE_FILTER": seccomp.SECCOMP_SET_MODE_FILTER,
    "SECCOMP_FILTER_FLAG_NEW_LISTENER": seccomp.SECCOMP_FILTER_FLAG_NEW_LISTENER,
    "SECCOMP_IOCTL_NOTIF_RECV": seccomp.SECCOMP_IOCTL_NOTIF_RECV,
    "SECCOMP_IOCTL_NOTIF_SEND": seccomp.SECCOMP_IOCTL_NOTIF_SEND,
    "SECCOMP_IOCTL_NOTIF_ID_VALID": seccomp.SECCOMP_IOCTL_NOTIF_ID_VALID,
    "SECCOMP_IOCTL_NOTIF_SET_FLAGS": seccomp.SECCOMP_IOCTL_NOTIF_SET_FLAGS,
    "SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP": seccomp._SYNC_WAKE_UP,
    "AUDIT_ARCH_X86_64": seccomp.AUDIT_ARCH_X86_64,
    "__X32_SYSCALL_BIT": seccomp._X32_BIT,
    **members("SECCOMP_RET_", seccomp.Action),
    **members("SECCOMP_USER_NOTIF_FLAG_", seccomp.AnswerFlag),
    "BPF_LD | BPF_W | BPF_ABS": seccomp._LOAD_WORD,
    "BPF_JMP | BPF_JEQ | BPF_K": seccomp._JUMP_EQUAL,
    "BPF_JMP | BPF_JGE | BPF_K": seccomp._JUMP_AT_LEAST,
    "BPF_RET | BPF_K": seccomp._RETURN,
    "offsetof(struct seccomp_data, nr)": seccomp._NUMBER_OFFSET,
    "offsetof(struct seccomp_data, arch)": seccomp._ARCH_OFFSET,
    "__NR_userfaultfd": userfaultfd.SYSCALL_USERFAULTFD,
    "UFFD_USER_MODE_ONLY": userfaultfd.UFFD_USER_MODE_ONLY,
    "UFFD_API": userfaultfd.UFFD_API_VERSION,
    "UFFDIO_API": userfaultfd.UFFDIO_API,
    "UFFDIO_REGISTER": userfaultfd.UFFDIO_REGISTER,
    "UFFDIO_UNREGISTER": userfaultfd.UFFDIO_UNREGISTER,
    "UFFDIO_WAKE": userfaultfd.UFFDIO_WAKE,
    "UFFDIO_COPY": userfaultfd.UFFDIO_COPY,
    "UFFDIO_ZEROPAGE": userfaultfd.UFFDIO_ZEROPAGE,
    "UFFDIO_WRITEPROTECT": userfaultfd.UFFDIO_WRITEPROTECT,
    "UFFDIO_CONTINUE": userfaultfd.UFFDIO_CONTINUE,
    "UFFDIO_POISON": userfaultfd.UFFDIO_POISON,
    "UFFDIO_WRITEPROTECT_MODE_WP": 1,
    **members("UFFD_FEATURE_", userfaultfd.Feature),
    **members("UFFDIO_REGISTER_MODE_", userfaultfd.RegisterMode),
    **members("UFFD_EVENT_", userfaultfd.Event),
    **members("UFFD_PAGEFAULT_FLAG_", userfaultfd.FaultFlag),
    "sizeof(struct uffd_msg)": userfaultfd.MESSAGE_SIZE,
    # What ptrace.get_signal_info reads.
    "sizeof(siginfo_t)": 128,
    "offsetof(siginfo_t, si_signo)": 0,
    "offsetof(siginfo_t, si_code)": 8,
    "offsetof(siginfo_t, si_addr)": 16,
    "offsetof(siginfo_t, si_pid)": 16,
}

LAYOUTS: dict[str, tuple[struct.Struct, str]] = {
    "struct open_how": (openat2.HOW, "flags mode resolve"),
    "struct iovec": (passing._IOVEC, "iov_base iov_len"),
    "struct msghdr": (
        passing._MSGHDR,
        "msg_name msg_namelen msg_iov msg_iovlen msg_control msg_controllen msg_flags",
    ),
    "struct sock_filter": (seccomp._INSTRUCTION, "code jt jf k"),
    "struct seccomp_notif": (
        seccomp._NOTIFICATION,
        "id pid flags data.nr data.arch data.instruction_pointer data.args",
    ),
    "struct seccomp_notif_resp": (seccomp._RESPONSE, "id val error flags"),
    "struct uffd_msg": (
        userfaultfd.MESSAGE,
        "event arg.pagefault.flags arg.pagefault.address arg.pagefault.feat",
    ),
    "struct uffdio_api": (userfaultfd._API, "api features ioctls"),
    "struct uffdio_register": (userfaultfd._REGISTER, "range.start range.len mode ioctls"),
    "struct uffdio_range": (userfaultfd._RANGE, "start len"),
    "struct uffdio_copy": (userfaultfd._COPY, "dst src len mode copy"),
    "struct uffdio_zeropage": (userfaultfd._ZEROPAGE, "range.start range.len mode zeropage"),
    "struct uffdio_writeprotect": (userfaultfd._WRITEPROTECT, "range.start range.len mode"),
}
"""For each C structure its Python layout, and the C fields in the order of the Python ones."""


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What the C compiler says of each expression that its headers know."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler here: apt-get install gcc libc6-dev")
    source = tmp_path_factory.mktemp("abi") / "abi.c"
    program = source.with_suffix("")
    source.write_text(_program(_expressions()))
    subprocess.run([compiler, "-o", program, source], check=True)
    lines = subprocess.run([program], check=True, capture_output=True, text=True).stdout.splitlines()
    return {name: int(value) for name, value in (line.split("\t") for line in lines)}


def _expressions() -> list[str]:
    expressions = [*CONSTANTS]
    for name, (_, fields) in LAYOUTS.items():
        expressions.append(f"sizeof({name})")
        expressions += [f"offsetof({name}, {field})" for field in fields.split()]
    expressions.append("sizeof(struct user_regs_struct)")
    expressions += [f"offsetof(struct user_regs_struct, {name})" for name in ptrace.REGISTERS]
    return expressions


def _program(expressions: Iterable[str]) -> str:
    lines = [HEADERS, "int main(void) {"]
    for expression in expressions:
        # Kernel constants are macros, or (in fcntl.h, sys/wait.h) macros beside the enum: #ifdef sees them.
        optional = expression in NEWER_THAN_SOME_HEADERS
        lines += [f"#ifdef {expression}"] * optional
        # As unsigned int or wider: SECCOMP_RET_* and ioctl numbers are not signed on our side either.
        lines.append(f'    printf("%s\\t%llu\\n", "{expression}", (unsigned long long)({expression}));')
        lines += ["#endif"] * optional
    return "\n".join([*lines, "    return 0;", "}", ""])


@pytest.mark.parametrize("name", CONSTANTS)
def test_constant(name: str, headers: dict[str, int]) -> None:
    if name not in headers:
        pytest.skip(f"these headers are older than Linux {NEWER_THAN_SOME_HEADERS[name]}")
    assert headers[name] == CONSTANTS[name]


@pytest.mark.parametrize("name", LAYOUTS)
def test_structure(name: str, headers: dict[str, int]) -> None:
    layout, fields = LAYOUTS[name]
    offsets = [headers[f"offsetof({name}, {field})"] for field in fields.split()]
    assert offsets == _offsets(layout)
    assert headers[f"sizeof({name})"] == layout.size


def test_registers(headers: dict[str, int]) -> None:
    offsets = [headers[f"offsetof(struct user_regs_struct, {name})"] for name in ptrace.REGISTERS]
    assert offsets == [8 * position for position in range(len(ptrace.REGISTERS))]
    assert headers["sizeof(struct user_regs_struct)"] == 8 * len(ptrace.REGISTERS)


def test_instruction_size_is_that_of_the_header(headers: dict[str, int]) -> None:
    assert headers["sizeof(struct sock_filter)"] == seccomp.INSTRUCTION_SIZE


def _offsets(layout: struct.Struct) -> list[int]:
    """Where each field of a layout begins; "6Q" is one field, an array, and "7x" none."""
    codes = re.findall(r"\d*[a-zA-Z]", layout.format)
    return [
        struct.calcsize("=" + "".join(codes[:position]))
        for position, code in enumerate(codes)
        if not code.endswith("x")
    ]


def test_offsets_of_a_layout_with_arrays_and_padding() -> None:
    assert _offsets(struct.Struct("=B7xQ2IH")) == [0, 8, 16, 24]


def test_every_newer_name_is_one_that_memvm_uses() -> None:
    assert set(NEWER_THAN_SOME_HEADERS) <= set(CONSTANTS)


def test_the_c_program_is_asked_about_every_number(headers: dict[str, int]) -> None:
    assert set(_expressions()) - set(headers) <= set(NEWER_THAN_SOME_HEADERS)


def test_every_system_call_and_ioctl_number_is_compared() -> None:
    numbers = {
        value
        for module in (files, memfd, pagemap, passing, ptrace, seccomp, userfaultfd)
        for name, value in vars(module).items()
        if isinstance(value, int) and re.match(r"SYSCALL_|UFFD|PAGEMAP_|SECCOMP_|PTRACE_|F_|FALLOC_|MFD_|SYNC_", name)
    }
    assert numbers <= set(CONSTANTS.values())


def test_headers_that_lack_a_name_are_told_apart(tmp_path: Path) -> None:
    """A newer constant that the headers do not know is left out, and does not break the program."""
    source = tmp_path / "newer.c"
    source.write_text(_program(["MFD_EXEC"]).replace("MFD_EXEC", "MFD_NOT_YET_INVENTED"))
    subprocess.run(["gcc", "-o", tmp_path / "newer", source], check=True)
    assert subprocess.run([tmp_path / "newer"], check=True, capture_output=True).stdout == b""
