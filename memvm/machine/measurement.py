"""The launch digest: what was put into guest RAM, and how the guest is configured, as one SHA-384 value.

It is a chain in the manner of SEV-SNP's (SEV-SNP firmware ABI, 8.17.2): each link is hashed with the digest so far,

    digest = SHA-384(link), where a link is 112 bytes, little endian
         0  48s  the digest so far; zeros at first
        48  48s  SHA-384 of the contents: of pages, or of a record
        96  u16  112
        98  u8   kind (LinkKind)
        99  5s   zero
       104  u64  address of the first page, and in its lowest 12 bits how many pages follow it; 0 for a record

so that a link of one page is SEV-SNP's own, to the bit. Links have up to SPAN_PAGES pages: with one each, half of the
time would go into calls. Records (arguments, environment, layout, files, machine, settings) come first, as canonical
JSON, then all memory that is not zero, by address, cut where regions begin and end. What is zero needs no link: the
layout says how much RAM there is, and what is not in a link is zero.

Contents are read from guest RAM itself once the loader has filled it. What a start draws at random (the 16 bytes of
AT_RANDOM) is put there afterwards, and is not measured.

Most of a program is memory that the guest may not write, and hashing that takes longer than loading it. So it is hashed
when somebody first wants the digest, or is about to change some of it, whichever comes first (`Measuring`).
"""

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from hashlib import sha384
from typing import Any, NamedTuple, Protocol

from memvm.machine.register import DIGEST_SIZE
from memvm.memory.protection import Prot
from memvm.memory.ram import GuestRam
from memvm.units import PAGE_SIZE

SPAN_PAGES = 64
_LINK_SIZE = 112
_PAGE_DIGEST_SIZE = 8
"""Bytes that are kept of a page's digest, where somebody wants to know which page differs."""
_GLANCE = 64
"""Bytes that are looked at first, to see whether pages are zero."""
_ZERO = bytes(SPAN_PAGES * PAGE_SIZE)


class LinkKind(IntEnum):
    """What a link is of. The first is SEV-SNP's PAGE_TYPE_NORMAL; SEV-SNP has no others from 0x80 on."""

    PAGES = 1
    RECORD = 0x80


class Link(NamedTuple):
    """One link of the chain."""

    kind: LinkKind
    name: str
    """What it is of, for people: not hashed."""
    address: int
    page_count: int
    """Pages; 0 for a record."""
    contents: bytes
    """Their SHA-384."""
    pages: tuple[bytes, ...] = ()
    """The beginning of each page's SHA-384, if that was asked for."""

    def packed(self, before: bytes) -> bytes:
        """The 112 bytes that are hashed."""
        place = self.address | max(0, self.page_count - 1)
        return b"".join(
            (before, self.contents, bytes((_LINK_SIZE, 0, self.kind, 0, 0, 0, 0, 0)), place.to_bytes(8, "little"))
        )


class Measurement(NamedTuple):
    """A launch digest, and what it was made of."""

    digest: bytes
    links: tuple[Link, ...]
    records: Mapping[str, Any]
    """What the records say, by name."""


class Space(Protocol):
    """The regions of guest RAM (machine/space.py)."""

    def __iter__(self) -> Iterator[Any]: ...


def measure(ram: GuestRam, space: Space, records: Mapping[str, Any], *, pages: bool = False) -> Measurement:
    """The launch digest of a guest that has been loaded and has not run. `records` are of what JSON knows.

    With `pages`, the links tell pages apart, at twice the price.
    """
    return Measuring(ram, space, records, pages=pages).finish()


