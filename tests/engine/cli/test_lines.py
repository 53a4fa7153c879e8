"""Lines come out whole, in order and bounded, however the bytes were cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from meles.engine.cli.lines import LineSplitter

PIECES = st.lists(st.binary(max_size=12).map(lambda b: b.replace(b"\x00", b"\n")), max_size=20)


@given(PIECES)
def test_any_cutting_gives_the_same_lines(pieces: list[bytes]) -> None:
    splitter = LineSplitter(1000)
    lines = [line for piece in pieces for line in splitter.feed(piece)] + splitter.finish()
    whole = b"".join(pieces).split(b"\n")
    assert lines == (whole if whole[-1] else whole[:-1])
    assert splitter.pending == 0


def test_only_a_newline_ends_a_line() -> None:
    assert LineSplitter(100).feed(b"a\rb\x0bc\x85\r\nd\n") == [b"a\rb\x0bc\x85\r", b"d"]


def test_too_long_line_is_cut_one_byte_above_the_limit_and_counted_fully() -> None:
    splitter = LineSplitter(5)
    assert splitter.feed(b"0123") == []
    assert splitter.feed(b"4567") == []
    assert splitter.feed(b"89") == []
    assert splitter.pending == 10
    assert splitter.feed(b"ab\nnext\n") == [b"012345", b"next"]
    assert splitter.pending == 0


def test_after_finish_a_new_line_begins() -> None:
    splitter = LineSplitter(100)
    assert splitter.feed(b"left") == []
    assert splitter.finish() == [b"left"]
    assert splitter.finish() == []
    assert splitter.feed(b"over\n") == [b"over"]
