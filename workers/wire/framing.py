"""Frames: msgpack maps in a byte stream, and back, piece by piece.

Runs in: supervisor and workers. Touches no descriptor: bytes in, maps out. See PROTOCOL.md.
Invariants: (1) a length is judged before anything is kept for it; (2) the checksum covers the
length and the payload, so a damaged length is not taken for a long wait; (3) after the first bad
frame the stream is over: nothing behind it can be trusted.
Fails with: `RemoteProtocolError` for what came in, `LocalProtocolError` for what would go out.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import msgpack
from meles.engine.codec.checksum import crc32c
from meles.workers.wire.errors import LocalProtocolError, RemoteProtocolError

# The longest message is a compaction of many tables between long keys; one beyond this is a defect.
# It also bounds what a hostile frame can make of itself: 1 MiB of empty maps takes 75 MiB decoded.
MAX_PAYLOAD: Final = 1 << 20
MAX_ITEMS: Final = 1 << 17  # of one array: table ids of a relocation come closest
MAX_FIELDS: Final = 1 << 10  # of one map: the counters of a result come closest

LENGTH: Final = struct.Struct("<I")  # bytes of the payload
HEADER: Final = struct.Struct("<II")  # the length, CRC-32C of length and payload
HEADER_BYTES: Final = 8
assert HEADER.size == HEADER_BYTES  # noqa: S101 - ties the code to PROTOCOL.md


def _checksum(length: int, payload: bytes | memoryview) -> int:
    return crc32c(payload, crc32c(LENGTH.pack(length)))


def encode_frame(plain: dict[str, Any]) -> bytes:
    """One frame. `LocalProtocolError` if it is too long or holds what msgpack cannot say."""
    try:
        payload: bytes = msgpack.packb(plain, use_bin_type=True, unicode_errors="surrogateescape")
    except (TypeError, ValueError, OverflowError) as error:
        raise LocalProtocolError(
            f"message {plain.get('t')!r} cannot be encoded: {error}"
        ) from error
    length = len(payload)
    if length > MAX_PAYLOAD:
        raise LocalProtocolError(
            f"message {plain.get('t')!r} has {length:,} bytes, the limit is {MAX_PAYLOAD:,}"
        )
    return HEADER.pack(length, _checksum(length, payload)) + payload


def decode_payload(payload: bytes | memoryview) -> dict[str, Any]:
    """The map a payload holds. `RemoteProtocolError` when it is anything else."""
    try:
        plain = msgpack.unpackb(
            payload,
            raw=False,
            strict_map_key=True,
            unicode_errors="surrogateescape",
            max_str_len=MAX_PAYLOAD,
            max_bin_len=MAX_PAYLOAD,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_FIELDS,
            max_ext_len=0,
        )
    except (ValueError, TypeError, RecursionError, OverflowError, msgpack.UnpackException) as error:
        raise RemoteProtocolError(f"a frame is not msgpack: {error}") from error
    if not isinstance(plain, dict):
        raise RemoteProtocolError(f"a frame holds a {type(plain).__name__}, not a map")
    return plain


class FrameDecoder:
    """Collects bytes until they make frames. Holds at most one frame that is not whole."""

    __slots__ = ("_broken", "_buffer")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._broken = False

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Take bytes; returns the frames they complete, in order.

        Raises `RemoteProtocolError` at the first bad frame, and ever after; good ones before it in
        the same bytes are not returned either.
        """
        if self._broken:
            raise RemoteProtocolError("the stream broke earlier")
        self._buffer += data
        try:
            return self._whole_frames()
        except RemoteProtocolError:
            self._broken = True
            self._buffer.clear()
            raise

    def _whole_frames(self) -> list[dict[str, Any]]:
        frames = []
        at = 0
        with memoryview(self._buffer) as view:
            while len(view) - at >= HEADER_BYTES:
                length, crc = HEADER.unpack_from(view, at)
                if not 0 < length <= MAX_PAYLOAD:
                    raise RemoteProtocolError(f"a frame claims {length:,} bytes")
                stop = at + HEADER_BYTES + length
                if stop > len(view):
                    break
                with view[at + HEADER_BYTES : stop] as payload:
                    if _checksum(length, payload) != crc:
                        raise RemoteProtocolError("a frame has a wrong checksum")
                    frames.append(decode_payload(payload))
                at = stop
        del self._buffer[:at]
        return frames

    @property
    def pending(self) -> int:
        """Bytes of a frame that is not whole yet."""
        return len(self._buffer)
