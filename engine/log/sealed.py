"""The write-ahead log of an encrypted directory: plain in memory, sealed in the file.

Runs in: supervisor (writes, replays) and flusher (reads).
Owns: as the log writer, and the plain copy, which is memory of this process alone.
Invariants: (1) a frame is in the file as long as in memory and at the same offset, a tag of 16
bytes behind it: offsets mean the same in both; (2) a frame is sealed once it is whole, so what is
sealed for an offset never changes, and no nonce is used for two things; (3) the writer that made a
file is the only one that seals transactions into it: recovery only ends it, with an authenticator
that needs no nonce; (4) what checks out and was not sealed for its place is refused, not cut off.
Fails with: `CorruptionError`, `EncryptionKeyError`; as the log writer.
"""

from __future__ import annotations

import hmac
import mmap

from meles.engine.codec.checksum import crc32c
from meles.engine.codec.header import HEADER_BYTES, MAGIC_WAL, FileHeader, decode_header
from meles.engine.crypt.file_cipher import TAG_BYTES, FileCipher, SealBroken, What
from meles.engine.crypt.keys import cipher_for, new_header, seals
from meles.engine.errors import CorruptionError
from meles.engine.fs.files import Directory, private_memory
from meles.engine.log.frame import BODY, BODY_BYTES, KIND_END, PREFIX, PREFIX_BYTES, aligned
from meles.engine.log.reader import places_behind
from meles.engine.log.writer import LogWriter


def new_log(directory: Directory, mem_id: int, expected: int = 0) -> LogWriter:
    """A log as the directory's keys want it, `expected` bytes long when it is full."""
    return (SealedLogWriter if seals(directory.keys) else LogWriter)(directory, mem_id, expected)


class SealedLogWriter(LogWriter):
    """`map` is the plain log in memory; `publish` seals what was put there into the file."""

    __slots__ = ("_cipher", "_published", "_stored")

    gap = TAG_BYTES

    def _header(self, directory: Directory, mem_id: int) -> FileHeader:
        header, cipher = new_header(directory.keys, MAGIC_WAL, mem_id)
        assert cipher is not None, "asked for by `new_log`"  # noqa: S101
        self._cipher = cipher
        self._published = HEADER_BYTES
        return header

    def _mapped(self, room: int) -> mmap.mmap:
        plain = private_memory(room)
        if self.room:
            plain[: self.room] = self.map[: self.room]
        self._stored = super()._mapped(room)
        return plain

    def _begin(self, header: FileHeader) -> None:
        super()._begin(header)
        self._stored[:HEADER_BYTES] = header.encode()

    @property
    def published(self) -> int:
        """Up to where the file holds what was put into the log."""
        return self._published

    def publish(self, end: int) -> None:
        """Seal every frame that is whole up to `end`."""
        at, stored, plain = self._published, self._stored, self.map
        while at < end:
            length = PREFIX.unpack_from(plain, at)[0]
            start = at + PREFIX_BYTES
            body = plain[start : start + length]
            sealed = seal_body(self._cipher, body, at)
            stored[start : start + len(sealed)] = sealed
            stored[at:start] = PREFIX.pack(length, crc32c(sealed, self.seed ^ length))
            self._published = at = aligned(start + len(sealed))

    def append_body(self, body: bytes) -> int:
        start = super().append_body(body)
        self.publish(self.end)
        return start

    def discard(self) -> None:
        super().discard()
        self._stored.close()


def seal_body(cipher: FileCipher, body: bytes, offset: int) -> bytes:
    """A frame's body as it is stored, for the frame at `offset`. That of an end frame is no secret,
    and whoever recovers the log may have to write it: it gets an authenticator.
    """
    if len(body) == BODY_BYTES:  # no transaction is as short
        return body + cipher.mark(body, What.LOG_END, offset)
    return cipher.seal(body, What.LOG_FRAME, offset)


