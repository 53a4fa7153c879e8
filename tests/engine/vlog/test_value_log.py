"""The view: which file a logical address is read from, before and after GC."""

from __future__ import annotations

import pytest
from meles.engine.errors import CorruptionError, InvariantError
from meles.engine.fs.files import Directory
from meles.engine.jobs import RelocateJob
from meles.engine.manifest.version import VlogMeta
from meles.engine.vlog.reader import ValueLogFile, load_meta
from meles.engine.vlog.relocate import live_entries, relocate
from meles.engine.vlog.value_log import UnreadableFile, ValueLogView, open_source
from meles.engine.vlog.writer import ValueLogWriter


class Calm:
    def progress(self, done_bytes: int) -> None:
        pass


def sealed(directory: Directory, file_id: int, *values: bytes) -> tuple[ValueLogFile, list[bytes]]:
    writer = ValueLogWriter(directory, file_id)
    pointers = writer.append_many(values, file_id)
    meta = writer.seal()
    writer.close()
    return ValueLogFile(directory, meta), pointers


def test_rotation_and_relocation_change_the_view_and_not_the_addresses(
    directory: Directory,
) -> None:
    writer = ValueLogWriter(directory, 1)
    view = ValueLogView(directory.path, [writer])
    (first,) = writer.append_many([b"one"], 1)
    (dead,) = writer.append_many([b"gone"], 1)
    assert view.read(first, 1) == b"one"
    rotated = view.with_file(ValueLogFile(directory, writer.seal()))
    second, (other,) = sealed(directory, 2, b"two")
    rotated = rotated.with_file(second)
    assert [rotated.read(first, 1), rotated.read(other, 2)] == [b"one", b"two"]

    job = RelocateJob(((1, (1,)), (2, (2,))), (), 3, 0, 0)
    relocate(job, live_entries([1, 2], [first + other]), directory, Calm())
    moved = rotated.replaced([ValueLogFile(directory, load_meta(directory, 3))], [1, 2])
    directory.unlink("000001.vlog")
    directory.unlink("000002.vlog")
    assert [moved.read(first, 1), moved.read(other, 2)] == [b"one", b"two"]
    assert sorted(moved.files) == [3]
    with pytest.raises(CorruptionError, match="no value of address"):
        moved.read(dead)
    assert rotated.read(dead, 1) == b"gone"
    assert view.read(dead, 1) == b"gone"
    for old in (view, rotated, moved):
        old.close()


def test_a_view_never_changes(directory: Directory) -> None:
    one, (pointer,) = sealed(directory, 1, b"v")
    empty = ValueLogView(directory.path)
    full = empty.with_file(one)
    none = full.without(1, 99)
    for view in (empty, none):
        assert view.files == {}
        with pytest.raises(CorruptionError):
            view.read(pointer)
    assert full.read(pointer) == b"v"
    full.close()


def test_an_address_without_a_file_is_damage_that_names_it(directory: Directory) -> None:
    view = ValueLogView(directory.path)
    with pytest.raises(CorruptionError) as caught:
        view.read((7).to_bytes(4, "little") + bytes(8), 1)
    assert caught.value.path == f"{directory.path}/000007.vlog"
    with pytest.raises(CorruptionError):
        view.read(bytes(12))


@pytest.mark.parametrize("length", [0, 3, 4, 11, 13])
def test_what_is_no_address_is_damage(directory: Directory, length: int) -> None:
    one, (pointer,) = sealed(directory, 1, b"v")
    view = ValueLogView(directory.path, [one])
    with pytest.raises(CorruptionError, match=f"{length} bytes"):
        view.read((pointer + b"\0")[:length])
    view.close()


def test_two_files_may_not_hold_one_logical_file(directory: Directory) -> None:
    one, _ = sealed(directory, 1, b"v")
    lost = UnreadableFile(
        VlogMeta(2, (1, 2)), CorruptionError("gone", path="p", offset=0, kind="vlg file")
    )
    with pytest.raises(InvariantError, match="two files"):
        ValueLogView(directory.path, [one, lost])
    one.close()


def test_a_lost_file_fails_when_asked_and_says_why(directory: Directory) -> None:
    one, (pointer,) = sealed(directory, 1, b"v")
    _, (other,) = sealed(directory, 2, b"w")
    directory.unlink("000002.vlog")
    lost = open_source(directory, VlogMeta(2, (2,), True, 145, 1))
    view = ValueLogView(directory.path, [one, lost])
    assert view.read(pointer) == b"v"
    for _ in range(2):
        with pytest.raises(CorruptionError, match=r"000002\.vlog") as caught:
            view.read(other)
        assert "missing" in str(caught.value.__cause__)
    view.close()
    again = open_source(directory, one.meta)
    assert again.fetch(pointer) == b"v"
    again.close()
