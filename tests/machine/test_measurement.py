"""The launch digest: what is in it, that it is of the bytes in RAM, and that it can be predicted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sevsnpmeasure.gctx import GCTX

from memvm.errors import SettingRefused
from memvm.files.specs import Access, ViewSpec
from memvm.machine import loader
from memvm.machine import program as machine_program
from memvm.machine.config import GuestConfig, RunOptions
from memvm.machine.layout import RAM_BASE
from memvm.machine.machine import Machine
from memvm.machine.measurement import SPAN_PAGES, Measurement, Measuring, differences, layout_record, measure
from memvm.machine.predicting import predict
from memvm.machine.settings import Behaviour, Name, Setting
from memvm.machine.space import AddressSpace, Region, RegionKind
from memvm.memory.protection import Prot
from memvm.memory.ram import GuestRam
from memvm.units import MIB, PAGE_SIZE


@pytest.fixture
def ram() -> Iterator[GuestRam]:
    ram = GuestRam(RAM_BASE, 4 * MIB)
    yield ram
    ram.close()


@pytest.fixture
def space(ram: GuestRam) -> AddressSpace:
    return AddressSpace(ram, lambda address, size, protection: None)


def config_of(program: Path, **changes: object) -> GuestConfig:
    config = GuestConfig(str(program), ("guest", "3"), {"A": "b"}, 64 * MIB)
    return config._replace(**changes)  # type: ignore[arg-type]


def launched(config: GuestConfig) -> bytes:
    machine = Machine.launch(config, RunOptions("measured"))
    try:
        return machine.guest.launched.digest
    finally:
        machine.close()


@pytest.mark.parametrize("guest", ["counter", "counter-musl", "counter-pie"])
def test_the_digest_is_predicted(guest: str, guests: Mapping[str, Path]) -> None:
    config = config_of(guests[guest])
    assert launched(config) == launched(config) == predict(config).digest


def test_a_link_of_one_page_is_that_of_sev_snp(ram: GuestRam, space: AddressSpace) -> None:
    """Pages apart from each other, so that each is a link; `sev-snp-measure` computes the same chain."""
    theirs = GCTX()
    for number in (0, 2 * SPAN_PAGES, 5 * SPAN_PAGES):
        contents = bytes([number % 251 + 1]) * PAGE_SIZE
        address = RAM_BASE + number * PAGE_SIZE
        space.map(Region(address, address + PAGE_SIZE, Prot.READ, RegionKind.IMAGE))
        ram.write(address, contents)
        theirs.update_normal_pages(address, contents)
    assert measure(ram, space, {}).digest == theirs.ld()


CHANGES: Mapping[str, Mapping[str, object]] = {
    "arguments": {"argv": ("guest", "4")},
    "environment: A": {"env": {"A": "c"}},
    "layout: size": {"ram_size": 65 * MIB},
    "files: directory": {"cwd": "/tmp", "views": (ViewSpec(Access.READ, "/usr", "/usr"),)},
    "files: views: /usr": {"views": (ViewSpec(Access.LAYER, "/usr", "/usr"),)},
    "machine: hostname": {"hostname": "other"},
    "machine: cpus": {"cpus": 2},
    "settings: debug": {"settings": {Name.DEBUG: Setting("off", Behaviour.RECORD)}},
    "settings: wx": {"settings": {Name.WX: Setting("on", Behaviour.REFUSE)}},
}


@pytest.mark.parametrize("what", CHANGES)
def test_each_part_of_a_launch_makes_a_difference(what: str, guests: Mapping[str, Path]) -> None:
    plain = predict(config_of(guests["counter"]), pages=True)
    changed = predict(config_of(guests["counter"], **CHANGES[what]), pages=True)
    assert plain.digest != changed.digest
    assert what in {difference.what for difference in differences(plain, changed)}


def with_view(host: Path, point: str, access: Access = Access.READ) -> tuple[ViewSpec, ...]:
    return (ViewSpec(Access.READ, "/", "/"), ViewSpec(access, str(host), point))


def test_a_dynamic_program_is_measured_with_its_loader(tmp_path: Path) -> None:
    """The loader that is in RAM, whichever directory of the host's it came from."""
    loader = Path("/lib64/ld-linux-x86-64.so.2")
    (same := tmp_path / "same").mkdir()
    (other := tmp_path / "other").mkdir()
    contents = bytearray(loader.read_bytes())
    (same / loader.name).write_bytes(contents)
    contents[0x3000] ^= 1
    (other / loader.name).write_bytes(contents)
    for folder in (same, other):
        (folder / loader.name).chmod(0o755)
    program = Path("/usr/bin/env")
    first, second, third = (
        config_of(program, views=with_view(folder, str(loader.parent)), cwd="/")
        for folder in (loader.parent, same, other)
    )
    assert launched(first) == predict(first).digest == launched(second) == predict(second).digest
    [difference] = differences(predict(first, pages=True), predict(third, pages=True))
    assert difference.what.endswith("(file r-x)")
    assert launched(third) == predict(third).digest


