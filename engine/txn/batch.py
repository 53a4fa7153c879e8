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
from meles.engine.ids import MAX_KEY_BYTES
from meles.engine.txn.entries import (
    FIRST_RESERVED,
    NO_META,
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
    """Collects sets and deletes; commits by itself as it fills. Made by `db.write_batch()`.

    Each part it commits is atomic and seen at once, the batch as a whole is not; of several writes
    of a key the last counts. It reads nothing, so it never conflicts. A context manager: a clean
    end of `with` flushes, an exception cancels what was not committed. One thread at a time.

    `TransactionFinishedError` after `cancel`, after `with` and after an error of a commit, which is
    raised by whichever call made it. Keys, values and other errors are as for `DB.set`.
    """

    def __init__(self, engine: Engine, *, at: int | None = None) -> None:
        self._engine = engine
        self._at = at
        self._values: dict[bytes, bytes] = {}
        self._special: dict[bytes, tuple[int, int]] = {}  # meta and expiry where they are not 0
        self._size = 0
        self._limit = min(engine.options.txn_limit, _SPLIT_BYTES)
        self._finished = False
        self._bans = engine.has_bans
        self._threshold = min(engine.options.value_threshold, self._limit // 4)
        self._lost: Callable[[], Exception] | None = None  # why entries came to nothing
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
        """Add a set; may commit what was collected before it. Arguments as in `DB.set`; `ttl`
        begins now. `TransactionTooBigError` for an entry no transaction could hold: the batch stays
        as it was.
        """
        if ttl is None and meta is NO_META and not discard_earlier:
            # the plain case, kept short: it is called once an entry of every load
            if type(key) is bytes and type(value) is bytes and not self._finished:
                length = len(key)
                if 0 < length <= MAX_KEY_BYTES and key[0] != FIRST_RESERVED:
                    size = length + len(value) + ENTRY_OVERHEAD
                    total = self._size + size
                    if size < self._threshold and total <= self._limit and not self._bans:
                        values = self._values
                        if len(values) < _SPLIT_ENTRIES:
                            values[key] = value
                            if self._special:
                                self._special.pop(key, None)
                            self._size = total
                            return
            self._check()
            self._add(key, value if type(value) is bytes else as_bytes(value, "value"), 0, 0)
            return
        self._check()
        bits = META_DISCARD_EARLIER if discard_earlier else 0
        data = value if type(value) is bytes else as_bytes(value, "value")
        self._add(key, data, user_meta(meta) << 8 | bits, expiry_ms(ttl))

    def delete(self, key: BytesLike) -> None:
        """Add a delete; may commit what was collected before it."""
        self._check()
        self._add(key, b"", META_DELETE, 0)

    def __setitem__(self, key: BytesLike, value: BytesLike) -> None:
        self.set(key, value)

    def __delitem__(self, key: BytesLike) -> None:
        self.delete(key)

    def _add(self, key: BytesLike, value: bytes, meta: int, expiry: int) -> None:
        key = writable_key(key)
        if self._bans or self._engine.has_bans:
            self._engine.check_namespace(key)
        size = len(key) + len(value) + ENTRY_OVERHEAD
        if len(value) >= self._threshold or size > self._limit:
            size = self._large_size(key, value)
        if self._size + size > self._limit or len(self._values) >= _SPLIT_ENTRIES:
            self.flush()
        self._values[key] = value
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
            return size + len(value) // 4  # bound what one commit writes to the value log
        return size

    def flush(self) -> None:
        """Commit what was collected, if anything. Durable as `sync` says when this returns; the
        batch can be filled again.
        """
        self._check()
        values, special = self._values, self._special
        self._values, self._special, self._size = {}, {}, 0
        if not values:
            return
        writer = self._engine.check_writable()
        keys = list(values)
        metas, expiries = [0] * len(keys), [0] * len(keys)
        if special:
            metas = [special[key][0] if key in special else 0 for key in keys]
            expiries = [special[key][1] if key in special else 0 for key in keys]
        try:
            if not self._bans and self._engine.has_bans:  # banned since the batch began
                for key in keys:
                    self._engine.check_namespace(key)
            writer.commit(keys, list(values.values()), metas, expiries, ts=self._at)
        except BaseException:
            self._finished = True
            raise
        self.committed += len(keys)

    def cancel(self) -> None:
        """Forget what was not committed. A second call does nothing."""
        self._values, self._special, self._size, self._finished = {}, {}, 0, True

    def end(self, refusal: Callable[[], Exception]) -> None:
        """The database closes."""
        if not self._finished and self._values:
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