def end_frame(
    directory: Directory, header: bytes, offset: int, last_ts: int, records: int
) -> bytes:
    """The end record of a log with this header: the prefix before `offset` is the whole log."""
    parsed = decode_header(header, MAGIC_WAL, "")
    cipher = cipher_for(directory.keys, parsed, "")
    body = BODY.pack(last_ts, records, KIND_END, 0)
    length = len(body)
    if cipher is not None:
        body = seal_body(cipher, body, offset)
    return PREFIX.pack(length, crc32c(body, parsed.seed ^ length)) + body


def map_log(directory: Directory, name: str) -> mmap.mmap:
    """A log as `LogReader` takes it: the file mapped, or what was sealed in it in private memory.

    What is no frame is left as it is in the file.
    """
    mapping = directory.map(name)
    try:
        path = directory.join(name)
        header = decode_header(mapping[:HEADER_BYTES], MAGIC_WAL, path)
        cipher = cipher_for(directory.keys, header, path)
    except CorruptionError:
        if any(mapping[:HEADER_BYTES]):
            mapping.close()
            raise
        return mapping  # never written, or lost: nothing in it can be read
    except BaseException:
        mapping.close()
        raise
    if cipher is None:
        return mapping
    try:
        return _Opening(mapping, header.seed, cipher, path).plain()
    finally:
        mapping.close()


class _Opening:
    """Opens every frame of a sealed log."""

    def __init__(self, data: mmap.mmap, seed: int, cipher: FileCipher, path: str) -> None:
        self._data = data
        self._seed = seed
        self._cipher = cipher
        self._path = path
        self._out = private_memory(len(data))

    def plain(self) -> mmap.mmap:
        data, out = self._data, self._out
        out[:HEADER_BYTES] = data[:HEADER_BYTES]
        at: int | None = HEADER_BYTES
        end = HEADER_BYTES
        while at is not None:
            while (after := self._open(at)) is not None:
                at = end = after
            rest = data[end:]
            out[end:] = rest  # not frames, or zeros
            written = end + len(rest.rstrip(b"\0"))
            places = places_behind(data, end, written, TAG_BYTES)
            at = next((place for place in places if self._stored(place) is not None), None)
        return out

    def _stored(self, at: int) -> tuple[int, bytes] | None:
        """Length of the body, and what is stored, of the frame there if its checksum holds."""
        start = at + PREFIX_BYTES
        if start + BODY_BYTES + TAG_BYTES > len(self._data):
            return None
        length, crc = PREFIX.unpack_from(self._data, at)
        stop = start + length + TAG_BYTES
        if length < BODY_BYTES or stop > len(self._data):
            return None
        stored = self._data[start:stop]
        return (length, stored) if crc32c(stored, self._seed ^ length) == crc else None

    def _open(self, at: int) -> int | None:
        """Put the frame there into the plain log; where the next one begins."""
        found = self._stored(at)
        if found is None:
            return None
        length, stored = found
        start = at + PREFIX_BYTES
        body = self._body(stored, at)
        self._out[start : start + length] = body
        self._out[start + length : start + length + TAG_BYTES] = bytes(TAG_BYTES)
        self._out[at:start] = PREFIX.pack(length, crc32c(body, self._seed ^ length))
        return min(aligned(start + len(stored)), len(self._data))

    def _body(self, stored: bytes, at: int) -> bytes:
        try:
            if len(stored) > BODY_BYTES + TAG_BYTES:
                return self._cipher.open(stored, What.LOG_FRAME, at)
            body = stored[:BODY_BYTES]
            mark = self._cipher.mark(body, What.LOG_END, at)
            if hmac.compare_digest(mark, stored[BODY_BYTES:]):
                return body
            raise SealBroken("the seal is broken")
        except SealBroken as error:
            raise CorruptionError(
                f"a frame that checks out was not written here: {error}",
                path=self._path, offset=at, kind="wal frame",
            ) from None  # fmt: skip
