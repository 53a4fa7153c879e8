"""Log frames: records and printed text share a pipe, and neither can spoil the other."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from meles.workers.wire.log_frames import (
    MARK,
    MAX_FRAME,
    MAX_LINE,
    LogDecoder,
    LogLine,
    encode_line,
)

texts = st.text(max_size=40)
records = st.builds(
    LogLine, st.integers(0, 50), texts, texts, texts, st.floats(0, 2e9), texts,
    st.integers(0, 9999), texts,
)  # fmt: skip
printed = st.text(
    st.characters(blacklist_characters="\r\n", blacklist_categories=["Cs"]), min_size=1, max_size=60
)


def feed(stream, sizes):
    decoder, out = LogDecoder(), []
    for size in sizes:
        out += decoder.feed(stream[:size])
        stream = stream[size:]
    return out + decoder.feed(stream) + decoder.finish()


@given(st.lists(records | printed, max_size=8), st.lists(st.integers(0, 300), max_size=20))
def test_records_and_printed_lines_come_out_in_order(items, sizes):
    stream = b"".join(
        item.encode() + b"\n" if isinstance(item, str) else encode_line(item) for item in items
    )
    assert feed(stream, sizes) == items


@settings(max_examples=300)
@given(st.binary(max_size=400), records, st.lists(st.integers(0, 300), max_size=20))
def test_a_record_after_a_line_of_garbage_is_found(garbage, record, sizes):
    stream = garbage.replace(bytes([MARK]), b"") + b"\n" + encode_line(record)
    assert feed(stream, sizes)[-1] == record


@settings(max_examples=300)
@given(st.binary(max_size=600), st.lists(st.integers(0, 100), max_size=20))
def test_garbage_comes_out_as_text_and_nothing_stays(garbage, sizes):
    decoder = LogDecoder()
    for size in sizes:
        decoder.feed(garbage[:size])
        garbage = garbage[size:]
    decoder.feed(garbage)
    decoder.finish()
    assert decoder.finish() == []


@given(st.text(max_size=20_000), st.text(max_size=20_000), st.text(max_size=3000))
def test_a_record_is_never_longer_than_an_atomic_write(message, trace, name):
    record = LogLine(20, name, message * 3, trace, 1.0, name, 3, name)
    frame = encode_line(record)
    assert len(frame) <= MAX_FRAME
    (out,) = feed(frame, [])
    assert out.level == 20
    assert out.message == record.message or out.message.endswith("[cut]")


def test_a_long_record_says_that_it_was_cut():
    (out,) = feed(encode_line(LogLine(40, "n", "x" * 10_000, "y" * 10_000)), [])
    assert out.message.startswith("xxx")
    assert out.message.endswith(" ... [cut]")
    assert out.trace.startswith("yyy")
    assert out.trace.endswith(" ... [cut]")


def test_endless_text_without_a_newline_is_passed_on_in_pieces():
    decoder = LogDecoder()
    out = decoder.feed(b"z" * (3 * MAX_LINE + 5))
    assert out == ["z" * MAX_LINE] * 3
    assert decoder.finish() == ["z" * 5]


def test_a_frame_cut_short_at_the_end_is_text():
    frame = encode_line(LogLine(20, "n", "hello"))
    (out,) = feed(frame[:-1], [])
    assert isinstance(out, str)


@pytest.mark.parametrize("at", range(7, 20))
def test_a_damaged_frame_is_text_and_the_next_one_stands(at):
    frame = bytearray(encode_line(LogLine(20, "name", "hello")))
    frame[at] ^= 0x10
    record = LogLine(30, "n", "next")
    out = feed(bytes(frame) + encode_line(record), [])
    assert out[-1] == record
    assert all(isinstance(item, str) for item in out[:-1])
