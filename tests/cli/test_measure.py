"""`memvm measure`, as a user has it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tests.support import MemvmCli


def test_a_digest_and_what_it_is_made_of(guests: Mapping[str, Path], memvm_cli: MemvmCli) -> None:
    digest = memvm_cli("measure", "--", guests["counter"], "3", code=0).text.strip()
    assert len(bytes.fromhex(digest)) == 48
    explained = memvm_cli("measure", "--explain", "--", guests["counter"], "3", code=0).text
    assert digest in explained
    assert "image r-x" in explained
    assert "debug" in explained
    locked = memvm_cli("measure", "--locked", "--setting", "debug=on:revoke", "--json", guests["counter"], code=0)
    settings = json.loads(locked.text)["records"]["settings"]
    assert settings["debug"] == "on:revoke"
    assert settings["checkpoint"] == "no:refuse"


def test_what_a_guest_is_given_and_told_is_measured(guests: Mapping[str, Path], memvm_cli: MemvmCli) -> None:
    options = ("--ro", "/usr:/given", "--cwd", "/given", "--hostname", "hub", "--cpus", "2")
    shown = memvm_cli("measure", "--explain", *options, "--", guests["counter"], code=0).text
    assert "at /given" in shown
    assert "hub, 2 CPUs" in shown
    records = json.loads(memvm_cli("measure", "--json", *options, "--", guests["counter"], code=0).text)["records"]
    assert records["files"] == {"directory": "/given", "views": {"/given": "ro"}}
    assert records["machine"] == {"hostname": "hub", "cpus": 2}
    assert "files=none" in memvm_cli("measure", "--locked", *options, guests["counter"], code=77).err


def test_files_and_programs_are_compared(guests: Mapping[str, Path], memvm_cli: MemvmCli, tmp_path: Path) -> None:
    file = tmp_path / "first.json"
    file.write_text(memvm_cli("measure", "--json", guests["counter"], code=0).text)
    assert memvm_cli("measure", "--diff", file, guests["counter"], code=1).text.count("\n") >= 2  # another name
    assert memvm_cli("measure", "--diff", file, file, code=0).text == "no difference\n"
    flipped = tmp_path / "flipped"
    contents = bytearray(guests["counter"].read_bytes())
    contents[0x5008] ^= 1
    flipped.write_bytes(contents)
    shown = memvm_cli("measure", "--diff", guests["counter"], flipped, code=1).text
    assert shown.splitlines()[1].startswith("page at 0x405000 (image r-x)")


def test_what_is_no_measurement_is_refused(memvm_cli: MemvmCli, tmp_path: Path) -> None:
    file = tmp_path / "bad.json"
    file.write_text("{}")
    assert "not a measurement" in memvm_cli("measure", "--diff", file, file, code=64).err
    assert "there is no setting" in memvm_cli("measure", "--setting", "bug=on", "ls", code=64).err
    assert "cannot be" in memvm_cli("measure", "--setting", "debug=yes", "ls", code=64).err
