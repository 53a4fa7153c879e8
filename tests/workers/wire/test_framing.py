"""Frames: what goes in comes out however it is cut, and nothing else comes out."""

import struct

import msgpack
import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st
from meles.workers.wire.errors import LocalProtocolError, RemoteProtocolError
from meles.workers.wire.framing import MAX_PAYLOAD, FrameDecoder, encode_frame

scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary()
plains = st.dictionaries(
    st.text(), st.recursive(scalars, lambda inner: st.lists(inner, max_size=5), max_leaves=20)
)


def frame_of(payload: bytes) -> bytes:
    length = struct.pack("<I", len(payload))
    return length + struct.pack("<I", crc32c(payload, crc32c(length))) + payload


@given(st.lists(plains, max_size=5), st.data())
def test_frames_survive_any_cutting(messages, data):
    stream = b"".join(encode_frame(plain) for plain in messages)
    decoder, out = FrameDecoder(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        out += decoder.feed(stream[:size])
        stream = stream[size:]
    assert out == messages
    assert decoder.pending == 0


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=200), max_size=8))
def test_garbage_is_refused_or_waited_for_and_nothing_else(chunks):
    decoder = FrameDecoder()
    for chunk in chunks:
        try:
            assert decoder.feed(chunk) == []
        except RemoteProtocolError:
            with pytest.raises(RemoteProtocolError):
                decoder.feed(encode_frame({"t": "Ready"}))
            assert decoder.pending == 0
            return
    assert decoder.pending <= MAX_PAYLOAD + 8


@settings(max_examples=300)
@given(st.binary(max_size=300))
def test_a_frame_with_any_payload_gives_a_map_or_is_refused(payload):
    try:
        (plain,) = FrameDecoder().feed(frame_of(payload)) or [None]
    except RemoteProtocolError:
        return
    assert isinstance(plain, dict)
    assert all(isinstance(key, str | bytes) for key in plain)


@given(plains, st.data())
def test_a_flipped_bit_never_yields_a_message(plain, data):
    frame = bytearray(encode_frame(plain))
    bit = data.draw(st.integers(0, len(frame) * 8 - 1))
    frame[bit // 8] ^= 1 << bit % 8
    decoder = FrameDecoder()
    try:
        out = decoder.feed(bytes(frame))
    except RemoteProtocolError:
        return
    assert out == []  # the length grew: it waits, within the limit
    assert bit < 32


def test_a_length_is_judged_before_the_payload_comes():
    for length in (0, MAX_PAYLOAD + 1, 2**32 - 1):
        with pytest.raises(RemoteProtocolError, match="claims"):
            FrameDecoder().feed(struct.pack("<II", length, 0))


def test_the_longest_message_passes_and_one_byte_more_does_not():
    room = MAX_PAYLOAD - len(msgpack.packb({"t": ""})) - 4  # bin32 header instead of fixstr
    frame = encode_frame({"t": bytes(room)})
    assert len(frame) == MAX_PAYLOAD + 8
    assert FrameDecoder().feed(frame) == [{"t": bytes(room)}]
    with pytest.raises(LocalProtocolError, match="limit"):
        encode_frame({"t": bytes(room + 1)})


@pytest.mark.parametrize(
    "payload",
    [
        b"\xdd\xff\xff\xff\xff",  # an array of four billion
        b"\xdf\xff\xff\xff\xff",  # a map of four billion
        b"\xc6\xff\xff\xff\xff",  # bytes of four billion
        b"\x91" * 5000 + b"\x90",  # deep
        b"\x81\xa1t\xc7\x04\x01abcd",  # an extension
        b"\x81\x01\x02",  # a key that is a number
        b"\x80\x80",  # two values
        b"\x93\x01\x02\x03",  # not a map
        msgpack.packb({"t": [0] * (1 << 18)}),  # too many items
        msgpack.packb({str(i): i for i in range(2000)}),  # too many fields
        b"",
    ],
    ids=range(11),
)
def test_bombs_and_nonsense_are_refused(payload):
    with pytest.raises(RemoteProtocolError):
        FrameDecoder().feed(frame_of(payload))


def test_what_msgpack_cannot_say_is_our_error():
    for value in (object(), 2**70):
        with pytest.raises(LocalProtocolError):
            encode_frame({"t": value})


def test_names_that_are_not_utf8_pass():
    name = b"/data/\xff".decode("utf-8", "surrogateescape")
    assert FrameDecoder().feed(encode_frame({"t": name})) == [{"t": name}]
