"""Writes collected for a commit: what transactions and batches have in common.

Runs in: supervisor, on the thread that uses it.
Invariants: (1) the newest write of a key is the only one; (2) `_size` never passes `_size_limit`
through `set` alone: what does not fit, and whatever is not plain, goes to `_set`.
Fails with: what `_set` raises.

`EntryBufferPy` is the readable definition, the compiled twin is engine/kernel/plain_writer.pxi: it
is called once an entry of every load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meles.engine.codec.entry import POINTER_BYTES
from meles.engine.ids import MAX_KEY_BYTES
from meles.engine.kernel import NATIVE
from meles.engine.txn.entries import FIRST_RESERVED, NO_META, BytesLike, TimeToLive
from meles.engine.txn.oracle import Published

ENTRY_OVERHEAD: Final = 28  # bytes of log a record takes beside key and value


class EntryBufferPy:
    """Values by key; `_special` has meta and expiry where they are not 0."""

    _writes: dict[bytes, bytes]
    _special: dict[bytes, tuple[int, int]]

    def _collect(
        self,
        published: Published,
        size_limit: int,
        value_limit: int,
        count_limit: int,
        collecting: bool,
        large_limit: int = 0,
        large_shift: int = 0,
    ) -> None:
        """Begin. `collecting` lets plain entries come in.

        A value of `value_limit` bytes or more counts as an address and its size shifted right by
        `large_shift` bits; one of more than `large_limit` is left to `_set`.
        """
        self._large_limit, self._large_shift = large_limit, large_shift
        self._published = published
        self._size_limit, self._value_limit, self._count_limit = (
            size_limit,
            value_limit,
            count_limit,
        )
        self._collecting = collecting
        self._clear()

    def _clear(self) -> None:
        self._writes = {}
        self._special = {}
        self._size = 0  # as the transaction limit counts

    def _set(
        self, key: object, value: object, ttl: TimeToLive, meta: int, discard_earlier: bool
    ) -> None:
        """`set` in full, for what is not plain."""
        raise NotImplementedError

    def set(
        self,
        key: BytesLike,
        value: BytesLike,
        *,
        ttl: TimeToLive = None,
        meta: int = 0,
        discard_earlier: bool = False,
    ) -> None:
        """Set a key: `ttl` in seconds from now, `meta` a byte of yours; `discard_earlier` lets the
        older versions go.

        `TypeError` for what is not bytes-like, `InvalidKeyError`, `BannedKeyError`,
        `TransactionTooBigError` (nothing is lost, it can be committed), `ValueError` for a ttl that
        is not above 0 or a meta that is no byte.
        """
        if (
            self._collecting
            and ttl is None
            and type(key) is bytes
            and type(value) is bytes
            and not self._published.ended
            and not discard_earlier
            and meta is NO_META
        ):
            stored = len(value)
            if stored >= self._value_limit:
                stored = POINTER_BYTES + (stored >> self._large_shift)
            size = len(key) + stored + ENTRY_OVERHEAD
            if (
                0 < len(key) <= MAX_KEY_BYTES
                and key[0] != FIRST_RESERVED
                and (len(value) < self._value_limit or len(value) <= self._large_limit)
                and self._size + size <= self._size_limit
                and len(self._writes) < self._count_limit
            ):
                self._writes[key] = value
                if self._special:
                    self._special.pop(key, None)
                self._size += size
                if self._collecting:  # else another thread ended it meanwhile
                    return
        self._set(key, value, ttl, meta, discard_earlier)

    def __setitem__(self, key: BytesLike, value: BytesLike) -> None:
        self.set(key, value)


if TYPE_CHECKING or NATIVE is None:
    EntryBuffer = EntryBufferPy
else:
    EntryBuffer = NATIVE.EntryBuffer
