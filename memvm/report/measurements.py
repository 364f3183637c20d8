"""Launch digests, as people and programs read them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from memvm.errors import UsageError
from memvm.machine.measurement import Difference, Link, LinkKind, Measurement
from memvm.report.table import pairs, table
from memvm.units import PAGE_SIZE, format_size


def explanation_text(measurement: Measurement) -> str:
    """The digest, the records, and a line for each link of the chain."""
    rows = [
        [
            link.name,
            f"{link.address:#x}" if link.page_count else "-",
            format_size(link.page_count * PAGE_SIZE) if link.page_count else "-",
            link.contents.hex()[:32] + "…",
        ]
        for link in measurement.links
    ]
    links = table(("WHAT", "ADDRESS", "SIZE", "SHA-384"), rows, right=("ADDRESS", "SIZE"))
    records = measurement.records
    files, machine = records["files"], records["machine"]
    told = pairs(
        [
            ("launch digest", measurement.digest.hex()),
            ("arguments", " ".join(records["arguments"])),
            ("begins in", files["directory"]),
            *((f"--{access}", f"at {point}") for point, access in files["views"].items()),
            ("is told", f"{machine['hostname']}, {machine['cpus']} CPU{'s' * (machine['cpus'] != 1)}"),
        ]
    )
    settings = pairs([(name, str(value)) for name, value in records["settings"].items()])
    return f"{told}\n\n{settings}\n\n{links}"


def measurement_json(measurement: Measurement) -> str:
    """For programs, and for measurement_from_json."""
    fields = {
        "digest": measurement.digest.hex(),
        "records": measurement.records,
        "links": [
            {
                "kind": link.kind.name.lower(),
                "name": link.name,
                "address": link.address,
                "count": link.page_count,
                "contents": link.contents.hex(),
                "pages": [page.hex() for page in link.pages],
            }
            for link in measurement.links
        ],
    }
    return json.dumps(fields, indent=2)


def measurement_from_json(path: Path) -> Measurement:
    """What measurement_json wrote. Raises UsageError."""
    try:
        fields = json.loads(path.read_bytes())
        links = tuple(
            Link(
                LinkKind[link["kind"].upper()],
                str(link["name"]),
                int(link["address"]),
                int(link["count"]),
                bytes.fromhex(link["contents"]),
                tuple(map(bytes.fromhex, link["pages"])),
            )
            for link in fields["links"]
        )
        return Measurement(bytes.fromhex(fields["digest"]), links, dict(fields["records"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path}: not a measurement: {error}", hint="`memvm measure --json` makes one") from None


def differences_text(found: Sequence[Difference]) -> str:
    """A line for each difference."""
    if not found:
        return "no difference"
    return table(("WHAT", "FIRST", "SECOND"), [[d.what, _short(d.first), _short(d.second)] for d in found])


def differences_json(found: Sequence[Difference]) -> str:
    """The same for programs."""
    return json.dumps([difference._asdict() for difference in found], indent=2)


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:39] + "…"
