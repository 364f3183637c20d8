"""Finds and reads what a guest is to run: the program, the interpreter of a script, the dynamic loader.

A program is looked for in the guest's tree, if it is given any of the host's files, and then among the host's own: a
static program needs no tree. What a program in turn asks for (`#!`, PT_INTERP) it has to have in its tree.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from memvm.errors import ImageError, UsageError
from memvm.files.description import Description, HostFile
from memvm.machine import elf
from memvm.machine.config import GuestConfig
from memvm.machine.enforcing import require_views
from memvm.machine.layout import PIE_BASE, RAM_BASE, stack_size
from memvm.machine.settings import Name, default_settings
from memvm.machine.thread import LONGEST_NAME
from memvm.units import KIB, PAGE_SIZE, format_size

if TYPE_CHECKING:
    from memvm.files.specs import ViewSpec
    from memvm.files.tree import Tree

HEAP_GAP = 16 * PAGE_SIZE
_MOST_SCRIPTS = 4  # bprm_execve() in fs/exec.c gives up with ELOOP behind that
_SCRIPT_LINE = 256  # BINPRM_BUF_SIZE in include/uapi/linux/binfmts.h
_USUAL_PATH = "/usr/local/bin:/usr/bin:/bin"


class Program(NamedTuple):
    """A program that was read and checked, and where it shall lie."""

    path: str
    """Absolute; in the guest's tree, with all links resolved, as /proc/self/exe shows it."""
    image: elf.ElfImage
    file: Description
    """The open file; `close` closes it."""
    bias: int
    """What is added to the addresses in the file."""
    name: str = ""
    """What it was called by (AT_EXECFN)."""
    thread_name: bytes = b""
    """What its first thread is called: by the script's name, if it runs one."""
    argv: tuple[str, ...] = ()
    cwd: bytes = b"/"
    """Where in its tree the guest begins."""
    hidden: str = ""
    """Where it would have begun, if a directory of its own hides that from it though it has all files of the host's."""
    interpreter: Program | None = None
    """Its dynamic loader, whose place is not known yet."""

    @property
    def end(self) -> int:
        """The page border behind the image."""
        return self.bias + self.image.load_span[1]

    def close(self) -> None:
        """Let go of its file, and of its dynamic loader's."""
        self.file.close()
        if self.interpreter is not None:
            self.interpreter.close()


def read_program(config: GuestConfig) -> Program:
    """Read and check a program, before anything is started.

    Raises ImageError, UsageError, HostError, and SettingRefused for views that the settings do not allow.
    """
    require_views({**default_settings(), **config.settings}[Name.FILES].value, config.views)
    if any("\0" in text for text in (*config.argv, *config.env, *config.env.values())):
        raise UsageError("an argument or a variable for the guest has a NUL character in it")
    if not config.views:
        if config.cwd not in ("", "/"):
            raise UsageError(f"the guest's tree has no directory {config.cwd}", hint="give it one with --ro")
        path = str(Path(config.program).absolute())
        program = _program(path, open_file(path), config, None, b"/", in_tree=False)
    else:
        from memvm.files.given import given_tree
        from memvm.files.nodes import Budget

        tree = given_tree(config.views, Budget())
        try:
            program = _program_in_tree(config, tree)
        finally:
            tree.close()
    try:
        _check_fit(program, config.ram_size)
    except BaseException:
        program.close()
        raise
    return program


def _program_in_tree(config: GuestConfig, tree: Tree) -> Program:
    cwd = _start_directory(config, tree)
    for path in _candidates(config, cwd):
        file = _open_in(tree, path)
        if file is not None:
            return _program(path, file, config, tree, cwd, in_tree=True)._replace(hidden=_hidden(config, cwd))
    if "/" not in config.program:
        raise ImageError(f"there is no program {config.program!r} in the guest's PATH", hint="is it installed?")
    path = str(Path(config.program).absolute())
    return _program(path, open_file(path), config, tree, cwd, in_tree=False)


def _start_directory(config: GuestConfig, tree: Tree) -> bytes:
    wanted = config.cwd or str(Path.cwd())
    try:
        return tree.directory(b"/", os.fsencode(wanted))
    except OSError as error:
        if config.cwd:
            raise UsageError(f"the guest's tree has no directory {config.cwd}: {error.strerror}") from error
    return b"/"


def _hidden(config: GuestConfig, cwd: bytes) -> str:
    has_all = any((spec.host, spec.point) == ("/", "/") for spec in config.views)
    return str(Path.cwd()) if has_all and not config.cwd and os.fsdecode(cwd) != str(Path.cwd()) else ""


def _candidates(config: GuestConfig, cwd: bytes) -> list[str]:
    name = config.program
    if "/" in name:
        return [_joined(cwd, name)]
    folders = config.env.get("PATH", _USUAL_PATH).split(":")
    return [_joined(cwd, f"{folder or '.'}/{name}") for folder in folders]


def _joined(cwd: bytes, path: str) -> str:
    """A path in the tree from its root on, as it was written otherwise."""
    return path if path.startswith("/") else f"{os.fsdecode(cwd).rstrip('/')}/{path.removeprefix('./')}"


