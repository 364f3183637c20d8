"""Many sectors with one call: what the machine code computes is AES-XTS, whatever is asked of it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from memvm.disk import sectors, vector_xts
from memvm.disk.sectors import LibraryXts, SectorCipher
from memvm.disk.vector_xts import UNIT, VectorCode, VectorXts, _round_keys, vector_code
from memvm.disk.vector_xts_code import WIDTHS, Width
from memvm.linux.machine_code import assembled
from memvm.linux.processor import processor_flags
from memvm.linux.secret_memory import Buffer

CIPHERS = (VectorXts, LibraryXts)
EACH_WIDTH = [pytest.param(width, id=f"{width.bits} bits") for width in WIDTHS]


@cache
def code_of(width: Width) -> VectorCode:
    """The machine code of a width, where the processor has what it takes."""
    if not processor_flags().issuperset(width.needed):
        pytest.skip(f"the processor has no AES instructions for {width.bits} bits")
    return VectorCode(width)


@pytest.fixture(params=EACH_WIDTH)
def code(request: pytest.FixtureRequest) -> VectorCode:
    """The machine code, of each width."""
    return code_of(request.param)


@pytest.mark.parametrize("width", EACH_WIDTH)
def test_the_bytes_are_those_of_the_words(width: Width, tmp_path: Path) -> None:
    """The listing for people, assembled, is the one that is executed."""
    if shutil.which("as") is None or shutil.which("objcopy") is None:
        pytest.skip("no assembler here: apt-get install binutils")
    words = (re.sub(r"^ +[0-9a-f]+ ", "", line).partition(";")[0] for line in width.listing.splitlines())
    source = [".intel_syntax noprefix", *words]
    (tmp_path / "code.s").write_text("\n".join(source) + "\n")
    subprocess.run(["as", "-o", "code.o", "code.s"], cwd=tmp_path, check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", "code.o", "code"], cwd=tmp_path, check=True)
    assert (tmp_path / "code").read_bytes() == assembled(width.listing)[0]


def test_key_expansion_of_the_standard(code: VectorCode) -> None:
    """FIPS 197, appendices A.1 and A.3: the last words."""
    small = _round_keys(code, bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c"))
    assert small[-4:].hex() == "b6630ca6"
    key = "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4"
    assert _round_keys(code, bytes.fromhex(key))[-4:].hex() == "706c631e"


@pytest.mark.parametrize("kind", CIPHERS)
def test_vector_10_of_the_standard(code: VectorCode, kind: type[VectorXts | LibraryXts]) -> None:
    """IEEE 1619-2007, annex B, vector 10: AES-256, sector 0xff of 512 bytes."""
    key = bytes.fromhex(
        "2718281828459045235360287471352662497757247093699959574966967627"
        "3141592653589793238462643383279502884197169399375105820974944592"
    )
    xts = VectorXts(code, key, 512) if kind is VectorXts else LibraryXts(key, 512)
    clear = bytes(range(256)) * 2
    secret = xts.encrypt(0xFF, clear)
    assert secret[:16].hex() == "1c3b3a102f770386e4836c99e370cf9b"
    assert secret[-16:].hex() == "c4f36ffda9fcea70b9c6e693e148c151"
    assert xts.decrypt(0xFF, secret) == clear


@pytest.mark.parametrize("width", EACH_WIDTH)
@given(
    key=st.sampled_from((32, 64)).flatmap(lambda size: st.binary(min_size=size, max_size=size)),
    units=st.integers(1, 17),
    count=st.integers(0, 9),
    tweak=st.integers(0, (1 << 64) - 1) | st.integers((1 << 64) - 20, (1 << 64) - 1) | st.integers(0, 300),
    seed=st.binary(min_size=1, max_size=64),
    into=st.sampled_from((bytes, bytearray, memoryview, lambda data: memoryview(bytearray(data)))),
)
def test_it_is_what_the_library_computes(
    width: Width,
    key: bytes,
    units: int,
    count: int,
    tweak: int,
    seed: bytes,
    into: Callable[[bytes], Buffer],
) -> None:
    code = code_of(width)
    assume(key[: len(key) // 2] != key[len(key) // 2 :])
    size = units * UNIT
    clear = (seed * (size * count // len(seed) + 1))[: size * count]
    ours, library = VectorXts(code, key, size), LibraryXts(key, size)
    given_data = into(clear)
    secret = ours.encrypt(tweak, given_data)
    assert secret == library.encrypt(tweak, clear)
    assert ours.decrypt(tweak, into(secret)) == clear
    assert bytes(given_data) == clear


def test_threads_do_not_disturb_each_other(code: VectorCode) -> None:
    key = bytes(range(64))
    ours, library = VectorXts(code, key, 4096), LibraryXts(key, 4096)
    data = [bytes([number]) * (1 << 16) for number in range(16)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(ours.encrypt, range(16), data))
    assert found == [library.encrypt(number, data[number]) for number in range(16)]


def test_nobody_else_has_what_is_filled(code: VectorCode) -> None:
    """Short results are no objects that Python shares, such as that of no bytes or of one."""
    ours = VectorXts(code, bytes(range(64)), UNIT)
    assert ours.encrypt(0, b"") == b""
    assert ours.encrypt(0, bytes(UNIT)) is not ours.encrypt(0, bytes(UNIT))


def test_a_disk_is_the_same_without(monkeypatch: pytest.MonkeyPatch) -> None:
    key, data = bytes(range(64)), bytes(range(256)) * 32
    usual = SectorCipher(key, 512, 5)
    monkeypatch.setattr(sectors, "vector_code", lambda: (None, "not here"))
    without = SectorCipher(key, 512, 5)
    assert isinstance(without._xts, LibraryXts)
    assert without.encrypt(3, data) == usual.encrypt(3, data)
    assert usual.decrypt(3, without.encrypt(3, data)) == data


def test_the_widest_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that the processor has, each of which is the widest if it is all that it has."""
    for width in [width for width in WIDTHS if processor_flags().issuperset(width.needed)]:
        monkeypatch.setattr(vector_xts, "processor_flags", partial(frozenset, width.needed))
        code, detail = vector_code.__wrapped__()
        assert code is not None
        assert detail == f"many sectors at once, by the processor's AES instructions for {width.bits} bits"


