"""What tests of backup and restore share: streams of a database, and what a database holds."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import meles

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
