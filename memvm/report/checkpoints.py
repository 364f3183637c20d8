"""What was saved, in a line; and what is in a checkpoint, in sections."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from memvm.report.table import pairs, printable, table
from memvm.units import format_duration, format_size

if TYPE_CHECKING:
    from memvm.checkpoint.inspect import ActiveFacts, BlockedCall, Inspection, ParentFacts, StorageFacts, StreamFacts
    from memvm.checkpoint.merge import MergeReport
    from memvm.checkpoint.save import SaveReport
    from memvm.checkpoint.suspend import SuspendReport

_REGISTER_COLUMNS = 3


def save_text(name: str, report: SaveReport) -> str:
    """How much was saved, how small it became, how long that took, and how long the guest stood still."""
    pages = report.pages_data + report.pages_zero
    zero = f", {report.pages_zero / pages:.0%} of its pages zero" if pages else ""
    top = ""
    if report.parent:
        how = {"noted": "as the kernel noted", "compared": "found by comparing"}[report.changes_known]
        top = f" on top of {printable(report.parent)} ({pages:,} pages changed, {how})"
    return (
        f"{name}: {format_size(report.bytes_raw)} saved as {format_size(report.bytes_file)}{zero}{top}, "
        f"in {format_duration(report.seconds)}; frozen for {format_duration(report.frozen_seconds)}"
    )


def suspend_text(name: str, report: SuspendReport) -> str:
    """How much was saved, how small it became, how often the guest got in the way, and how long it all took."""
    again = f", {format_size(report.bytes_again)} of it more than once" if report.bytes_again else ""
    return (
        f"{name}: {format_size(report.bytes_raw)} saved as {format_size(report.bytes_file)}{again}, in "
        f"{format_duration(report.seconds)}, for the last {format_duration(report.frozen_seconds)} of which it stood "
        f"still; it used {report.pages_active:,} pages meanwhile"
    )


def merge_text(report: MergeReport) -> str:
    """How many files became one, and what was to be done for it."""
    files = len(report.files)
    return (
        f"{printable(report.path)}: {files} file{'s' if files > 1 else ''} of {format_size(report.bytes_before)} "
        f"merged into {format_size(report.bytes_file)}, {report.chunks_copied:,} chunks copied, "
        f"{report.chunks_rebuilt:,} rebuilt, in {format_duration(report.seconds)}"
    )


def inspection_text(inspection: Inspection) -> str:
    """All that an inspection found: the file, the guest, its pages, and what it was doing."""
    clocks, vcpu = inspection.clocks, inspection.vcpu
    whole = "every byte, of the parents too" if inspection.parent else "every byte"
    checked = whole if inspection.verified else "all but the contents of pages (--verify checks them)"
    guest = [
        ("program", printable(inspection.program)),
        ("command", printable(shlex.join(inspection.arguments))),
        ("thread name", printable(inspection.thread_name) or "-"),
        ("earlier restores", str(inspection.generation)),
        ("clocks", f"monotonic {clocks.monotonic_seconds:.6f} s, CPU {clocks.cpu_seconds:.6f} s"),
        *([("disks", f"{inspection.disks}, which a restore is given again")] if inspection.disks else []),
        ("waits in", _blocked_text(inspection.blocked)),
        ("signals", ", ".join(f"{s.signal} {s.action}" for s in inspection.signals) or "all default"),
        ("blocked signals", ", ".join(inspection.signal_mask) or "none"),
        *((stream.name, _stream_text(stream)) for stream in inspection.streams),
    ]
    file = [
        ("size", format_size(inspection.file_size)),
        ("saved", inspection.saved_at),
        ("format", f"version {inspection.version}, id {inspection.checkpoint_id}"),
        ("parent", _parent_text(inspection.parent)),
        ("checked", checked),
    ]
    processor = [
        ("XSAVE area", f"{vcpu.xsave_size} bytes; in use: {', '.join(vcpu.xsave_features) or 'nothing'}"),
    ]
    return "\n\n".join(
        [
            _section(printable(inspection.file), pairs(file)),
            _section("Guest", pairs(guest)),
            _section("Pages", _pages_text(inspection)),
            _section("Storage", _storage_text(inspection)),
            _section("Regions", _regions_text(inspection)),
            _section("vCPU", pairs(processor) + "\n" + _registers_text(vcpu.registers)),
        ]
    )


def _pages_text(inspection: Inspection) -> str:
    ram = inspection.ram
    kinds = (
        ("data", ram.pages_data),
        ("inherited", ram.pages_inherited),
        ("zero", ram.pages_zero),
        ("untouched", ram.pages_untouched),
    )
    page_size = ram.ram_size // sum(count for _, count in kinds)
    rows = [(kind, f"{count:,}", format_size(count * page_size)) for kind, count in kinds]
    total = f"{format_size(ram.ram_size)} of guest RAM from {ram.base_address:#x}"
    text = f"{total}\n" + table(("KIND", "PAGES", "SIZE"), rows, right=("PAGES", "SIZE"))
    return f"{text}\n{_active_text(inspection.active)}"


def _parent_text(parent: ParentFacts | None) -> str:
    return "none" if parent is None else f"{printable(parent.file)}, id {parent.checkpoint_id}"


def _active_text(active: ActiveFacts) -> str:
    return f"{active.pages:,} pages seen accessed during the save, {active.pages_written:,} of them written"


def _storage_text(inspection: Inspection) -> str:
    storage = inspection.storage
    return pairs(
        [
            ("data", format_size(storage.bytes_raw)),
            ("superseded", format_size(storage.bytes_superseded)),
            ("compressed", f"{format_size(storage.bytes_compressed)}, ratio {storage.ratio:.2f}"),
            ("blocks", f"{storage.blocks:,} of up to {format_size(storage.block_size)}"),
            ("chunks", _chunks_text(storage)),
            ("index", format_size(inspection.index_size)),
            ("state", format_size(inspection.state_size)),
        ]
    )


def _chunks_text(storage: StorageFacts) -> str:
    shapes = ", ".join(f"{shape.chunks:,} of {shape.pages}" for shape in reversed(storage.shapes))
    return f"{storage.chunks:,}" + (f", by their pages: {shapes}" if shapes else "")


def _regions_text(inspection: Inspection) -> str:
    rows = [
        (
            f"{region.start:#x}",
            f"{region.end:#x}",
            format_size(region.size),
            region.protection,
            region.kind,
            f"{region.pages_data:,}",
            f"{region.pages_inherited:,}",
            f"{region.pages_zero:,}",
        )
        for region in inspection.regions
    ]
    pages = ("DATA PAGES", "INHERITED", "ZERO PAGES")
    right = ("START", "END", "SIZE", *pages)
    return table(("START", "END", "SIZE", "RIGHTS", "KIND", *pages), rows, right=right)


def _registers_text(registers: dict[str, int]) -> str:
    """In columns that are read downwards, as the order of registers is one of use."""
    cells = [f"{name:>8} {value:016x}" for name, value in registers.items()]
    height = -(-len(cells) // _REGISTER_COLUMNS)
    return "\n".join("  ".join(cells[row::height]) for row in range(height))


def _blocked_text(call: BlockedCall | None) -> str:
    if call is None:
        return "no call"
    shown = f"{call.name}({', '.join(map(hex, call.arguments))})"
    if call.answered:
        return f"{shown}, which is answered"
    left = "" if call.remaining_seconds is None else f", {format_duration(call.remaining_seconds)} left"
    return shown + left + (f", {format_size(call.bytes_done)} done" if call.bytes_done else "")


def _stream_text(stream: StreamFacts) -> str:
    numbers = ", ".join(map(str, stream.descriptors))
    facts = [f"descriptor {numbers}" if numbers else "closed"]
    if stream.file_offset is not None:
        facts.append(f"a file, at {stream.file_offset:,}")
    if stream.nonblocking:
        facts.append("non-blocking")
    return ", ".join(facts)


def _section(heading: str, body: str) -> str:
    return "\n".join([heading, *(f"  {line}" for line in body.splitlines())])