def test_where_it_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_xts, "processor_flags", lambda: frozenset({"aes", "avx512f", "vaes"}))
    code, detail = vector_code.__wrapped__()
    assert code is None
    assert detail == "the processor lacks avx, pclmulqdq"
    monkeypatch.setattr(vector_xts, "processor_flags", lambda: frozenset(WIDTHS[0].needed))

    def forbidden(_listing: str) -> None:
        raise PermissionError(13, "no")

    monkeypatch.setattr(vector_xts, "CodePage", forbidden)
    code, detail = vector_code.__wrapped__()
    assert code is None
    assert detail == "machine code cannot be used: Permission denied"


def test_a_processor_that_computes_otherwise_is_not_relied_on(monkeypatch: pytest.MonkeyPatch) -> None:
    code, detail = vector_code()
    if code is None:
        pytest.skip(detail)
    monkeypatch.setattr(VectorXts, "encrypt", lambda _self, _tweak, data: bytes(len(data)))
    assert vector_code.__wrapped__() == (None, "the processor's AES instructions do not compute AES")


def test_part_of_a_sector_is_refused() -> None:
    with pytest.raises(ValueError, match="not whole sectors"):
        SectorCipher(bytes(range(64)), 512).encrypt(0, bytes(100))


@pytest.mark.parametrize("kind", ["vector", "library"])
def test_nothing_is_encrypted_with_a_key_that_was_wiped(kind: str) -> None:
    code, why = vector_code()
    if kind == "vector" and code is None:
        pytest.skip(why)
    key = bytes(range(64))
    xts = VectorXts(code, key, UNIT) if kind == "vector" and code is not None else LibraryXts(key, UNIT)
    assert xts.decrypt(1, xts.encrypt(1, bytes(UNIT))) == bytes(UNIT)
    xts.close()
    xts.close()
    for act in (xts.encrypt, xts.decrypt):
        with pytest.raises(ValueError, match="released"):
            act(1, bytes(UNIT))
