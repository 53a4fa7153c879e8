"""What tests of backup and restore share: streams of a database, and what a database holds."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import meles
from meles.engine.backup.format import (
    HEAD,
    End,
    Start,
    encode_end,
    encode_entries,
    encode_frame,
    encode_start,
    make_header,
)
from meles.engine.codec.columns import Columns
from meles.engine.codec.header import HEADER_BYTES

CALM: dict[str, Any] = {"workers": "inline", "sync": "none"}

Entry = tuple[bytes, int, bytes, int, float, bool, bool, bool]


def backup(db: meles.DB, **wanted: Any) -> bytes:
    """The stream of a backup."""
    sink = io.BytesIO()
    report = db.backup(sink, **wanted)
    assert report.bytes == len(sink.getvalue())
    return sink.getvalue()


def files(streams: Iterable[bytes]) -> list[io.BytesIO]:
    return [io.BytesIO(stream) for stream in streams]


def restored(path: Path, *streams: bytes, **options: Any) -> meles.RestoreReport:
    return meles.restore(files(streams), path, **options)


def entries(db: meles.DB | meles.Txn, **wanted: Any) -> list[Entry]:
    """Every version, with all that an item says of it, but for whether it has expired by now."""
    return [
        (
            item.key, item.version, item.value, item.meta, item.expires_at,
            item.deleted and not item.expires_at, item.is_merge,
            item.discards_earlier,
        )
        for item in db.iterate(all_versions=True, **wanted)
    ]  # fmt: skip


def content_of(path: Path, **options: Any) -> list[Entry]:
    """What a closed directory holds; everything in it checks out."""
    with meles.open(path, mode="read_only", **options) as db:
        assert db.verify(values=True).problems == []
        return entries(db)


def beside(path: Path) -> list[str]:
    """What lies in the directory of a path, but for the path itself."""
    return sorted(other.name for other in path.parent.iterdir() if other != path)


def split(data: bytes) -> list[bytes]:
    """A stream's header, then its frames."""
    at, found = HEADER_BYTES, [data[:HEADER_BYTES]]
    while at < len(data):
        stop = at + HEAD.size + HEAD.unpack_from(data, at)[0]
        found.append(data[at:stop])
        at = stop
    return found


def payloads(data: bytes) -> list[bytes]:
    return [frame[HEAD.size :] for frame in split(data)[1:]]


def made_of(*contents: bytes, salt: bytes = b"s" * 16) -> bytes:
    """A stream of these payloads, each with the number and checksum of its place."""
    header = make_header(salt)
    frames = [encode_frame(each, n, header.seed) for n, each in enumerate(contents, 1)]
    return header.encode() + b"".join(frames)


def stream_of(*batches: Columns, start: Start | None = None, end: End | None = None) -> bytes:
    """A stream of these entries, a frame for each batch; what is not given is as it should be."""
    versions = [version for batch in batches for version in batch.versions]
    start = start or Start(0, max(versions, default=0))
    size = sum(len(part) for batch in batches for part in (*batch.keys, *batch.values))
    end = end or End(len(versions), size, start.token)
    return made_of(encode_start(start), *map(encode_entries, batches), encode_end(end))


def columns(*rows: tuple[bytes, int, int, int, bytes]) -> Columns:
    """Entries of (key, version, meta, expiry, value)."""
    made = Columns()
    for row in rows:
        made.append(*row)
    return made