class Measuring:
    """A measurement that has begun: what the guest may write is hashed, the rest will be, as it is at this moment."""

    def __init__(self, ram: GuestRam, space: Space, records: Mapping[str, Any], *, pages: bool = False) -> None:
        """As `measure`. From here on `ram` tells of changes to what is not hashed yet, which finish it first."""
        self._ram, self._records, self._pages = ram, records, pages
        self._lock = threading.Lock()
        self._measurement: Measurement | None = None
        self._links = [
            Link(LinkKind.RECORD, name, 0, 0, sha384(canonical(record)).digest()) for name, record in records.items()
        ]
        for name, rights, address, contents in _spans(ram, space):
            link = Link(LinkKind.PAGES, name, address, len(contents) // PAGE_SIZE, b"")
            self._links.append(self._hashed(link, contents) if rights is None or rights & Prot.WRITE else link)
            contents.release()
        ram.unmeasured = self

    def _hashed(self, link: Link, contents: memoryview) -> Link:
        apart = _page_digests(contents) if self._pages else ()
        return link._replace(contents=sha384(contents).digest(), pages=apart)

    def about_to_change(self, first: int, count: int) -> None:
        """These pages of RAM will change, or the guest may change them from now on: hash what is not hashed yet."""
        start = self._ram.base + first * PAGE_SIZE
        end = start + count * PAGE_SIZE
        if any(
            not link.contents and link.address < end and start < link.address + link.page_count * PAGE_SIZE
            for link in self._links
        ):
            self.finish()

    def finish(self) -> Measurement:
        """All of it; from any thread, as often as one likes."""
        with self._lock:
            if self._measurement is None:
                self._measurement = self._finished()
                self._ram.unmeasured = None
            return self._measurement

    def _contents(self, link: Link) -> memoryview:
        """The pages of a link. Copied if accesses are traced: whoever traces the guest's shall not hear of this one."""
        size = link.page_count * PAGE_SIZE
        if self._ram.traces is None:
            return self._ram.readable(link.address, size)
        contents = memoryview(bytearray(size))
        self._ram.copy_out((link.address - self._ram.base) // PAGE_SIZE, contents)
        return contents

    def _finished(self) -> Measurement:
        digest = bytes(DIGEST_SIZE)
        for index, link in enumerate(self._links):
            if not link.contents:
                with self._contents(link) as contents:
                    self._links[index] = self._hashed(link, contents)
            digest = sha384(self._links[index].packed(digest)).digest()
        return Measurement(digest, tuple(self._links), self._records)


def canonical(record: Any) -> bytes:
    """A record as the bytes that are hashed."""
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()


def layout_record(ram: GuestRam, space: Space, heap_start: int, entry: int, stack_pointer: int) -> dict[str, Any]:
    """Where everything is, with which rights, and where the guest begins."""
    return {
        "base": ram.base,
        "size": ram.size,
        "regions": [[region.start, region.end, int(region.protection), str(region.kind)] for region in space],
        "heap": heap_start,
        "entry": entry,
        "stack pointer": stack_pointer,
    }


def _page_digests(contents: memoryview) -> tuple[bytes, ...]:
    starts = range(0, len(contents), PAGE_SIZE)
    return tuple(sha384(contents[at : at + PAGE_SIZE]).digest()[:_PAGE_DIGEST_SIZE] for at in starts)


def _spans(ram: GuestRam, space: Space) -> Iterator[tuple[str, Prot | None, int, memoryview]]:
    """All memory that is not zero: what it is for, the guest's rights if it is allocated, address and contents.

    Where spans begin and end follows from addresses and contents alone, not from which pages happen to hold memory:
    with huge pages those are others.
    """
    for start, end, touched in _blocks(ram):
        for name, rights, first, last in _cut(space, start, end):
            size = last - first
            if touched:
                contents = ram.readable(first, size)
            else:  # reading a hole through the mapping would fill it
                contents = memoryview(bytearray(size))
                ram.copy_out((first - ram.base) // PAGE_SIZE, contents)
            if _is_zero(contents):
                contents.release()
                continue
            yield name, rights, first, contents


def _is_zero(contents: memoryview) -> bool:
    """Looks at few bytes of most pages: a comparison with zeros copies, and would cost a tenth of what hashing does."""
    return contents[:_GLANCE] == _ZERO[:_GLANCE] and bytes(contents) == _ZERO[: len(contents)]


def _blocks(ram: GuestRam) -> Iterator[tuple[int, int, bool]]:
    """Blocks of addresses in which there is memory, and whether every page of one holds some."""
    done = 0
    for run in ram.touched():
        block = max(done, run.first // SPAN_PAGES)
        while block * SPAN_PAGES < run.end:
            first, last = block * SPAN_PAGES, min((block + 1) * SPAN_PAGES, ram.page_count)
            whole = run.first <= first and last <= run.end
            yield ram.base + first * PAGE_SIZE, ram.base + last * PAGE_SIZE, whole
            block = done = block + 1


def _cut(space: Space, start: int, end: int) -> Iterator[tuple[str, Prot | None, int, int]]:
    """A range of addresses, cut where regions begin and end."""
    for region in space:
        if region.end <= start:
            continue
        if region.start >= end:
            break
        if start < region.start:
            yield "unallocated", None, start, region.start
        start, last = max(start, region.start), min(end, region.end)
        yield f"{region.kind} {_rights(region.protection)}", region.protection, start, last
        start = last
    if start < end:
        yield "unallocated", None, start, end


def _rights(protection: Prot) -> str:
    return "".join(
        letter if protection & right else "-"
        for letter, right in (("r", Prot.READ), ("w", Prot.WRITE), ("x", Prot.EXEC))
    )


class Difference(NamedTuple):
    """One thing in which two launches differ."""

    what: str
    first: str
    second: str


def differences(first: Measurement, second: Measurement) -> Sequence[Difference]:
    """What makes two launch digests differ: records by field, then pages. Empty if the digests are equal."""
    found: list[Difference] = []
    for name in dict.fromkeys((*first.records, *second.records)):
        found += _record_differences(name, first.records.get(name), second.records.get(name))
    ours, theirs = _by_page(first), _by_page(second)
    for page in sorted(ours.keys() | theirs.keys()):
        (name, digest), (other_name, other) = ours.get(page, ("", b"")), theirs.get(page, ("", b""))
        if digest != other:
            where = f"page at {page:#x} ({name or other_name})"
            found.append(Difference(where, digest.hex() or "zero", other.hex() or "zero"))
    return found


def _record_differences(name: str, first: Any, second: Any) -> list[Difference]:
    if first == second:
        return []
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return [
            difference
            for key in dict.fromkeys((*first, *second))
            for difference in _record_differences(f"{name}: {key}", first.get(key), second.get(key))
        ]
    return [Difference(name, json.dumps(first), json.dumps(second))]


def _by_page(measurement: Measurement) -> dict[int, tuple[str, bytes]]:
    zero = sha384(_ZERO[:PAGE_SIZE]).digest()[:_PAGE_DIGEST_SIZE]
    return {
        link.address + number * PAGE_SIZE: (link.name, digest)
        for link in measurement.links
        for number, digest in enumerate(link.pages)
        if digest != zero
    }
