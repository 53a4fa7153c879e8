"""One entry as an iterator or a transaction hands it out.

Runs in: supervisor.
Fails with: `CorruptionError` when a value is asked for that the value log does not hold undamaged.
"""

from __future__ import annotations

from meles.engine.clock import now_ms
from meles.engine.codec.entry import (
    META_DELETE,
    META_DISCARD_EARLIER,
    META_MERGE,
    META_POINTER,
    POINTER_BYTES,
    ValuePointer,
)
from meles.engine.read_view import ReadView


class Item:
    """One entry as an iterator or `Txn.item` gives it: `key`, `version` (the timestamp of its
    commit, of an own write `read_ts`) and what follows. Good until its database is closed.
    """

    __slots__ = ("_expiry", "_meta", "_stored", "_view", "key", "version")

    def __init__(
        self, view: ReadView, key: bytes, version: int, meta: int, expiry: int, stored: bytes
    ) -> None:
        self.key = key
        self.version = version
        self._view = view
        self._meta = meta
        self._expiry = expiry
        self._stored = stored

    @property
    def value(self) -> bytes:
        """The value, read when it is asked for; `b""` for a tombstone. `CorruptionError` when the
        value log does not hold it undamaged.
        """
        if self._meta & META_POINTER:
            return self._view.values.read(self._stored, self.version)
        return self._stored

    @property
    def value_size(self) -> int:
        """Bytes of the value; reads no value log."""
        if self._meta & META_POINTER and len(self._stored) == POINTER_BYTES:
            return ValuePointer.decode(self._stored).length
        return len(self._stored)

    @property
    def meta(self) -> int:
        """The user's byte, 0 to 255."""
        return self._meta >> 8

    @property
    def is_merge(self) -> bool:
        """Whether this is an operand of a merge operator."""
        return bool(self._meta & META_MERGE)

    @property
    def discards_earlier(self) -> bool:
        """Whether older versions no longer count."""
        return bool(self._meta & META_DISCARD_EARLIER)

    @property
    def expires_at(self) -> float:
        """When it expires, in unix seconds to the millisecond; 0 is never."""
        return self._expiry / 1000 if self._expiry else 0

    @property
    def deleted(self) -> bool:
        """Whether this is a tombstone, or has expired by the clock now."""
        return bool(self._meta & META_DELETE) or 0 < self._expiry <= now_ms()

    def __repr__(self) -> str:
        return f"<Item version={self.version} value_size={self.value_size} deleted={self.deleted}>"
