"""Deterministic CBOR: what is encoded is read back, and nothing else is read at all."""

from __future__ import annotations

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memvm.attest import cbor
from memvm.errors import AttestationError

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 64), (1 << 64) - 1) | st.binary() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=30), inner, max_size=3),
    max_leaves=10,
)


@given(values)
def test_what_is_encoded_is_read_back(value: object) -> None:
    try:
        assert cbor.decode(cbor.encode(value)) == value
    except AttestationError as error:
        assert "deeply" in error.message


@given(st.binary(max_size=40))
def test_any_bytes_have_one_meaning_or_none(data: bytes) -> None:
    try:
        value = cbor.decode(data)
    except AttestationError:
        return
    assert cbor2.loads(data) == value


def refused(data: bytes) -> None:
    with pytest.raises(AttestationError):
        cbor.decode(data)


@pytest.mark.parametrize("data", [b"\xa2\x61a\x01\x61a\x02", b"\xa2\x01\x01\x01\x01", b"\x81\xa2\x60\x01\x60\x01"])
def test_attack_33_duplicate_keys_in_cbor(data: bytes) -> None:
    refused(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xa2\x61b\x01\x61a\x02",  # keys out of order
        b"\x18\x01",  # a number that is too long
        b"\x9f\xff",  # indefinite length
        b"\xc0\x61a",  # a tag
        b"\xf9\x00\x00",  # a float
        b"\x01\x01",  # something behind it
        b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x5b\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x81" * 50 + b"\x01",
        b"\x61\xff",
    ],
)
def test_whatever_two_readers_could_read_in_two_ways_is_refused(data: bytes) -> None:
    refused(data)