def _open_in(tree: Tree, path: str) -> Description | None:
    """A file in the tree; None if it is not there, or not to be executed."""
    try:
        tree.may(b"/", os.fsencode(path), os.X_OK, follow=True)
        opened = tree.open(b"/", os.fsencode(path), os.O_RDONLY, 0)
    except OSError:
        return None
    if not opened.is_file:
        opened.close()
        return None
    return opened


def _program(
    path: str, file: Description, config: GuestConfig, tree: Tree | None, cwd: bytes, *, in_tree: bool
) -> Program:
    """The program in a file; the interpreter, if that is a script that the guest can read."""
    argv: Sequence[str] = config.argv
    thread_name = os.fsencode(path).rpartition(b"/")[2][:LONGEST_NAME]
    name = config.program if "/" in config.program else path
    try:
        for _ in range(_MOST_SCRIPTS + 1):
            start = _read(file, path, 0, _SCRIPT_LINE)
            words = [os.fsdecode(word) for word in start[2:].partition(b"\n")[0].strip(b" \t").split(None, 1)]
            if not start.startswith(b"#!") or not words or tree is None or not in_tree:
                break
            argv = [*words, name, *argv[1:]]
            found = _open_in(tree, _joined(cwd, words[0]))
            if found is None:
                raise ImageError(
                    f"{path}: a script for {words[0]}, which is not in the guest's tree", hint=_giving([words[0]])
                )
            file.close()
            path, file, name = _joined(cwd, words[0]), found, words[0]
        else:
            raise ImageError(f"{path}: a script for a script for a script, too many of them")
        image = _image(file, path)
        interpreter = _interpreter(path, image.interpreter, tree) if image.interpreter is not None else None
    except BaseException:
        file.close()
        raise
    bias = _bias(image) if image.is_pie else 0
    resolved = os.fsdecode(file.path) if in_tree else os.path.realpath(path)
    return Program(resolved, image, file, bias, name, thread_name, tuple(argv), cwd, interpreter=interpreter)


def _image(file: Description, path: str) -> elf.ElfImage:
    return elf.parse_file(lambda offset, size: _read(file, path, offset, size), file.facts().size, path)


def _read(file: Description, path: str, offset: int, size: int) -> bytes:
    try:
        return file.contents(offset, size)
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from error


def _interpreter(path: str, wanted: str, tree: Tree | None) -> Program:
    file = _open_in(tree, _joined(b"/", wanted)) if tree is not None else None
    if file is None:
        raise ImageError(
            f"{path}: dynamically linked, and its dynamic loader {wanted} is not in the guest's tree",
            hint=_giving([wanted, "/lib/*", "/usr/lib/*"]),
        )
    try:
        image = _image(file, wanted)
        if image.interpreter is not None:
            raise ImageError(f"{wanted}: a dynamic loader that needs another one")
    except BaseException:
        file.close()
        raise
    return Program(wanted, image, file, 0)


def _giving(paths: Sequence[str]) -> str:
    """Which options would put files into the guest's tree."""
    folders = dict.fromkeys(Path(path).parent for path in paths)
    options = " ".join(f"--ro {folder}" for folder in folders if folder.is_dir())
    return f"give it files to read: {options}, or --ro / for all" if options else "give it files to read: --ro /"


def _bias(image: elf.ElfImage) -> int:
    """What puts a position-independent program at PIE_BASE or, as its alignment asks for, above."""
    return (PIE_BASE - image.load_span[0] + image.alignment - 1) // image.alignment * image.alignment


def open_file(path: str) -> Description:
    """A program file of the host's. Raises ImageError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would wait for its other end
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{path}: {reason}", hint="give the path of a program file") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ImageError(f"{path}: not a regular file", hint="give the path of a program file")
    return HostFile(fd, os.fsencode(path), os.O_RDONLY)


def read_again(views: tuple[ViewSpec, ...], path: str) -> bytes:
    """The file of a program that was read before, as it is now. Raises ImageError, UsageError, HostError."""
    file: Description | None = None
    if views:
        from memvm.files.given import given_tree
        from memvm.files.nodes import Budget

        tree = given_tree(views, Budget())
        try:
            file = _open_in(tree, path)
        finally:
            tree.close()
    if file is None:
        file = open_file(path)
    try:
        return _read(file, path, 0, file.facts().size)
    finally:
        file.close()


def _check_fit(program: Program, ram_size: int) -> None:
    lowest = program.bias + program.image.load_span[0]
    if lowest < RAM_BASE:
        raise ImageError(
            f"{program.path}: linked at {lowest:#x}, below guest RAM, which begins at {RAM_BASE:#x}",
            hint="link it at a higher address (-Wl,-Ttext-segment=0x400000) or with -static-pie",
        )
    if _needed(program, ram_size) > ram_size:
        enough = ram_size
        while (needed := _needed(program, enough)) > enough:  # more RAM has a larger stack, but not for ever
            enough = needed
        raise ImageError(
            f"{program.path}: does not fit into {format_size(ram_size)} of guest RAM",
            hint=f"give it at least --ram {-(-enough // KIB)}K",
        )


def _needed(program: Program, ram_size: int) -> int:
    end = program.end
    if program.interpreter is not None:
        low, high = program.interpreter.image.load_span
        end += high - low + program.interpreter.image.alignment
    return end + HEAP_GAP + 2 * stack_size(ram_size) - RAM_BASE