LOADER = Path("/lib64/ld-linux-x86-64.so.2")


def _dynamic(folder: Path, name: str = "/usr/bin/env", *arguments: str) -> GuestConfig:
    """A dynamically linked guest whose loader is in `folder`, which is given to it in the place of /lib64."""
    views = with_view(folder, str(LOADER.parent))
    return config_of(Path(name), argv=(name, *arguments), views=views, cwd="/")


def _with_other_code(loader: Path) -> bytes:
    contents = bytearray(loader.read_bytes())
    contents[0x3000] ^= 1
    return bytes(contents)


def test_attack_12_program_replaced_between_measure_and_start_by_the_dynamic_loader(tmp_path: Path) -> None:
    """The loader is replaced after it was measured: by another file, through a link, or under the name of a program."""
    loader, other = tmp_path / LOADER.name, tmp_path / "other"
    loader.write_bytes(LOADER.read_bytes())
    other.write_bytes(_with_other_code(LOADER))
    for file in (loader, other):
        file.chmod(0o755)
    config = _dynamic(tmp_path)
    expected = predict(config).digest
    assert launched(config) == expected
    loader.unlink()
    loader.symlink_to("other")
    assert launched(config) != expected
    loader.unlink()
    other.rename(loader)
    assert launched(config) != expected
    # Asked to load a program that nobody measures, the loader is itself what was launched, and not that program.
    direct = _dynamic(LOADER.parent, str(LOADER), "/usr/bin/env")
    assert launched(direct) == predict(direct).digest
    assert launched(direct) not in (expected, predict(_dynamic(LOADER.parent)).digest)


