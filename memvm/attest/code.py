"""The digest of the code that carries behaviours out: all of memvm's source, as this process runs it.

Reference values say which digest implements the behaviours that evidence claims. A process whose functions were
replaced after they were read from their files has no digest.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from hashlib import sha384
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from memvm import errors
from memvm.errors import AttestationError
from memvm.machine import enforcing, launched, measurement, register, settings

ENFORCING = (enforcing, launched, measurement, register, settings)
"""The modules whose functions are compared with their files."""


@cache
def source_digest() -> bytes:
    """SHA-384 over the digests of all files of the package, with their names."""
    package = Path(errors.__file__).parent
    chain = sha384()
    for path in sorted(package.rglob("*.py")):
        chain.update(path.relative_to(package).as_posix().encode() + b"\0" + sha384(path.read_bytes()).digest())
    return chain.digest()


def code_digest() -> bytes:
    """The digest of the code that runs here. Raises AttestationError if it is not that of the files."""
    for module in ENFORCING:
        check_as_written(module)
    return source_digest()


def check_as_written(module: ModuleType) -> None:
    """Raises AttestationError if a function or method of the module is not the one in its file."""
    assert module.__file__ is not None
    for name, code in _written(module.__file__):
        *owner, member = name.split(".")
        namespace = vars(module) if not owner else vars(vars(module).get(owner[0], object))
        if _code_of(namespace.get(member)) != code:
            raise AttestationError(f"{module.__name__}.{name} is not what is in {module.__file__}")


@cache
def _written(path: str) -> tuple[tuple[str, CodeType], ...]:
    """What is in a file: compiled once, since that holds up the guest for a millisecond."""
    return tuple(_definitions(compile(Path(path).read_bytes(), path, "exec", dont_inherit=True)))


def _definitions(code: CodeType, prefix: str = "") -> Iterator[tuple[str, CodeType]]:
    """The functions of a module, and the methods of its classes."""
    for constant in code.co_consts:
        if not isinstance(constant, CodeType) or constant.co_name.startswith("<"):
            continue
        if constant.co_flags & CO_OPTIMIZED:
            yield prefix + constant.co_name, constant
        elif not prefix:
            yield from _definitions(constant, f"{constant.co_name}.")


def _code_of(member: Any) -> CodeType | None:
    if isinstance(member, (classmethod, staticmethod)):
        member = member.__func__
    if isinstance(member, property):
        member = member.fget
    return member.__code__ if isinstance(member, FunctionType) else None
