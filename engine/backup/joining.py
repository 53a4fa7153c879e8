"""Streams that follow one another, as the one they add up to. Pure.

Runs in: supervisor.
Invariants: (1) the entries of an increment replace those of all before it: what it neither has nor
refers to is gone; (2) one pass, however many streams: of each no more is held than a batch; (3)
every stream is read to its end, also when nothing of it is needed any more.
Fails with: `ConfigError` for streams that do not follow one another, `CorruptionError` for a
reference to what is not there, and as reading them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, TypeAlias

from meles.engine.backup.format import KEPT, damage, refers_to
from meles.engine.backup.reading import StreamReader
from meles.engine.codec.columns import Columns
from meles.engine.errors import ConfigError, CorruptionError

_BATCH: Final = 1024  # entries
_BATCH_BYTES: Final = 1 << 20

Row: TypeAlias = tuple[bytes, int, int, int, bytes]  # key, -version, meta, expiry, value


def check_chain(streams: Sequence[StreamReader]) -> None:
    """Whether the first is a full backup and each other one begins where the one before ended."""
    before = 0
    for at, stream in enumerate(streams):
        since = stream.start.since
        if since != before:
            if not at:
                raise ConfigError(
                    f"{stream.path} is an increment since version {since:,}",
                    hint="give the full backup first, then its increments in order",
                )
            raise ConfigError(
                f"{stream.path} is an increment since version {since:,}, and "
                f"{streams[at - 1].path} ends at version {before:,}",
                hint="give the full backup first, then each increment in the order it was made",
            )
        before = stream.start.token


def joined(streams: Sequence[StreamReader]) -> Iterator[Columns]:
    """The entries that were there when the last stream was made, in order.

    Increments add up among themselves as they do on a full stream, so this is done in halves: a
    long chain is not a deep one.
    """
    if len(streams) == 1:
        return streams[0].batches()
    half = len(streams) // 2
    return _applied(joined(streams[:half]), joined(streams[half:]), streams[half:])


def _applied(
    base: Iterator[Columns], changes: Iterator[Columns], of: Sequence[StreamReader]
) -> Iterator[Columns]:
    """What increments make of the entries before them."""
    old = _rows(base)
    row = next(old, None)
    out, size = Columns(), 0
    for key, older, meta, expiry, value in _rows(changes):
        if meta & KEPT:
            while row is not None and row[:2] < (key, older):
                row = next(old, None)
            if row is None or row[:2] != (key, older) or not _fits((meta, expiry, value), row[2:]):
                raise _lost(of)
            _, _, meta, expiry, value = row
        out.append(key, -older, meta, expiry, value)
        size += len(value)
        if len(out) >= _BATCH or size >= _BATCH_BYTES:
            yield out
            out, size = Columns(), 0
    if len(out):
        yield out
    for _ in old:
        pass


def _fits(kept: tuple[int, int, bytes], row: tuple[int, int, bytes]) -> bool:
    """Whether a reference is to this entry, or the same reference to something further back."""
    return kept == row or refers_to(kept, row)


def _lost(of: Sequence[StreamReader]) -> CorruptionError:
    path = of[0].path if len(of) == 1 else f"{of[0].path} ... {of[-1].path}"
    return damage(
        "it refers to an entry that is not in the streams before it: they are not of one "
        "database, or something was committed below their versions",
        path, of[0].read_bytes,
    )  # fmt: skip


def _rows(batches: Iterator[Columns]) -> Iterator[Row]:
    for batch in batches:
        for key, version, meta, expiry, value in zip(
            batch.keys, batch.versions, batch.metas, batch.expiries, batch.values, strict=True
        ):
            yield key, -version, meta, expiry, value
