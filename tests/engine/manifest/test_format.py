"""FORMAT.md's example is what the code writes, and its tables are complete."""

from __future__ import annotations

import re
from pathlib import Path

import meles.engine.manifest
import pytest
from meles.engine.codec.checksum import crc32c
from meles.engine.codec.header import FORMAT_VERSION, HEADER_BYTES
from meles.engine.fs.files import Directory
from meles.engine.manifest import manifest_file
from meles.engine.manifest.edit import Edit
from meles.engine.manifest.manifest_file import PREFIX_BYTES, ManifestFile, replay_manifest
from meles.engine.manifest.version import TableMeta, Version, VlogMeta

TEXT = Path(meles.engine.manifest.__path__[0], "FORMAT.md").read_text()
EXAMPLE = bytes.fromhex(TEXT.split("```hex MANIFEST\n")[1].split("```")[0])
EDIT = Edit(put_vlogs=(VlogMeta(1, (1,)),), next_table=257, next_vlog=258)
SIZES = {"u32": 4, "u64": 8}


def cells(title: str, first: str) -> list[list[str]]:
    """The rows of a section's tables whose first cell looks like `first`."""
    section = TEXT.split(f"## {title}")[1].split("\n## ")[0]
    rows = [line.strip("| ").split("|") for line in section.splitlines() if line.startswith("|")]
    found = [[cell.strip() for cell in row] for row in rows]
    return [row for row in found if re.match(first, row[0])]


def test_the_example_is_what_is_written(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest_file.os, "urandom", lambda size: bytes(range(size)))
    version = Version.empty(2)
    manifest = ManifestFile.create(directory, version, 7)
    manifest.append(EDIT, EDIT.apply(version))
    manifest.close()
    assert directory.read("MANIFEST") == EXAMPLE


def test_the_example_is_read() -> None:
    found = replay_manifest(EXAMPLE, "f")
    assert found.version == EDIT.apply(Version.empty(2))
    assert (found.number, found.end, found.cut) == (2, len(EXAMPLE), 0)
    assert found.header.external == 7


def test_the_record_has_the_fields_of_the_table() -> None:
    at, places = 0, {}
    for offset, size, name, _ in cells("Record", r"\d"):
        assert int(offset) == at
        places[name] = HEADER_BYTES + at
        at += SIZES.get(size, 0)
    assert at == PREFIX_BYTES
    seed = int.from_bytes(EXAMPLE[HEADER_BYTES - 4 : HEADER_BYTES], "little")
    length = int.from_bytes(EXAMPLE[places["length"] :][:4], "little")
    payload = EXAMPLE[places["payload"] :][:length]
    assert payload[-1:] == b"\xff"
    numbered = EXAMPLE[places["number"] : places["number"] + 8 + length]
    assert int.from_bytes(EXAMPLE[places["crc"] :][:4], "little") == crc32c(numbered, seed ^ length)
    assert EXAMPLE[places["number"] :][:8] == (1).to_bytes(8, "little")


def test_the_tables_list_every_field() -> None:
    rows = cells("Change set", "`")
    edits = {row[0].strip("`") for row in rows if len(row) == 3}
    assert edits == set(Edit.__dataclass_fields__)
    named = {name for row in rows if len(row) != 3 for cell in row[::2]
             for name in re.findall("`(.)`", cell)}  # fmt: skip
    assert named == set(
        TableMeta(1, 1, 1, 1, b"a", b"b", 1, 1, expiries=(1,), salt=b"s").to_plain()
    )


def test_the_newest_version_is_listed() -> None:
    assert int(cells("History", r"\d")[-1][0]) == FORMAT_VERSION
