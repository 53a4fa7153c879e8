"""After a crash: torn tails are cut, damage in the middle costs nothing behind it."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from meles.engine.codec.entry import ValuePointer
from meles.engine.errors import CorruptionError, FormatVersionError, InvariantError
from meles.engine.fs.files import Directory
from meles.engine.jobs import RelocateJob
from meles.engine.manifest.version import VlogMeta
from meles.engine.vlog import scan
from meles.engine.vlog.reader import ValueLogFile
from meles.engine.vlog.recover import Recovered, recover_tail, seal_recovered
from meles.engine.vlog.relocate import live_entries, relocate
from meles.engine.vlog.writer import ValueLogWriter

VALUES = [b"alpha", b"", b"gamma" * 9, b"delta"]
ENDS = [64 + 21, 64 + 37, 64 + 98, 64 + 119]
Q = "000001.vlog"


class Calm:
    def progress(self, done_bytes: int) -> None:
        pass


def crashed(directory: Directory, values: list[bytes] = VALUES) -> list[ValuePointer]:
    """A file that was never sealed; value i has version i + 1."""
    directory.unlink(Q)
    writer = ValueLogWriter(directory, 1)
    pointers = [writer.append(value, version) for version, value in enumerate(values, 1)]
    writer.close()
    return pointers


def test_a_whole_file_is_all_valid(directory: Directory) -> None:
    crashed(directory)
    assert recover_tail(directory, 1) == Recovered(ENDS[-1], 4, 0, ENDS[-1], 4)
    crashed(directory, [])
    assert recover_tail(directory, 1) == Recovered(64, 0, 0, 64, 0)


def test_a_tail_torn_at_any_byte_is_cut_to_the_last_whole_entry(
    directory: Directory, tmp_path: Path
) -> None:
    pointers = crashed(directory)
    data = (tmp_path / Q).read_bytes()
    for length in range(len(data) + 1):
        (tmp_path / Q).write_bytes(data[:length])
        whole = sum(end <= length for end in ENDS)
        end = ENDS[whole - 1] if whole else 64
        found = recover_tail(directory, 1)
        assert found == Recovered(end, whole, max(0, length - end), end, whole)
        assert (tmp_path / Q).read_bytes() == data[:length]
        meta = seal_recovered(directory, 1, found.end, found.entries)
        file = ValueLogFile(directory, meta)
        assert file.verify() == whole
        for number in range(whole):
            assert file.read(pointers[number], number + 1) == VALUES[number]
        for lost in pointers[whole:]:
            with pytest.raises(CorruptionError):
                file.read(lost)
        file.close()


@pytest.mark.parametrize(
    "tail", [bytes(10), bytes(200_000), b"\xff" * 100, bytes(range(1, 256)) * 40], ids=len
)
def test_rubbish_behind_the_last_entry_is_a_torn_tail(
    directory: Directory, tmp_path: Path, tail: bytes
) -> None:
    crashed(directory)
    with (tmp_path / Q).open("ab") as file:
        file.write(tail)
    assert recover_tail(directory, 1) == Recovered(ENDS[-1], 4, len(tail), ENDS[-1], 4)


def test_a_torn_large_value_is_cut(directory: Directory, tmp_path: Path) -> None:
    crashed(directory, [*VALUES, random.Random(1).randbytes(300_000)])
    os.truncate(tmp_path / Q, 200_000)
    found = recover_tail(directory, 1)
    assert found == Recovered(ENDS[-1], 4, 200_000 - ENDS[-1], ENDS[-1], 4)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_damage_in_the_middle_keeps_what_follows(
    directory: Directory, tmp_path: Path, number: int
) -> None:
    pointers = crashed(directory)
    data = (tmp_path / Q).read_bytes()
    begin = pointers[number].offset
    for at in range(begin, ENDS[number]):
        (tmp_path / Q).write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
        hole = (begin, ENDS[number] - begin)
        assert recover_tail(directory, 1) == Recovered(ENDS[-1], 3, 0, begin, number, (hole,))
    meta = seal_recovered(directory, 1, ENDS[-1], 3)
    file = ValueLogFile(directory, meta)
    for other, pointer in enumerate(pointers):
        if other != number:
            assert file.read(pointer, other + 1) == VALUES[other]
    with pytest.raises(CorruptionError):
        file.read(pointers[number])
    with pytest.raises(CorruptionError):
        file.verify()
    file.close()


def test_a_hole_of_zeros_keeps_what_follows(directory: Directory, tmp_path: Path) -> None:
    values = [b"a" * 5000] * 40
    pointers = crashed(directory, values)
    data = bytearray((tmp_path / Q).read_bytes())
    data[8192:180_224] = bytes(180_224 - 8192)
    (tmp_path / Q).write_bytes(data)
    found = recover_tail(directory, 1)
    survivors = [pointer for pointer in pointers if pointer.offset >= 180_224]
    assert found.entries == 1 + len(survivors)
    assert found.holes == ((pointers[1].offset, survivors[0].offset - pointers[1].offset),)
    assert (found.end, found.cut_bytes, found.clean_end) == (len(data), 0, pointers[1].offset)


def test_a_search_that_gives_up_cuts_nothing(
    directory: Directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashed(directory)
    rubbish = random.Random(2).randbytes(200_000)
    with (tmp_path / Q).open("ab") as file:
        file.write(rubbish)
    size = ENDS[-1] + len(rubbish)
    assert recover_tail(directory, 1).cut_bytes == len(rubbish)
    monkeypatch.setattr(scan._Budget.__init__, "__defaults__", (100_000, 1 << 32))
    found = recover_tail(directory, 1)
    assert found == Recovered(size, 4, 0, ENDS[-1], 4, ((ENDS[-1], len(rubbish)),))


def test_a_sound_length_leads_past_damage_without_a_search(
    directory: Directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pointers = crashed(directory)
    data = bytearray((tmp_path / Q).read_bytes())
    data[pointers[2].offset + 30] ^= 1
    (tmp_path / Q).write_bytes(data)
    monkeypatch.setattr(scan._Budget.__init__, "__defaults__", (0, 1 << 32))
    assert recover_tail(directory, 1).entries == 3


def test_known_damage_is_not_reported_again_but_new_damage_is(
    directory: Directory, tmp_path: Path
) -> None:
    pointers = crashed(directory)
    path = tmp_path / Q
    data = bytearray(path.read_bytes())
    data[pointers[1].offset + 4] ^= 1
    path.write_bytes(data)
    found = recover_tail(directory, 1)
    assert found.lost == 16
    meta = seal_recovered(directory, 1, found.end, found.entries, found.lost)
    file = ValueLogFile(directory, meta)
    assert file.verify() == 3
    with pytest.raises(CorruptionError):
        file.read(pointers[1])
    file.close()
    data = bytearray(path.read_bytes())
    data[pointers[3].offset + 17] ^= 1
    path.write_bytes(data)
    file = ValueLogFile(directory, meta)
    with pytest.raises(CorruptionError, match="37 bytes are no entries, 16 were"):
        file.verify()
    file.close()


def test_zeros_cost_no_search(
    directory: Directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashed(directory, [b"first", b"z" * 500_000, b"last"])
    data = bytearray((tmp_path / Q).read_bytes())
    data[85 : 85 + 16 + 400_000] = bytes(16 + 400_000)
    data[85 + 16 + 400_000 : -20] = bytes(100_000)
    (tmp_path / Q).write_bytes(data)
    monkeypatch.setattr(scan._Budget.__init__, "__defaults__", (70_000, 1 << 32))
    found = recover_tail(directory, 1)
    assert (found.entries, found.end) == (2, len(data))


def test_a_large_entry_behind_damage_is_found_too(
    directory: Directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pointers = crashed(directory, [b"first", b"second", b"large" * 20])
    data = bytearray((tmp_path / Q).read_bytes())
    data[pointers[1].offset + 4] ^= 1
    (tmp_path / Q).write_bytes(data)
    monkeypatch.setattr(scan, "_LARGE", 50)
    assert recover_tail(directory, 1).entries == 2
    monkeypatch.setattr(scan._Budget.__init__, "__defaults__", (1 << 20, -1))
    found = recover_tail(directory, 1)
    assert (found.entries, found.cut_bytes) == (1, 0)


@settings(
    deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    values=st.lists(st.binary(max_size=60), min_size=1, max_size=8),
    damage=st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(1, 255)), max_size=4),
    cut=st.integers(0, 100),
)
def test_no_valid_entry_is_ever_lost(
    directory: Directory,
    tmp_path: Path,
    values: list[bytes],
    damage: list[tuple[int, int]],
    cut: int,
) -> None:
    pointers = crashed(directory, values)
    data = bytearray((tmp_path / Q).read_bytes())
    for where, flip in damage:
        data[64 + where % (len(data) - 64)] ^= flip
    del data[max(64, len(data) - cut) :]
    (tmp_path / Q).write_bytes(data)
    whole = {}
    old = ValueLogFile(directory, VlogMeta(1, (1,), size=len(data)))
    for number, pointer in enumerate(pointers):
        try:
            whole[pointer] = old.read(pointer, number + 1)
        except CorruptionError:
            continue
    old.close()
    found = recover_tail(directory, 1)
    assert found.entries == len(whole)
    assert found.end + found.cut_bytes == len(data)
    sealed = ValueLogFile(directory, seal_recovered(directory, 1, found.end, found.entries))
    for pointer, value in whole.items():
        assert sealed.read(pointer) == value
    sealed.close()


def test_a_copy_of_an_entry_inside_a_value_is_not_one(directory: Directory, tmp_path: Path) -> None:
    crashed(directory)
    entry = (tmp_path / Q).read_bytes()[64 : ENDS[0]]
    crashed(directory, [b"first", entry * 3, b"last"])
    data = bytearray((tmp_path / Q).read_bytes())
    data[64 + 21 + 4] ^= 1  # the length of the second entry
    (tmp_path / Q).write_bytes(data)
    found = recover_tail(directory, 1)
    assert (found.entries, found.holes) == (2, ((85, 16 + 63),))


def test_the_walk_may_start_at_a_known_place(directory: Directory, tmp_path: Path) -> None:
    crashed(directory)
    data = bytearray((tmp_path / Q).read_bytes())
    data[70] ^= 1
    (tmp_path / Q).write_bytes(data)
    assert recover_tail(directory, 1, ENDS[0]) == Recovered(ENDS[-1], 3, 0, ENDS[-1], 3)
    assert recover_tail(directory, 1, ENDS[-1]) == Recovered(ENDS[-1], 0, 0, ENDS[-1], 0)
    with pytest.raises(CorruptionError, match="which it once had"):
        recover_tail(directory, 1, ENDS[-1] + 1)


def test_a_sealed_file_the_manifest_missed_is_recognised(
    directory: Directory, tmp_path: Path
) -> None:
    writer = ValueLogWriter(directory, 1)
    for version, value in enumerate(VALUES, 1):
        writer.append(value, version)
    meta = writer.seal()
    writer.close()
    assert recover_tail(directory, 1) == Recovered(ENDS[-1], 4, 0, ENDS[-1], 4, sealed=True)
    before = (tmp_path / Q).read_bytes()
    assert seal_recovered(directory, 1, ENDS[-1], 4) == meta
    assert (tmp_path / Q).read_bytes() == before
    data = bytearray(before)
    data[ENDS[2] + 3] ^= 1
    (tmp_path / Q).write_bytes(data)
    hole = (ENDS[2], ENDS[3] - ENDS[2])
    assert recover_tail(directory, 1) == Recovered(ENDS[3], 3, 0, ENDS[2], 3, (hole,), sealed=True)
    empty = ValueLogWriter(directory, 2)
    empty.seal()
    empty.close()
    assert recover_tail(directory, 2) == Recovered(64, 0, 0, 64, 0, sealed=True)


@pytest.mark.parametrize("content", [b"", bytes(10), b"MELESVLG", bytes(64), bytes(5000)], ids=len)
def test_a_file_that_was_never_synced_holds_nothing(
    directory: Directory, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / Q).write_bytes(content)
    cut = max(0, len(content) - 64)
    assert recover_tail(directory, 1) == Recovered(64, 0, cut, 64, 0)
    file = ValueLogFile(directory, VlogMeta(1, (1,), size=64))  # as a read-only owner has it
    assert file.verify() == 0
    file.close()
    file = ValueLogFile(directory, seal_recovered(directory, 1, 64, 0))
    assert file.verify() == 0
    file.close()


def test_a_lost_header_costs_no_entry(directory: Directory, tmp_path: Path) -> None:
    pointers = crashed(directory)
    data = bytearray((tmp_path / Q).read_bytes())
    data[:64] = bytes(64)
    (tmp_path / Q).write_bytes(data)
    found = recover_tail(directory, 1)
    assert found == Recovered(ENDS[-1], 4, 0, ENDS[-1], 4)
    file = ValueLogFile(directory, seal_recovered(directory, 1, found.end, found.entries))
    assert file.read(pointers[2], 3) == VALUES[2]
    file.close()


def test_another_file_is_not_recovered_as_this_one(directory: Directory, tmp_path: Path) -> None:
    crashed(directory)
    data = (tmp_path / Q).read_bytes()
    (tmp_path / "000002.vlog").write_bytes(data)
    with pytest.raises(CorruptionError, match="number 1"):
        recover_tail(directory, 2)
    (tmp_path / Q).write_bytes(data[:30] + b"\x01" + data[31:])
    for call in (lambda: recover_tail(directory, 1), lambda: seal_recovered(directory, 1, 64, 0)):
        with pytest.raises((CorruptionError, FormatVersionError)):
            call()
    with pytest.raises(CorruptionError, match="missing"):
        recover_tail(directory, 3)


def test_a_file_made_by_gc_is_not_recovered(directory: Directory) -> None:
    pointers = crashed(directory)
    seal_recovered(directory, 1, ENDS[-1], 4)
    job = RelocateJob(((1, (1,)),), (), 2, 0, 0)
    relocate(job, live_entries([1], [pointers[0].encode()]), directory, Calm())
    with pytest.raises(InvariantError, match="GC"):
        recover_tail(directory, 2)


@pytest.mark.parametrize(
    ("end", "entries", "lost"),
    [(63, 0, 0), (ENDS[-1] + 1, 4, 0), (80, 2, 0), (80, -1, 0), (80, 1, 1), (80, 0, -1)],
)
def test_impossible_ends_are_refused(
    directory: Directory, tmp_path: Path, end: int, entries: int, lost: int
) -> None:
    crashed(directory)
    before = (tmp_path / Q).read_bytes()
    with pytest.raises(InvariantError):
        seal_recovered(directory, 1, end, entries, lost)
    assert (tmp_path / Q).read_bytes() == before
