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
from meles.engine.txn.entry_buffer import ENTRY_OVERHEAD, EntryBuffer
from meles.engine.txn.txn import entry_size
from meles.engine.writing.writer import Writer

_SPLIT_ENTRIES = 4096  # entries of one commit: larger ones hold the write lock for too long
_SPLIT_BYTES = 4 << 20
_LARGE_SHIFT = 2  # a quarter of a large value counts: what one commit appends is bounded


class WriteBatch(EntryBuffer):
    """Collects sets and deletes; commits by itself as it fills. Made by `db.write_batch()`.

    Each part it commits is atomic and seen at once, the batch as a whole is not; of several writes
    of a key the last counts. It reads nothing, so it never conflicts. A context manager: a clean
    end of `with` flushes, an exception cancels what was not committed. One thread at a time.

    `set` takes what `DB.set` takes; a `ttl` begins at once. It may commit what came before it.
    `TransactionTooBigError` for an entry no transaction could hold: the batch stays as it was.
    `TransactionFinishedError` after `cancel`, after `with` and after an error of a commit, which is
    raised by whichever call made it. Keys, values and other errors are as for `DB.set`.
    """

    def __init__(self, engine: Engine, *, at: int | None = None) -> None:
        self._engine = engine
        self._at = at
        self._finished = False
        self._bans = engine.has_bans
        self._lost: Callable[[], Exception] | None = None  # why entries came to nothing
        self.committed = 0  # entries written so far
        limit = min(engine.options.txn_limit, _SPLIT_BYTES)
        threshold = engine.options.value_threshold
        large = min(threshold, limit // 4)
        largest = min(limit, engine.options.value_log_file_size) if large == threshold else 0
        self._collect(
            engine.oracle.clock, limit, large, _SPLIT_ENTRIES, engine.options.namespace_offset < 0,
            largest, _LARGE_SHIFT,
        )  # fmt: skip

    def _check(self) -> None:
        self._engine.check_open()
        if self._finished:
            raise TransactionFinishedError("this batch has ended", hint="make a new batch")

    def _set(
        self, key: object, value: object, ttl: TimeToLive, meta: int, discard_earlier: bool
    ) -> None:
        self._check()
        bits = META_DISCARD_EARLIER if discard_earlier else 0
        data = value if type(value) is bytes else as_bytes(value, "value")
        self._add(key, data, user_meta(meta) << 8 | bits, expiry_ms(ttl))

    def delete(self, key: BytesLike) -> None:
        """Add a delete; may commit what was collected before it."""
        self._check()
        self._add(key, b"", META_DELETE, 0)

    def __delitem__(self, key: BytesLike) -> None:
        self.delete(key)

    def _add(self, key: object, value: bytes, meta: int, expiry: int) -> None:
        key = writable_key(key)
        if self._bans or self._engine.has_bans:
            self._engine.check_namespace(key)
        size = len(key) + len(value) + ENTRY_OVERHEAD
        if len(value) >= self._value_limit or size > self._size_limit:
            size = self._large_size(key, value)
        if self._size + size > self._size_limit or len(self._writes) >= self._count_limit:
            self.flush()
        self._writes[key] = value
        if meta or expiry:
            self._special[key] = (meta, expiry)
        else:
            self._special.pop(key, None)
        self._size += size

    def _large_size(self, key: bytes, value: bytes) -> int:
        size, limit = entry_size(self._engine, key, value), self._engine.options.txn_limit
        if size > limit:
            raise TransactionTooBigError(
                f"one entry of {size:,} bytes; a transaction holds {limit:,}",
                limit=limit,
                size=size,
            )
        if len(value) >= self._engine.options.value_threshold:
            return size + (len(value) >> _LARGE_SHIFT)
        return size

    def flush(self) -> None:
        """Commit what was collected, if anything. Durable as `sync` says when this returns; the
        batch can be filled again.
        """
        self._check()
        if not self._writes:
            return
        count = len(self._writes)
        try:
            writer = self._engine.check_writable()
            if self._at is not None or not writer.plain.commit(self):
                self._commit(writer)
        except BaseException:
            self.cancel()
            raise
        self._clear()
        self.committed += count

    def _commit(self, writer: Writer) -> None:
        """The writer's long way."""
        values, special = self._writes, self._special
        keys = list(values)
        metas, expiries = [0] * len(keys), [0] * len(keys)
        if special:
            metas = [special[key][0] if key in special else 0 for key in keys]
            expiries = [special[key][1] if key in special else 0 for key in keys]
        if not self._bans and self._engine.has_bans:  # banned since the batch began
            for key in keys:
                self._engine.check_namespace(key)
        writer.commit(keys, list(values.values()), metas, expiries, ts=self._at)

    def cancel(self) -> None:
        """Forget what was not committed. A second call does nothing."""
        self._clear()
        self._finished, self._collecting = True, False

    def end(self, refusal: Callable[[], Exception]) -> None:
        """The database closes."""
        if not self._finished and self._writes:
            self._lost = refusal
        self.cancel()

    def __enter__(self) -> WriteBatch:
        self._check()
        return self

    def __exit__(self, kind: object, *_: object) -> Literal[False]:
        if kind is None and not self._finished:
            self.flush()
        self.cancel()
        if kind is None and self._lost is not None:
            raise self._lost()
        return False
