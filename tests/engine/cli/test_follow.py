"""Followed inputs on real files, FIFOs and pipes: nothing skipped, nothing twice."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from meles.engine.cli.follow import (
    FifoFollower,
    FileFollower,
    FileMark,
    Follower,
    StdinFollower,
    follower,
)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "app.log"


def drain(source: Follower, limit: int = 4096) -> bytes:
    """All there is now; a `|` where the input begins anew."""
    out = b""
    while (piece := source.read(limit)) is not None:
        out += piece.data + (b"|" if piece.ends else b"")
    return out


def mark_of(source: Follower) -> FileMark:
    """The place after the last bytes read, by reading one piece more."""
    piece = source.read(4096)
    assert piece is not None
    assert piece.mark is not None
    return piece.mark


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


@pytest.fixture
def opened() -> Iterator[list[Follower]]:
    sources: list[Follower] = []
    yield sources
    for source in sources:
        source.close()
        source.close()


def test_file_that_appears_later_and_grows(log: Path, opened: list[Follower]) -> None:
    opened.append(source := FileFollower(str(log)))
    assert drain(source) == b""
    append(log, b"one\ntw")
    assert drain(source, 3) == b"one\ntw"
    append(log, b"o\n")
    assert drain(source) == b"o\n"
    assert source.fd is None


def test_rotation_by_rename_reads_the_old_file_to_its_end(
    log: Path, opened: list[Follower]
) -> None:
    opened.append(source := FileFollower(str(log)))
    append(log, b"1\n")
    assert drain(source) == b"1\n"
    log.rename(log.with_name("app.log.1"))
    append(log.with_name("app.log.1"), b"2\n")
    assert drain(source) == b"2\n"
    log.touch()
    append(log.with_name("app.log.1"), b"3\n")
    assert drain(source) == b"3\n", "an empty successor does not end the old file"
    append(log, b"4\n")
    append(log.with_name("app.log.1"), b"late")
    assert drain(source) == b"late|4\n"


def test_what_is_written_between_reading_the_end_and_rotating_is_read(
    log: Path, opened: list[Follower], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened.append(source := FileFollower(str(log)))
    append(log, b"1\n")
    read = os.read

    def read_then_rotate(fd: int, limit: int) -> bytes:
        data = read(fd, limit)
        if not data and not log.with_name("app.log.1").exists():
            append(log, b"late\n")
            log.rename(log.with_name("app.log.1"))
            append(log, b"2\n")
        return data

    monkeypatch.setattr(os, "read", read_then_rotate)
    assert drain(source) + drain(source) == b"1\nlate\n|2\n"


def set_times(path: Path, second: int) -> None:
    os.utime(path, (second, second))


def test_two_rotations_at_once_are_caught_up_with(log: Path, opened: list[Follower]) -> None:
    opened.append(source := FileFollower(str(log)))
    append(log, b"1\n")
    assert drain(source) == b"1\n"
    log.rename(log.with_name("app.log.2"))
    set_times(log.with_name("app.log.2"), 1000)
    log.with_name("app.log.1").write_bytes(b"2\n")
    set_times(log.with_name("app.log.1"), 2000)
    log.with_name("app.log.bak").write_bytes(b"no\n")
    log.with_name("app.log.3").write_bytes(b"older\n")
    set_times(log.with_name("app.log.3"), 500)
    append(log, b"3\n")
    assert drain(source) == b"|2\n|3\n"


def test_truncation_starts_at_the_beginning(log: Path, opened: list[Follower]) -> None:
    opened.append(source := FileFollower(str(log)))
    append(log, b"first line\n")
    assert drain(source) == b"first line\n"
    os.truncate(log, 0)
    append(log, b"new\n")
    assert drain(source) == b"|new\n"


def test_resumes_after_its_mark(log: Path, opened: list[Follower]) -> None:
    append(log, b"one\ntwo\n")
    opened.append(first := FileFollower(str(log)))
    mark = mark_of(first)
    assert mark.offset == 8
    append(log, b"three\n")
    opened.append(second := FileFollower(str(log), mark))
    assert drain(second) == b"three\n"


def test_resumes_in_the_renamed_file_then_goes_on(log: Path, opened: list[Follower]) -> None:
    append(log, b"one\n")
    opened.append(first := FileFollower(str(log)))
    mark = mark_of(first)
    append(log, b"two\n")
    log.rename(log.with_name("app.log-20240131"))
    append(log, b"three\n")
    opened.append(second := FileFollower(str(log), mark))
    assert drain(second) == b"two\n|three\n"


def test_a_mark_of_another_content_is_not_believed(log: Path, opened: list[Follower]) -> None:
    append(log, b"one\ntwo\n")
    opened.append(first := FileFollower(str(log)))
    mark = mark_of(first)
    inode = log.stat().st_ino
    log.write_bytes(b"other text of the same file\n")
    assert log.stat().st_ino == inode
    opened.append(second := FileFollower(str(log), mark))
    assert drain(second) == b"other text of the same file\n"
    os.truncate(log, 4)
    opened.append(third := FileFollower(str(log), mark))
    assert drain(third) == b"othe"


def test_resumes_with_a_head_that_grew(log: Path, opened: list[Follower]) -> None:
    append(log, b"a")
    opened.append(first := FileFollower(str(log)))
    mark = mark_of(first)
    append(log, b"b" * 5000)
    opened.append(second := FileFollower(str(log), mark))
    later = mark_of(second)
    assert later.offset == 4097
    opened.append(third := FileFollower(str(log), later))
    assert drain(third) == b"b" * (5001 - 4097)


def test_fifo_is_reopened_when_its_writers_leave(tmp_path: Path, opened: list[Follower]) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    source = follower(str(path), None)
    assert isinstance(source, FifoFollower)
    opened.append(source)
    for text in (b"one\n", b"two\nrest"):
        writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        os.write(writer, text)
        piece = source.read(100)
        assert piece is not None
        assert piece.data == text
        assert source.read(100) is None, "a writer is there, only nothing to read"
        os.close(writer)
        piece = source.read(100)
        assert piece is not None
        assert piece.ends
        assert not source.finished


def test_standard_input_ends(opened: list[Follower]) -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, b"text")
    os.close(write_end)
    source = StdinFollower(read_end)
    piece = source.read(100)
    assert piece is not None
    assert (piece.data, piece.ends, source.finished) == (b"text", False, False)
    piece = source.read(100)
    assert piece is not None
    assert (piece.data, piece.ends, source.finished) == (b"", True, True)
    source.close()
    os.close(read_end)


def test_the_kind_follows_from_the_name(tmp_path: Path, opened: list[Follower]) -> None:
    assert isinstance(follower("-", None), StdinFollower)
    assert isinstance(follower(str(tmp_path / "later"), None), FileFollower)
    with pytest.raises(IsADirectoryError):
        follower(str(tmp_path), None)
