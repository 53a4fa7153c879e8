"""The MANIFEST: replayed as written, cut only where a crash can have torn it, never silently."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import msgpack
import pytest
from fault_fs import FailNth, FaultDisk
from hypothesis import given
from hypothesis import strategies as st
from meles.engine.codec.checksum import crc32c
from meles.engine.codec.header import HEADER_BYTES, MAGIC_MANIFEST, FileHeader
from meles.engine.errors import (
    ConfigError,
    CorruptionError,
    DiskFullError,
    FormatVersionError,
)
from meles.engine.fs.files import Directory
from meles.engine.manifest.edit import Edit
from meles.engine.manifest.manifest_file import (
    PREFIX_BYTES,
    ManifestFile,
    Replay,
    replay_manifest,
)
from meles.engine.manifest.version import Drop, TableMeta, Version, VlogMeta

Table = Callable[..., TableMeta]
LEVELS = 3


def edits_of(table: Table) -> list[Edit]:
    """A short life of a database, every field used."""
    one = table(1, "a-f", value_log=((1, 500, 3),), created=1.5)
    two = table(2, "d-z", max_version=9, compression="zstd")
    return [
        Edit(next_table=257, next_vlog=257),
        Edit(put_vlogs=(VlogMeta(1, (1,)),)),
        Edit(add=((0, one),), min_mem=2, max_ts=5, put_vlogs=(VlogMeta(1, (1,), False, 900, 3),)),
        Edit(add=((0, two),), min_mem=3, max_ts=9),
        Edit(remove=((0, 1),), add=((1, one),)),
        Edit(add_drops=(Drop((b"a", b"\xff"), 10),), max_ts=10, ban=(3, 1 << 60)),
        Edit(remove_drops=(10,), put_vlogs=(VlogMeta(1, (1,), True, 964, 3),)),
        Edit(put_vlogs=(VlogMeta(2, (1,), True, 300, 1),), remove_vlogs=(1,)),
    ]


def states_of(edits: list[Edit]) -> list[Version]:
    states = [Version.empty(LEVELS)]
    for edit in edits:
        states.append(edit.apply(states[-1]))
    return states


def written(directory: Directory, edits: list[Edit], *, external: int = 0) -> bytes:
    states = states_of(edits)
    manifest = ManifestFile.create(directory, states[0], external)
    for edit, after in zip(edits, states[1:], strict=True):
        manifest.append(edit, after)
    manifest.close()
    return directory.read("MANIFEST")


def places(data: bytes) -> list[int]:
    """Where each record begins, and the end of the last."""
    found = [HEADER_BYTES]
    while found[-1] < len(data):
        found.append(found[-1] + PREFIX_BYTES + int.from_bytes(data[found[-1] :][:4], "little"))
    return found


def replayed(data: bytes) -> Replay:
    return replay_manifest(data, "f")


def resealed(data: bytes, offset: int, payload: bytes, number: int) -> bytes:
    """The MANIFEST with a whole record put at the offset, in place of all that follows."""
    seed = int.from_bytes(data[HEADER_BYTES - 4 : HEADER_BYTES], "little")
    numbered = number.to_bytes(8, "little") + payload
    head = len(payload).to_bytes(4, "little")
    crc = crc32c(numbered, seed ^ len(payload)).to_bytes(4, "little")
    return data[:offset] + head + crc + numbered


def test_what_is_appended_is_replayed(directory: Directory, table: Table) -> None:
    edits = edits_of(table)
    data = written(directory, edits, external=7)
    assert directory.names() == ["MANIFEST"]
    found = replayed(data)
    assert found.version == states_of(edits)[-1]
    assert (found.end, found.number, found.cut) == (len(data), len(edits) + 1, 0)
    assert found.header.external == 7


def test_an_opened_manifest_goes_on(directory: Directory, table: Table) -> None:
    edits = edits_of(table)
    states = states_of(edits)
    written(directory, edits[:3])
    for edit, after in zip(edits[3:], states[4:], strict=True):
        manifest = ManifestFile.open(directory, ManifestFile.read(directory, 0))
        manifest.append(edit, after)
        manifest.close()
    assert ManifestFile.read(directory, 0).version == states[-1]


def test_two_manifests_never_have_the_same_checksums(directory: Directory, table: Table) -> None:
    """A record of an earlier life of the file is no record of this one."""
    first, second = (written(directory, edits_of(table)) for _ in range(2))
    mixed = second[: places(second)[3]] + first[places(first)[3] :]
    with pytest.raises(CorruptionError):
        replayed(mixed)


numbers = st.integers(0, (1 << 63) - 1)


@given(
    counters=st.lists(st.tuples(numbers, numbers), min_size=1, max_size=8),
    prefixes=st.lists(st.binary(max_size=600), max_size=3),
    cut=st.integers(0, 1 << 30),
)
def test_any_history_cut_anywhere_is_a_prefix_of_it(
    tmp_path_factory: pytest.TempPathFactory,
    counters: list[tuple[int, int]],
    prefixes: list[bytes],
    cut: int,
) -> None:
    edits = [Edit(max_ts=ts, ban=(n,)) for ts, n in counters]
    edits.append(Edit(add_drops=(Drop(tuple(prefixes), 3),)) if prefixes else Edit(max_ts=3))
    with Directory(str(tmp_path_factory.mktemp("m"))) as directory:
        data = written(directory, edits)
    at = HEADER_BYTES + cut % (len(data) - HEADER_BYTES)
    ends = places(data)
    whole = sum(end <= at for end in ends[1:])
    if whole == 0:
        with pytest.raises(CorruptionError, match="no whole record"):
            replayed(data[:at])
    else:
        found = replayed(data[:at])
        assert found.version == states_of(edits)[whole - 1]
        assert (found.end, found.cut) == (ends[whole], at - ends[whole])


# -- torn tails ----------------------------------------------------------------------------------


def test_the_last_record_cut_at_every_byte_goes(directory: Directory, table: Table) -> None:
    edits = edits_of(table)
    data = written(directory, edits)
    before, last = states_of(edits)[-2], places(data)[-2]
    for torn in (*(data[:at] for at in range(last, len(data))), data[:last] + bytes(5000)):
        found = replayed(torn)
        assert found.version == before
        assert (found.end, found.cut) == (last, len(torn) - last)


def test_lost_sectors_of_the_last_record_make_it_torn(directory: Directory, table: Table) -> None:
    """A power cut keeps some sectors of an append and loses others, in any order."""
    edits = [*edits_of(table), Edit(add_drops=(Drop((b"long" * 700,), 20),), max_ts=20)]
    data = written(directory, edits)
    before, last = states_of(edits)[-2], places(data)[-2]
    for start in range(last - last % 512, len(data), 512):
        torn = bytearray(data)
        low, high = max(start, last), min(start + 512, len(data))
        torn[low:high] = bytes(high - low)
        found = replayed(bytes(torn))
        assert (found.version, found.end) == (before, last)


def test_a_torn_record_is_cut_when_the_manifest_is_opened(
    directory: Directory, table: Table
) -> None:
    edits = edits_of(table)
    states = states_of(edits)
    data = written(directory, edits)
    Path(directory.path, "MANIFEST").write_bytes(data[:-3])
    Path(directory.path, "MANIFEST.new").write_bytes(b"left from a rewrite")
    found = ManifestFile.read(directory, 0)
    assert directory.read("MANIFEST") == data[:-3]  # reading changes nothing
    assert found.cut > 0
    manifest = ManifestFile.open(directory, found)
    assert directory.names() == ["MANIFEST"]
    manifest.append(edits[-1], states[-1])
    manifest.close()
    assert directory.read("MANIFEST") == data


def test_a_manifest_without_a_whole_record_is_damage(directory: Directory, table: Table) -> None:
    data = written(directory, [])
    for at in range(len(data)):
        with pytest.raises(CorruptionError):
            replayed(data[:at])


# -- damage --------------------------------------------------------------------------------------


def test_a_bit_flipped_anywhere_is_noticed(directory: Directory, table: Table) -> None:
    """Also in the last record, and above all in a length."""
    data = written(directory, edits_of(table))
    for at in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[at] ^= 1 << bit
            with pytest.raises((CorruptionError, FormatVersionError)) as caught:
                replayed(bytes(damaged))
            if at >= 10 or at < 8:  # else it may name a newer version
                assert isinstance(caught.value, CorruptionError)


@pytest.mark.parametrize("tail", range(1, 9))
def test_a_record_that_ends_just_behind_a_sector_is_not_taken_for_torn(
    directory: Directory, tail: int
) -> None:
    """Its last bytes alone in a sector must not look like a sector that was lost."""
    edits = [Edit(put_vlogs=(VlogMeta(1, (1,)),))]
    fill = 512 + tail - len(written(directory, [Edit(add_drops=(Drop((b"x" * 300,), 1),)), *edits]))
    edits = [Edit(add_drops=(Drop((b"x" * (300 + fill),), 1),)), *edits]
    data = written(directory, edits)
    assert len(data) == 512 + tail
    last = places(data)[-2]
    for at in range(last, len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 0x10
        with pytest.raises(CorruptionError):
            replayed(bytes(damaged))


def test_a_record_lost_repeated_or_swapped_is_noticed(directory: Directory, table: Table) -> None:
    data = written(directory, edits_of(table))
    ends = places(data)
    records = [data[a:b] for a, b in pairwise(ends)]
    for order in ([0, 1, 3, 4], [0, 1, 1, 2], [0, 2, 1, 3], [1, 2, 3]):
        with pytest.raises(CorruptionError, match="where"):
            replayed(data[:HEADER_BYTES] + b"".join(records[n] for n in order))


def test_zeros_before_a_record_are_damage(directory: Directory, table: Table) -> None:
    data = written(directory, edits_of(table))
    at = places(data)[4]
    with pytest.raises(CorruptionError):
        replayed(data[:at] + bytes(4096) + data[at:])


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff",
        b"\x80",  # a change set without its end
        b"\xc1\xff",
        b"\x90\xff",
        b"\x81\xa7unknown\x01\xff",
        b"\x81\xa7min_mem\xff\xff",
        b"\x81\xa3add\x91\x91\x00\xff",
        b"\x81\xa6remove\x91\x92\x09\x01\xff",  # no such level
        b"\x81\xa6remove\x91\x92\x00\x63\xff",  # no such table
        b"\x81\xc4\x01a\x01\xff",
        b"\x80\x80\xff",
        b"\xdf\xff\xff\xff\xff\xff",
        b"\x91" * 2000 + b"\xff",
    ],
)
def test_a_whole_record_that_makes_no_sense_is_damage(
    directory: Directory, table: Table, payload: bytes
) -> None:
    data = written(directory, edits_of(table))
    at = places(data)[3]
    with pytest.raises(CorruptionError) as caught:
        replayed(resealed(data, at, payload, 4))
    assert (caught.value.path, caught.value.offset) == ("f", at)
    assert caught.value.kind == "manifest record"


def test_a_record_written_by_hand_is_believed(directory: Directory, table: Table) -> None:
    """The control of the test above."""
    data = written(directory, edits_of(table))
    payload = msgpack.packb({"max_ts": 99}) + b"\xff"
    found = replayed(resealed(data, places(data)[3], payload, 4))
    assert found.version.max_ts == 99


# -- versions and magic --------------------------------------------------------------------------


def test_another_external_number_is_refused(directory: Directory) -> None:
    data = written(directory, [], external=7)
    assert ManifestFile.read(directory, 7).header.external == 7
    with pytest.raises(ConfigError, match=r"external_magic_version=8.*made with 7"):
        ManifestFile.read(directory, 8)
    assert directory.read("MANIFEST") == data


def test_a_newer_format_is_named_and_left_alone(directory: Directory, table: Table) -> None:
    data = written(directory, edits_of(table))
    newer = FileHeader(MAGIC_MANIFEST, 0, version=2).encode() + data[HEADER_BYTES:]
    Path(directory.path, "MANIFEST").write_bytes(newer)
    with pytest.raises(FormatVersionError, match="version 2"):
        ManifestFile.read(directory, 0)
    assert directory.read("MANIFEST") == newer


def test_no_manifest_is_not_found(directory: Directory) -> None:
    with pytest.raises(FileNotFoundError):
        ManifestFile.read(directory, 0)


def test_a_state_remembers_its_levels(directory: Directory) -> None:
    written(directory, [])
    assert len(ManifestFile.read(directory, 0).version.levels) == LEVELS


# -- rewriting -----------------------------------------------------------------------------------


def large(n: int) -> Edit:
    """About 130 KB of change that leaves no trace in the next state."""
    drop = Drop((bytes([n % 256]) * 65_000, bytes([(n + 1) % 256]) * 65_000), n)
    return Edit(add_drops=(drop,), remove_drops=(n - 1,), max_ts=n)


def test_a_large_manifest_is_rewritten(directory: Directory) -> None:
    version = Version.empty(LEVELS)
    manifest = ManifestFile.create(directory, version, 5)
    first = directory.open("MANIFEST")  # held: the number of a file that is gone is used again
    sizes = []
    for n in range(1, 20):
        edit = large(n)
        version = edit.apply(version)
        manifest.append(edit, version)
        sizes.append(directory.size_of("MANIFEST"))
        found = ManifestFile.read(directory, 5)
        assert (found.version, found.cut) == (version, 0)
    assert max(sizes) < 2 << 20
    assert min(sizes[8:]) < sizes[6]
    assert os.fstat(first.fd).st_nlink == 0
    first.close()
    assert directory.names() == ["MANIFEST"]
    manifest.close()


# -- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["create", "write", "sync", "rename", "sync_dir"])
def test_a_manifest_that_cannot_be_made(
    directory: Directory, fault_disk: FaultDisk, kind: str
) -> None:
    with fault_disk.open(directory.path) as opened:
        fault_disk.plan = FailNth(1, kinds=frozenset({kind}))
        with pytest.raises(OSError, match="injected"):
            ManifestFile.create(opened, Version.empty(LEVELS), 0)
        assert "MANIFEST.new" not in directory.names()


def test_a_full_disk_leaves_the_manifest_as_it_was(
    directory: Directory, fault_disk: FaultDisk, table: Table
) -> None:
    edits = edits_of(table)
    states = states_of(edits)
    with fault_disk.open(directory.path) as opened:
        manifest = ManifestFile.create(opened, states[0], 0)
        before = directory.read("MANIFEST")
        fault_disk.plan = FailNth(1, errno.ENOSPC, kinds=frozenset({"write"}), torn=0.5)
        with pytest.raises(DiskFullError):
            manifest.append(edits[0], states[1])
        assert directory.read("MANIFEST") == before
        manifest.append(edits[0], states[1])
        manifest.close()
    assert ManifestFile.read(directory, 0).version == states[1]


def test_a_full_disk_while_rewriting_leaves_the_manifest_as_it_was(
    directory: Directory, fault_disk: FaultDisk
) -> None:
    with fault_disk.open(directory.path) as opened:
        version = Version.empty(LEVELS)
        manifest = ManifestFile.create(opened, version, 0)
        fault_disk.plan = FailNth(1, errno.ENOSPC, kinds=frozenset({"create", "rename"}))
        refused = 0
        for n in range(1, 12):
            after = large(n).apply(version)
            try:
                manifest.append(large(n), after)
            except DiskFullError:
                refused += 1
                manifest.append(large(n), after)
            version = after
            assert ManifestFile.read(directory, 0).version == version
        assert refused == 1
        manifest.close()


@pytest.mark.parametrize("kind", ["write", "sync"])
def test_after_an_unknown_failure_nothing_is_appended(
    directory: Directory, fault_disk: FaultDisk, table: Table, kind: str
) -> None:
    """Whether the record is on the medium is not known, so none may take its place."""
    edits = edits_of(table)
    states = states_of(edits)
    with fault_disk.open(directory.path) as opened:
        manifest = ManifestFile.create(opened, states[0], 0)
        fault_disk.plan = FailNth(1, kinds=frozenset({kind}))
        with pytest.raises(OSError, match="injected"):
            manifest.append(edits[0], states[1])
        before = directory.read("MANIFEST")
        with pytest.raises(OSError, match="earlier"):
            manifest.append(edits[1], states[2])
        assert directory.read("MANIFEST") == before
        manifest.close()
    assert ManifestFile.read(directory, 0).version in states[:2]


def test_after_a_rewrite_that_may_or_may_not_last_nothing_is_appended(
    directory: Directory, fault_disk: FaultDisk
) -> None:
    with fault_disk.open(directory.path) as opened:
        version = Version.empty(LEVELS)
        manifest = ManifestFile.create(opened, version, 0)
        fault_disk.plan = FailNth(1, kinds=frozenset({"sync_dir"}))
        for n in range(1, 12):
            after = large(n).apply(version)
            try:
                manifest.append(large(n), after)
            except OSError:
                break
            version = after
        else:
            pytest.fail("it was never rewritten")
        with pytest.raises(OSError, match="earlier"):
            manifest.append(large(50), version)
        manifest.close()
    assert ManifestFile.read(directory, 0).version in (version, after)
