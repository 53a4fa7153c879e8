"""The MANIFEST file: what was appended is found again, and nothing else is taken for it."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import msgpack
import pytest
from fault_fs import GROWING, FailNth, FaultDisk, OnNth
from hypothesis import given, settings
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
from meles.engine.manifest import manifest_file
from meles.engine.manifest.edit import Edit
from meles.engine.manifest.manifest_file import ManifestFile, replay_manifest
from meles.engine.manifest.version import TableMeta, Version

Table = Callable[..., TableMeta]
LEVELS = 3
EMPTY = Version.empty(LEVELS)
PREFIX = struct.Struct("<IIQ")
END = b"\xff"  # ends every payload


@contextlib.contextmanager
def created(
    directory: Directory, version: Version = EMPTY, external: int = 0
) -> Iterator[ManifestFile]:
    manifest = ManifestFile.create(directory, version, external)
    try:
        yield manifest
    finally:
        manifest.close()


def grow(manifest: ManifestFile, version: Version, steps: range) -> Version:
    """Append one edit a step; step n makes max_ts n."""
    for step in steps:
        edit = Edit(max_ts=step)
        after = edit.apply(version)
        manifest.append(edit, after)
        version = after
    return version


def found(directory: Directory) -> Version:
    return ManifestFile.read(directory, 0, LEVELS).version


@pytest.fixture
def image(directory: Directory) -> bytes:
    """A MANIFEST of three records that end at 1, 2 and 3."""
    with created(directory) as manifest:
        grow(manifest, EMPTY, range(1, 4))
    return directory.read("MANIFEST")


def ends(image: bytes) -> list[int]:
    """Where each record ends."""
    at, found = HEADER_BYTES, []
    while at < len(image):
        at += PREFIX.size + PREFIX.unpack_from(image, at)[0]
        found.append(at)
    return found


# -- writing and reading -------------------------------------------------------------------------


def test_a_new_manifest_describes_the_version_it_was_made_of(
    directory: Directory, table: Table
) -> None:
    version = EMPTY.with_tables(1, [table(1, "a-c"), table(2, "d")], [])
    with created(directory, version):
        assert directory.names() == ["MANIFEST"]
    assert found(directory) == version


def test_what_is_appended_is_found_across_reopens(directory: Directory, table: Table) -> None:
    version = EMPTY
    manifest = ManifestFile.create(directory, version, 0)
    for number in range(1, 10):
        edit = Edit(add=((0, table(number, "a-z")),), max_ts=number, next_table=number + 1)
        version = edit.apply(version)
        manifest.append(edit, version)
        if number % 3 == 0:
            manifest.close()
            replayed = ManifestFile.read(directory, 0, LEVELS)
            assert replayed.version == version
            assert replayed.number == number + 1
            assert replayed.cut == 0
            manifest = ManifestFile.open(directory, replayed)
    manifest.close()


def test_the_number_of_levels_is_the_files_own(directory: Directory) -> None:
    with created(directory):
        pass
    assert len(ManifestFile.read(directory, 0, 7).version.levels) == LEVELS


def test_each_file_has_a_seed_of_its_own(directory: Directory) -> None:
    headers = []
    for _ in range(2):
        with created(directory):
            headers.append(ManifestFile.read(directory, 0, LEVELS).header)
    assert headers[0].seed != headers[1].seed


def test_a_foreign_external_number_is_refused(directory: Directory) -> None:
    with created(directory, external=7):
        pass
    with pytest.raises(ConfigError, match=r"external_magic_version=0: .* was made with 7"):
        ManifestFile.read(directory, 0, LEVELS)
    assert ManifestFile.read(directory, 7, LEVELS).version == EMPTY


def test_no_manifest_is_file_not_found(directory: Directory) -> None:
    with pytest.raises(FileNotFoundError):
        ManifestFile.read(directory, 0, LEVELS)


def test_reading_changes_nothing(directory: Directory, image: bytes) -> None:
    torn = image[:-1]
    path = Path(directory.path, "MANIFEST")
    path.write_bytes(torn)
    before = path.stat()
    assert ManifestFile.read(directory, 0, LEVELS).cut > 0
    assert path.read_bytes() == torn
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert directory.names() == ["MANIFEST"]


def test_the_remains_of_a_rewrite_are_removed_at_open(directory: Directory, image: bytes) -> None:
    directory.create("MANIFEST.new").close()
    ManifestFile.open(directory, ManifestFile.read(directory, 0, LEVELS)).close()
    assert directory.names() == ["MANIFEST"]
    assert directory.read("MANIFEST") == image


def test_rewritten_when_it_has_grown_and_only_then(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest_file, "_REWRITE_AT", 2000)
    manifest = ManifestFile.create(directory, EMPTY, 5)
    sizes, version = [], EMPTY
    for step in range(1, 400):
        version = grow(manifest, version, range(step, step + 1))
        sizes.append(directory.size_of("MANIFEST"))
    manifest.close()
    assert max(sizes) <= 2000
    shrunk = [step for step, (a, b) in enumerate(pairwise(sizes)) if b < a]
    assert len(shrunk) > 2
    replayed = ManifestFile.read(directory, 5, LEVELS)
    assert replayed.version == version
    assert directory.names() == ["MANIFEST"]


# -- torn tails ----------------------------------------------------------------------------------


def test_every_cut_of_the_last_record_is_torn_and_cut_off(
    directory: Directory, image: bytes
) -> None:
    *_, before, end = ends(image)
    path = Path(directory.path, "MANIFEST")
    for size in range(before, end):
        path.write_bytes(image[:size])
        replayed = ManifestFile.read(directory, 0, LEVELS)
        assert replayed.version.max_ts == 2
        assert (replayed.end, replayed.cut) == (before, size - before)
        manifest = ManifestFile.open(directory, replayed)
        grow(manifest, replayed.version, range(9, 10))
        manifest.close()
        assert found(directory).max_ts == 9


def test_zeros_after_the_last_record_are_a_torn_append(image: bytes) -> None:
    for zeros in (1, 15, 16, 17, 511, 512, 4096):
        replayed = replay_manifest(image + bytes(zeros), "m", LEVELS)
        assert replayed.version.max_ts == 3
        assert replayed.cut == zeros


def test_no_whole_record_is_damage(image: bytes) -> None:
    for size in range(HEADER_BYTES, ends(image)[0]):
        with pytest.raises(CorruptionError, match=r"no whole record|checksum") as caught:
            replay_manifest(image[:size], "m", LEVELS)
        assert caught.value.kind == "manifest record"


# -- damage --------------------------------------------------------------------------------------


def test_every_damaged_byte_before_the_last_record_is_found(image: bytes) -> None:
    for at in range(ends(image)[-2]):
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(image)
            damaged[at] ^= flip
            with pytest.raises((CorruptionError, FormatVersionError)) as caught:
                replay_manifest(bytes(damaged), "dir/MANIFEST", LEVELS)
            assert "dir/MANIFEST" in str(caught.value)


def test_a_damaged_last_record_is_never_taken_for_a_torn_one(image: bytes) -> None:
    """The record was acknowledged: cutting it off would lose tables. Its length word included."""
    for at in range(ends(image)[-2], len(image)):
        for bit in range(8):
            damaged = bytearray(image)
            damaged[at] ^= 1 << bit
            with pytest.raises(CorruptionError):
                replay_manifest(bytes(damaged), "m", LEVELS)


def test_records_lost_repeated_or_swapped_are_damage(image: bytes) -> None:
    first, second, third, fourth = ends(image)
    head, one = image[:first], image[first:second]
    two, three = image[second:third], image[third:fourth]
    for order in ([two], [one, three], [one, one], [two, one], [one, two, two, three]):
        with pytest.raises(CorruptionError, match=r"record \d+ where \d+ belongs"):
            replay_manifest(b"".join([head, *order]), "m", LEVELS)


def test_a_record_of_another_manifest_is_damage(directory: Directory, image: bytes) -> None:
    with created(directory) as manifest:
        grow(manifest, EMPTY, range(1, 4))
    other = directory.read("MANIFEST")
    spliced = image[: ends(image)[1]] + other[ends(other)[1] :]
    with pytest.raises(CorruptionError, match="checksum"):
        replay_manifest(spliced, "m", LEVELS)


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"\xc1", b"\x80\x80", msgpack.packb([1]), msgpack.packb({"unknown": 1}),
        msgpack.packb({1: 2}), b"\x81\xa3ban\xdd\xff\xff\xff\xff", b"\x91" * 5000,
        msgpack.packb({"max_ts": float("inf")}), msgpack.packb({"add_drops": [[[1 << 40], 1]]}),
        msgpack.packb({"remove": [[0, 1]]}), msgpack.packb({"snapshot": 1 << 40}),
        b"\xc7\x05\x07hello", b"\xd6\xff\x00\x00\x00\x00", b"\x81\xa3ban\x91\xa1\xff",
    ],
)  # fmt: skip
def test_a_record_that_makes_no_sense_is_damage_although_its_checksum_holds(
    image: bytes, payload: bytes
) -> None:
    header = image[:HEADER_BYTES]
    seed = struct.unpack("<I", header[-4:])[0]
    payload += END
    crc = crc32c(struct.pack("<Q", 5) + payload, seed ^ len(payload))
    record = PREFIX.pack(len(payload), crc, 5) + payload
    with pytest.raises(CorruptionError) as caught:
        replay_manifest(image + record, "m", LEVELS)
    assert caught.value.offset == len(image)


def test_a_payload_without_its_end_is_damage_although_its_checksum_holds(image: bytes) -> None:
    payload = msgpack.packb({"max_ts": 9})
    crc = crc32c(
        struct.pack("<Q", 5) + payload, struct.unpack("<I", image[60:64])[0] ^ len(payload)
    )
    with pytest.raises(CorruptionError, match="cannot be read"):
        replay_manifest(image + PREFIX.pack(len(payload), crc, 5) + payload, "m", LEVELS)


def test_a_claim_of_a_huge_record_is_no_allocation() -> None:
    header = FileHeader(MAGIC_MANIFEST, 0).encode()
    with pytest.raises(CorruptionError):
        replay_manifest(header + PREFIX.pack(0xFFFFFFFF, 0, 1) + b"\x80", "m", LEVELS)


@given(st.binary(max_size=300))
def test_anything_after_the_header_is_read_or_refused(rest: bytes) -> None:
    header = FileHeader(MAGIC_MANIFEST, 0).encode()
    with contextlib.suppress(CorruptionError):
        replay_manifest(header + rest, "m", LEVELS)


# -- failing disks -------------------------------------------------------------------------------


def story(directory: Directory, reached: list[int]) -> None:
    """Create, append, reopen, append; `reached` gets each max_ts that was acknowledged."""
    with created(directory) as manifest:
        reached.append(0)
        for step in range(1, 4):
            grow(manifest, Version(EMPTY.levels, max_ts=step - 1), range(step, step + 1))
            reached.append(step)
    replayed = ManifestFile.read(directory, 0, LEVELS)
    manifest = ManifestFile.open(directory, replayed)
    try:
        grow(manifest, replayed.version, range(4, 6))
        reached.append(5)
    finally:
        manifest.close()


def failing(home: Path, **how: object) -> Iterator[tuple[list[int], Path]]:
    """The story with its 1st, 2nd, 3rd... operation failing, until none does."""
    for n in range(1, 1000):
        path = home / f"{n}"
        path.mkdir()
        disk, reached = FaultDisk(), []
        plan = disk.plan = FailNth(n, **how)  # type: ignore[arg-type]
        with disk.open(str(path)) as directory:
            with contextlib.suppress(OSError):
                story(directory, reached)
            disk.plan = None
            if not plan.fired:
                return
            yield reached, path
    raise AssertionError("it never ended")


@pytest.mark.parametrize("sticky", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("torn", [None, 0.0, 0.5, 0.99])
def test_whatever_fails_what_was_acknowledged_is_there(
    tmp_path: Path, sticky: bool, torn: float | None
) -> None:
    runs = 0
    for reached, path in failing(tmp_path, sticky=sticky, torn=torn):
        runs += 1
        with Directory(str(path)) as directory:
            try:
                version = found(directory)
            except FileNotFoundError:
                assert not reached
                continue
            assert version.max_ts >= (reached[-1] if reached else 0)
    assert runs > 10


@pytest.mark.parametrize("torn", [None, 0.5])
def test_a_full_disk_heals(tmp_path: Path, torn: float | None) -> None:
    """An append that found no room left nothing behind: the next one takes its place."""
    disk = FaultDisk()
    with disk.open(str(tmp_path)) as directory, created(directory) as manifest:
        version = grow(manifest, EMPTY, range(1, 3))
        disk.plan = FailNth(1, errno.ENOSPC, kinds=GROWING, torn=torn)
        with pytest.raises(DiskFullError):
            grow(manifest, version, range(3, 4))
        assert found(directory) == version
        version = grow(manifest, version, range(4, 6))
        assert found(directory) == version


def test_a_rewrite_that_finds_no_room_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FaultDisk()
    with disk.open(str(tmp_path)) as directory, created(directory) as manifest:
        version = grow(manifest, EMPTY, range(1, 30))
        monkeypatch.setattr(manifest_file, "_REWRITE_AT", 0)
        monkeypatch.setattr(manifest_file, "_REWRITE_FACTOR", 0)
        for n in range(1, 4):  # create, write, rename
            disk.plan = FailNth(n, errno.ENOSPC, kinds=GROWING, torn=0.5)
            with pytest.raises(DiskFullError):
                grow(manifest, version, range(30, 31))
            assert directory.names() == ["MANIFEST"]
            assert found(directory) == version
        disk.plan = None
        version = grow(manifest, version, range(30, 32))
        assert found(directory) == version


def test_a_failed_sync_is_not_retried(tmp_path: Path) -> None:
    disk = FaultDisk()
    with disk.open(str(tmp_path)) as directory, created(directory) as manifest:
        count = disk.count
        for code in (errno.EIO, errno.ENOSPC):
            disk.plan = FailNth(1, code, kinds=frozenset({"sync"}))
            with pytest.raises(OSError, match="injected") as caught:
                grow(manifest, EMPTY, range(1, 2))
            assert not isinstance(caught.value, DiskFullError)
        kinds = [operation.kind for operation in disk.log if operation.number > count]
        assert kinds.count("sync") == 2


@settings(max_examples=settings.default.max_examples // 5)
@given(seed=st.integers(0, 1 << 32), keep=st.sampled_from([0.0, 0.3, 0.7, 1.0]))
def test_after_a_power_loss_what_was_acknowledged_is_there(
    tmp_path_factory: pytest.TempPathFactory, seed: int, keep: float
) -> None:
    """Lose the power before every operation in turn."""
    home = tmp_path_factory.mktemp("story")
    for n in range(1, 100):
        path, after = home / f"db{n}", home / f"after{n}"
        path.mkdir()
        disk, reached, before = FaultDisk(), [], []
        lose = partial(lose_power, disk, path, after, reached, before, keep=keep, seed=seed)
        plan = disk.plan = OnNth(n, lose)
        with disk.open(str(path)) as directory:
            story(directory, reached)
        if plan.seen < n:
            assert n > 10
            return
        with Directory(str(after)) as directory:
            if "MANIFEST" not in directory.names():
                assert not before
                continue
            version = found(directory)
            acknowledged = before[-1] if before else 0
            assert acknowledged <= version.max_ts <= acknowledged + 2
            ManifestFile.open(directory, ManifestFile.read(directory, 0, LEVELS)).close()
    raise AssertionError("it never ended")


def lose_power(
    disk: FaultDisk, path: Path, after: Path, reached: list[int], before: list[int], **how: float
) -> None:
    before.extend(reached)
    disk.power_loss(str(path), str(after), **how)  # type: ignore[arg-type]


def test_no_descriptor_is_left_by_what_fails(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in failing(tmp_path):
        assert len(os.listdir("/proc/self/fd")) == before + 1  # the directory of this round
    assert len(os.listdir("/proc/self/fd")) == before
