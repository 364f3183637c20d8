"""How a program is found in what a guest is given: by path, by name, as a script, with its loader; and as whom."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from memvm.errors import UsageError
from memvm.files.specs import Access, ViewSpec, parse_view
from tests.support import MemvmCli

HELLO = b"#include <stdio.h>\nint main(int n, char **v) { for (int i = 0; i < n; i++) puts(v[i]); return 7; }\n"
AUXILIARY = b"""
#include <elf.h>
#include <link.h>
#include <stdio.h>
#include <string.h>
#include <sys/auxv.h>
int main(void)
{
    Elf64_Ehdr *loader = (void *)getauxval(AT_BASE);
    printf("%d %d\\n", !memcmp(loader->e_ident, ELFMAG, 4), loader->e_type == ET_DYN);
    Elf64_Phdr *headers = (void *)getauxval(AT_PHDR);
    printf("%d %d\\n", (int)headers[0].p_type == PT_PHDR, getauxval(AT_PHNUM) > 5);
    Elf64_Addr own = (Elf64_Addr)headers - headers[0].p_vaddr;
    printf("%d\\n", getauxval(AT_ENTRY) == own + ((Elf64_Ehdr *)own)->e_entry);
    printf("%s\\n", strrchr((char *)getauxval(AT_EXECFN), '/'));
    return 0;
}
"""


def compiled(source: bytes, path: Path) -> Path:
    subprocess.run(["gcc", "-xc", "-", "-o", path], input=source, check=True)
    return path


@pytest.fixture(scope="module")
def hello(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dynamically linked program that prints its arguments, and ends with status 7."""
    return compiled(HELLO, tmp_path_factory.mktemp("dynamic") / "hello")


def test_without_its_dynamic_loader_it_says_what_to_give(hello: Path, memvm_cli: MemvmCli) -> None:
    result = memvm_cli("run", "--", hello, code=65)
    assert "dynamically linked" in result.err
    assert "/lib64/ld-linux-x86-64.so.2" in result.err
    assert "--ro /lib64" in result.err
    hint = result.err.partition("files to read: ")[2].partition(",")[0].split()
    assert memvm_cli("run", *hint, "--", hello, "a", code=7).text == f"{hello}\na\n"


def test_what_the_kernel_tells_a_program_of_itself_and_its_loader(tmp_path: Path, memvm_cli: MemvmCli) -> None:
    program = compiled(AUXILIARY, tmp_path / "auxiliary")
    native = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    assert native == "1 1\n1 1\n1\n/auxiliary\n"
    assert memvm_cli("run", "--strict", "--ro", "/", "--", program, code=0).text == native


def test_a_program_is_found_by_the_guests_path(hello: Path, memvm_cli: MemvmCli) -> None:
    views = ["--ro", "/", "--ro", f"{hello.parent}:/opt/tools"]
    result = memvm_cli("run", *views, "--env", "PATH=/nowhere:/opt/tools", "--", "hello", "x", code=7)
    assert result.text == "hello\nx\n"
    result = memvm_cli("run", *views, "--", "no-such-program", code=65)
    assert "in the guest's PATH" in result.err


def test_a_relative_path_starts_where_the_guest_does(hello: Path, memvm_cli: MemvmCli) -> None:
    views = ["--ro", "/", "--ro", f"{hello.parent}:/opt/tools"]
    assert memvm_cli("run", *views, "--cwd", "/opt/tools", "--", "./hello", code=7).text == "./hello\n"
    assert "no directory /opt/none" in memvm_cli("run", *views, "--cwd", "/opt/none", "--", "./hello", code=64).err
    result = memvm_cli("run", "--ro", "/", "--ro", hello.parent, "--", "/bin/pwd", cwd=hello.parent, code=0)
    assert result.text == f"{hello.parent}\n"


def test_who_begins_behind_a_directory_of_the_guests_is_told(tmp_path: Path, memvm_cli: MemvmCli) -> None:
    """All files of the host's, but /tmp is the guest's own."""
    if not tmp_path.resolve().is_relative_to("/tmp"):
        pytest.skip("temporary files are not in /tmp here")
    told = memvm_cli("run", "--ro", "/", "--", "pwd", cwd=tmp_path, code=0)
    assert (told.text, f"it has a /tmp of its own, without {tmp_path}, and begins in /" in told.err) == ("/\n", True)
    for arguments, where in ((("--ro", "."), tmp_path), (("--cwd", "/usr"), Path("/usr"))):
        quiet = memvm_cli("run", "--ro", "/", *arguments, "--", "pwd", cwd=tmp_path, code=0)
        assert (quiet.text, quiet.err) == (f"{where}\n", "")


