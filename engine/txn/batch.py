"""Write batches: many blind writes, committed in transactions of bounded size.

Runs in: supervisor, on the thread that uses the batch.
Invariants: (1) each split is atomic, the batch is not; (2) a batch reads nothing, so it never
conflicts; (3) an exception inside `with` cancels what was not flushed; (4) after `flush` the batch
is usable, after `cancel` or leaving `with` it is finished.
Fails with: `TransactionFinishedError`, what committing raises; the first such error ends the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from meles.engine.codec.entry import META_DELETE, META_DISCARD_EARLIER
from meles.engine.engine import Engine
from meles.engine.errors import TransactionFinishedError, TransactionTooBigError
from meles.engine.txn.entries import (
    BytesLike,
    TimeToLive,
    as_bytes,
    expiry_ms,
    user_meta,
    writable_key,
)
from meles.engine.txn.txn import ENTRY_OVERHEAD, entry_size

_SPLIT_ENTRIES = 4096  # entries of one commit: larger ones hold the write lock for too long
_SPLIT_BYTES = 4 << 20


class WriteBatch:
    """Collects sets and deletes; commits by itself as it fills. Made by `db.write_batch()`."""

    def __init__(self, engine: Engine, *, at: int | None = None) -> None:
        self._engine = engine
        self._at = at
        self._entries: dict[bytes, tuple[bytes, int, int]] = {}
        self._size = 0
        self._limit = min(engine.options.txn_limit, _SPLIT_BYTES)
        self._finished = False
        self._plain = not engine.has_bans
        self._threshold = min(engine.options.value_threshold, self._limit // 4)
        self.committed = 0  # entries written so far

    def _check(self) -> None:
        self._engine.check_open()
        if self._finished:
            raise TransactionFinishedError("this batch has ended", hint="make a new batch")

    def set(
        self,
        key: BytesLike,
        value: BytesLike,
        *,
        ttl: TimeToLive = None,
        meta: int = 0,
        discard_earlier: bool = False,
    ) -> None:
        """Add a set; may commit what was collected before it."""
        bits = META_DISCARD_EARLIER if discard_earlier else 0
        if meta:
            bits |= user_meta(meta) << 8
        data = value if type(value) is bytes else as_bytes(value, "value")
        self._add(key, data, bits, 0 if ttl is None else expiry_ms(ttl))

    def delete(self, key: BytesLike) -> None:
        """Add a delete."""
        self._add(key, b"", META_DELETE, 0)

    def __setitem__(self, key: BytesLike, value: BytesLike) -> None:
        self.set(key, value)

    def __delitem__(self, key: BytesLike) -> None:
        self.delete(key)

    def _add(self, key: BytesLike, value: bytes, meta: int, expiry: int) -> None:
        if self._finished or self._engine.refusal is not None:
            self._check()
        key = writable_key(key)
        if not self._plain or self._engine.has_bans:
            self._engine.check_namespace(key)
        if len(value) < self._threshold:
            size = len(key) + len(value) + ENTRY_OVERHEAD
        else:
            size = self._large_size(key, value)
        if self._size + size > self._limit or len(self._entries) >= _SPLIT_ENTRIES:
            self.flush()
        self._entries[key] = (value, meta, expiry)
        self._size += size

    def _large_size(self, key: bytes, value: bytes) -> int:
        size = entry_size(self._engine, key, value)
        if size > self._engine.options.txn_limit:
            raise TransactionTooBigError(
                f"one entry of {size:,} bytes; a transaction holds {self._limit:,}",
                limit=self._limit, size=size,
            )  # fmt: skip
        if len(value) >= self._engine.options.value_threshold:
            return size + len(value) // 4  # bound what one commit writes to the value log
        return size

    def flush(self) -> None:
        """Commit what was collected. Durable as `sync` says when this returns."""
        self._check()
        entries, self._entries, self._size = self._entries, {}, 0
        if not entries:
            return
        writer = self._engine.check_writable()
        try:
            values, metas, expiries = zip(*entries.values(), strict=True)
            writer.commit(list(entries), values, metas, expiries, ts=self._at)
        except BaseException:
            self._finished = True
            raise
        self.committed += len(entries)

    def cancel(self) -> None:
        """Forget what was not committed. A second call does nothing."""
        self._entries, self._size, self._finished = {}, 0, True

    def end(self, _refusal: Callable[[], Exception] | None) -> None:
        """The database closes."""
        self.cancel()

    def __enter__(self) -> WriteBatch:
        self._check()
        return self

    def __exit__(self, kind: object, *_: object) -> Literal[False]:
        if kind is None and not self._finished:
            self.flush()
        self.cancel()
        return False