@pytest.mark.parametrize("how", ["in place", "by another file"])
def test_attack_12_program_replaced_between_measure_and_start_while_its_loader_is_loaded(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place: the digest is of what came to lie in RAM. By another file: what was opened is what is loaded."""
    loader, other = tmp_path / LOADER.name, tmp_path / "other"
    loader.write_bytes(LOADER.read_bytes())
    other.write_bytes(_with_other_code(LOADER))
    for file in (loader, other):
        file.chmod(0o755)
    config = _dynamic(tmp_path)
    good = predict(config).digest
    real = machine_program.read_program

    def replaced_after_it_was_read(config: GuestConfig) -> machine_program.Program:
        program = real(config)
        if how == "in place":
            loader.write_bytes(other.read_bytes())
        else:
            other.rename(loader)
        return program

    monkeypatch.setattr(machine_program, "read_program", replaced_after_it_was_read)
    digest = launched(config)
    monkeypatch.undo()
    bad = predict(config).digest
    assert good != bad
    assert digest == (bad if how == "in place" else good)


def test_of_a_view_its_place_and_what_may_be_done_there_count(guests: Mapping[str, Path], tmp_path: Path) -> None:
    plain, again, elsewhere, changing = (
        predict(config_of(guests["counter"], views=with_view(*view), cwd="/")).digest
        for view in (
            (tmp_path, "/given"),
            (Path("/usr"), "/given"),
            (tmp_path, "/there"),
            (tmp_path, "/given", Access.PASS),
        )
    )
    assert plain == again
    assert len({plain, elsewhere, changing}) == 3


def test_what_a_launch_refuses_is_not_predicted(guests: Mapping[str, Path], tmp_path: Path) -> None:
    settings = {Name.FILES: Setting("read-only", Behaviour.REFUSE)}
    config = config_of(guests["counter"], views=with_view(tmp_path, "/given", Access.PASS), settings=settings)
    with pytest.raises(SettingRefused, match="files=read-only"):
        predict(config)


def test_attack_12_program_replaced_by_one_with_a_flipped_byte(guests: Mapping[str, Path], tmp_path: Path) -> None:
    contents = bytearray(guests["counter"].read_bytes())
    contents[0x5008] ^= 1
    flipped = tmp_path / "flipped"
    flipped.write_bytes(contents)
    name = str(guests["counter"])
    plain = predict(config_of(guests["counter"]), pages=True)
    changed = predict(config_of(flipped), called=name, pages=True)
    [difference] = differences(plain, changed)
    assert difference.what == "page at 0x405000 (image r-x)"


def test_attack_12_program_replaced_between_measure_and_start_by_link(
    guests: Mapping[str, Path], tmp_path: Path
) -> None:
    """Also through a link: what is measured is what is in RAM, and the file is read once."""
    link, first, second = tmp_path / "program", guests["counter"], guests["scan"]
    link.symlink_to(first)
    expected = predict(config_of(link)).digest
    link.unlink()
    link.symlink_to(second)
    assert launched(config_of(link)) != expected
    machine = Machine.launch(config_of(link), RunOptions("measured"))
    try:
        before = machine.guest.launched.digest
        link.unlink()
        link.symlink_to(first)
        assert machine.guest.launched.digest == before != expected
    finally:
        machine.close()


def test_attack_13_unmeasured_page_slipped_in_where_nothing_is_allocated(ram: GuestRam, space: AddressSpace) -> None:
    """A page that no region has is measured all the same."""
    before = measure(ram, space, {})
    ram.write(RAM_BASE + MIB, b"code")
    after = measure(ram, space, {}, pages=True)
    assert before.digest != after.digest
    assert [link.name for link in after.links] == ["unallocated"]


def test_attack_13_unmeasured_page_slipped_in_with_nothing_in_it(ram: GuestRam, space: AddressSpace) -> None:
    """Rights to pages that hold nothing yet are measured, and so are other rights."""
    start, end = RAM_BASE + MIB, RAM_BASE + MIB + PAGE_SIZE

    def measured() -> bytes:
        return measure(ram, space, {"layout": layout_record(ram, space, 0, 0, 0)}).digest

    digests = {measured()}
    for rights in (Prot.READ | Prot.WRITE, Prot.READ | Prot.EXEC):
        space.map(Region(start, end, rights, RegionKind.ANONYMOUS))
        digests.add(measured())
        space.unmap(start, end)
    assert len(digests) == 3
    assert measured() in digests


@pytest.mark.parametrize("where", ["allocated", "not allocated", "in the image's own gap"])
def test_attack_13_unmeasured_page_slipped_in_between_loading_and_start(
    where: str, guests: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whoever loads the program, and has it measured afterwards."""
    config, load = config_of(guests["counter"]), loader.load
    expected = predict(config).digest

    def load_more(program: machine_program.Program, config: GuestConfig, ram: GuestRam, space: AddressSpace) -> object:
        loaded = load(program, config, ram, space)
        address = RAM_BASE + 32 * MIB
        if where == "in the image's own gap":
            address = next(one.end for one, other in pairwise(space) if one.end < other.start)
        elif where == "allocated":
            rights = Prot.READ | Prot.EXEC
            space.map(Region(address, address + PAGE_SIZE, rights, RegionKind.IMAGE))
        ram.write(address, b"\x0f\x05")
        return loaded

    monkeypatch.setattr(loader, "load", load_more)
    assert launched(config) != expected
    monkeypatch.undo()
    assert launched(config) == expected


def test_attack_23_page_moved_to_another_address(ram: GuestRam, space: AddressSpace) -> None:
    """Within what is hashed at once, and to where all that is hashed with it looks the same."""
    digests = set()
    for page in (0, 1, SPAN_PAGES, 2 * SPAN_PAGES, 2 * SPAN_PAGES + 1):
        ram.write(RAM_BASE + page * PAGE_SIZE, b"x")
        digests.add(measure(ram, space, {}).digest)
        ram.discard(page, 1)
    assert len(digests) == 5


@given(
    st.dictionaries(st.integers(0, 99), st.integers(0, 3), max_size=20),
    st.sets(st.integers(0, 99)),
    st.sets(st.integers(1, 99), max_size=3),
)
def test_only_contents_and_regions_count(pages: dict[int, int], touched: set[int], borders: set[int]) -> None:
    """Whether a page of zeros holds memory does not."""
    cuts = sorted({0, 100, *borders})

    def measured(zeros: set[int]) -> Measurement:
        ram = GuestRam(RAM_BASE, MIB)
        try:
            space = AddressSpace(ram, lambda address, size, protection: None)
            for number, (first, last) in enumerate(pairwise(cuts)):
                rights = Prot.READ if number % 2 else Prot.WRITE
                start, end = RAM_BASE + first * PAGE_SIZE, RAM_BASE + last * PAGE_SIZE
                space.map(Region(start, end, rights, RegionKind.ANONYMOUS))
            for page in zeros - set(pages):
                ram.write(RAM_BASE + page * PAGE_SIZE, bytes(PAGE_SIZE))
            for page, value in pages.items():
                ram.write(RAM_BASE + page * PAGE_SIZE, bytes([value]) * PAGE_SIZE)
            return measure(ram, space, {})
        finally:
            ram.close()

    assert measured(touched) == measured(set())


_CHANGES = st.sampled_from(["write", "fill", "discard", "move", "protect", "unmap", "replace"])


@given(st.lists(st.tuples(_CHANGES, st.integers(0, 30), st.integers(1, 16)), max_size=4))
def test_attack_13_unmeasured_page_slipped_in_before_all_is_measured(changes: list[tuple[str, int, int]]) -> None:
    """Also where nothing was hashed yet: whoever may change memory completes the measurement first."""
    ram = GuestRam(RAM_BASE, MIB)
    try:
        space = AddressSpace(ram, lambda address, size, protection: None)
        for number, rights in enumerate((Prot.READ, Prot.READ | Prot.WRITE, Prot.READ | Prot.EXEC)):
            start = RAM_BASE + 16 * number * PAGE_SIZE
            space.map(Region(start, start + 16 * PAGE_SIZE, rights, RegionKind.IMAGE))
            ram.write(start, bytes([number + 1]) * (15 * PAGE_SIZE))
        expected = measure(ram, space, {})
        measuring = Measuring(ram, space, {})
        for change, page, count in changes:
            start, end = RAM_BASE + page * PAGE_SIZE, RAM_BASE + (page + count) * PAGE_SIZE
            if change == "write":
                ram.write(start + 1, b"changed")
            elif change == "fill":
                with Path(__file__).open("rb") as file:
                    ram.read_in(start, 64, file.fileno(), 0)
            elif change == "discard":
                ram.discard(page, count)
            elif change == "move":
                ram.move(start, RAM_BASE + 100 * PAGE_SIZE, end - start)
                ram.discard(100, count)
            elif change == "protect":
                space.protect(start, end, Prot.READ | Prot.WRITE)
                ram.copy_in(page, [b"guest"])  # what the guest does, it does past all checks
            elif change == "unmap":
                space.unmap(start, end)
            else:
                space.replace(Region(start, end, Prot.READ | Prot.WRITE, RegionKind.ANONYMOUS))
        assert measuring.finish() == expected
    finally:
        ram.close()


def test_a_program_is_hashed_when_somebody_asks(ram: GuestRam, space: AddressSpace) -> None:
    """Nothing is left to be told of changes once it was; what the guest may write is hashed at once."""
    space.map(Region(RAM_BASE, RAM_BASE + PAGE_SIZE, Prot.READ, RegionKind.IMAGE))
    ram.write(RAM_BASE, b"code")
    expected = measure(ram, space, {}).digest
    measuring = Measuring(ram, space, {})
    ram.write(RAM_BASE + MIB, b"elsewhere")
    assert ram.unmeasured is measuring
    assert measuring.finish().digest == expected
    assert ram.unmeasured is None