def test_scripts(hello: Path, tmp_path: Path, memvm_cli: MemvmCli) -> None:
    def script(name: str, line: str) -> None:
        (tmp_path / name).write_text(f"#!{line}\n")
        (tmp_path / name).chmod(0o755)

    views = ["--ro", "/", "--ro", str(hello.parent), "--ro", f"{tmp_path}:/s"]
    script("plain", str(hello))
    script("argument", f" {hello} \t-x  and more ")
    script("nested", "/s/argument y")
    script("missing", "/s/none")
    script("endless", "/s/endless")
    assert memvm_cli("run", *views, "--", "/s/plain", "1", "2", code=7).text == f"{hello}\n/s/plain\n1\n2\n"
    assert memvm_cli("run", *views, "--", "/s/argument", code=7).text == f"{hello}\n-x  and more\n/s/argument\n"
    nested = memvm_cli("run", *views, "--", "/s/nested", "z", code=7).text.splitlines()
    assert nested == [str(hello), "-x  and more", "/s/argument", "y", "/s/nested", "z"]
    assert "a script for /s/none" in memvm_cli("run", *views, "--", "/s/missing", code=65).err
    assert "too many" in memvm_cli("run", *views, "--", "/s/endless", code=65).err


def test_a_directory_that_is_not_there_is_a_mistake(hello: Path, memvm_cli: MemvmCli) -> None:
    result = memvm_cli("run", "--ro", "/no/such/place", "--", hello, code=64)
    assert "--ro /no/such/place" in result.err
    assert "--ro /etc/passwd" in memvm_cli("run", "--ro", "/etc/passwd", "--", hello, code=64).err


PYTHON_REFUSED = """
import os
for attempt in (os.fork, lambda: os.execv("/bin/true", ["true"]), lambda: os.execv("/bin/none", ["none"])):
    for _ in range(2):
        try:
            attempt()
        except OSError as error:
            print(type(error).__name__)
"""


def test_who_asks_for_processes_is_refused_in_words_and_once(memvm_cli: MemvmCli) -> None:
    result = memvm_cli(
        "run", "--ro", "/", "--cwd", "/", "--name", "asks", "--", "/usr/bin/python3", "-c", PYTHON_REFUSED, code=0
    )
    assert result.text.split() == ["OSError"] * 2 + ["PermissionError"] * 2 + ["FileNotFoundError"] * 2
    assert [line.partition(", which is refused")[0] for line in result.err.splitlines()] == [
        "memvm: guest asks: it asked for another process",
        "memvm: guest asks: it asked to run /bin/true",
    ]


def test_who_a_guest_is_can_be_set_and_stays(busybox: Path, memvm_cli: MemvmCli) -> None:
    options = ["--hostname", "heron", "--cpus", "3", "--ram", "64M"]
    for applet, shown in {
        "hostname": "heron\n",
        "nproc": "3\n",
        "uname -n": "heron\n",
        "grep -c ^processor /proc/cpuinfo": "3\n",
        "cat /proc/sys/kernel/hostname": "heron\n",
        "grep MemTotal /proc/meminfo": "MemTotal:          65536 kB\n",
        "cat /proc/self/comm": "busybox\n",
        "readlink /proc/self/exe": f"{busybox}\n",
    }.items():
        assert memvm_cli("run", *options, "--", busybox, *applet.split(), code=0).text == shown
    assert "host name" in memvm_cli("run", "--hostname", "x" * 65, "--", busybox, "true", code=64).err
    assert "CPUs" in memvm_cli("run", "--cpus", "0", "--", busybox, "true", code=64).err


@pytest.mark.parametrize("views", [(), ("--ro", "/")])
def test_a_program_that_is_a_link_sees_its_file_and_is_called_by_the_link(
    views: tuple[str, ...], busybox: Path, tmp_path: Path, memvm_cli: MemvmCli
) -> None:
    """Programs find what lies beside them by the former ($ORIGIN), and what they shall do by the latter."""
    (tmp_path / "cat").symlink_to("there/cat")
    (tmp_path / "readlink").symlink_to("there/../there/readlink")
    (tmp_path / "there").symlink_to(tmp_path / "real")
    (tmp_path / "real").mkdir()
    for name in ("cat", "readlink"):
        (tmp_path / "real" / name).symlink_to(busybox)
    assert memvm_cli("run", *views, "--", tmp_path / "readlink", "/proc/self/exe", code=0).text == f"{busybox}\n"
    assert memvm_cli("run", *views, "--", tmp_path / "cat", "/proc/self/comm", code=0).text == "cat\n"


@pytest.mark.parametrize(
    ("text", "host", "point"),
    [
        ("/usr", "/usr", "/usr"),
        ("/usr:/", "/usr", "/"),
        ("/usr/../etc/:/x//y/./z/..", "/etc", "/x/y"),
        ("here", f"{Path.cwd()}/here", f"{Path.cwd()}/here"),
        ("here:/there", f"{Path.cwd()}/here", "/there"),
    ],
)
def test_a_view_as_it_is_asked_for(text: str, host: str, point: str) -> None:
    assert parse_view(Access.READ, text) == ViewSpec(Access.READ, host, point)


@pytest.mark.parametrize("text", ["", ":/x", "/usr:x", "/usr:", "a\0b"])
def test_a_view_that_makes_no_sense(text: str) -> None:
    with pytest.raises(UsageError):
        parse_view(Access.READ, text)


def test_who_fails_for_want_of_room_for_files_is_told_so(busybox: Path, memvm_cli: MemvmCli) -> None:
    result = memvm_cli("run", "--", busybox, "truncate", "-s", "300M", "/tmp/file", code=1)
    assert "memvm: the guest's files in memory may have 256.0 MiB, and it wanted more" in result.err
