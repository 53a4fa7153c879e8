"""Checking what users hand in: keys, values, times to live, meta bytes.

Runs in: supervisor.
Fails with: `TypeError` for a str, `InvalidKeyError`, `TransactionTooBigError`, `ValueError`.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TypeAlias

from meles.engine.clock import now_ms
from meles.engine.errors import InvalidKeyError
from meles.engine.ids import MAX_KEY_BYTES, RESERVED_PREFIX
from meles.engine.option_checks import shown

BytesLike: TypeAlias = bytes | bytearray | memoryview
TimeToLive: TypeAlias = float | int | timedelta | None

FIRST_RESERVED = RESERVED_PREFIX[0]
NO_META = 0
_LATEST_MS = 1 << 62


def as_bytes(data: object, what: str) -> bytes:
    """A bytes-like object as `bytes`; anything else raises `TypeError`."""
    if isinstance(data, bytes):
        return bytes(data) if type(data) is not bytes else data
    if isinstance(data, str):
        raise TypeError(f"{what} is a str: encode it, for instance {what}.encode()")
    if isinstance(data, bytearray | memoryview):
        return bytes(data)
    try:
        return bytes(memoryview(data))  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{what} must be bytes-like, not {type(data).__name__}") from None


def writable_key(key: object) -> bytes:
    """A key an entry may have."""
    data = key if type(key) is bytes else as_bytes(key, "key")
    if not 0 < len(data) <= MAX_KEY_BYTES:
        raise InvalidKeyError(f"a key of {len(data):,} bytes")
    if data[0] == FIRST_RESERVED and data.startswith(RESERVED_PREFIX):
        raise InvalidKeyError("a reserved key")
    return data


def readable_key(key: object) -> bytes:
    """A key to look up: one that no write could create is simply absent, but never empty."""
    data = key if type(key) is bytes else as_bytes(key, "key")
    if not data:
        raise InvalidKeyError("an empty key")
    return data


def expiry_ms(ttl: TimeToLive) -> int:
    """When an entry set now expires, in unix milliseconds; 0 for never."""
    if ttl is None:
        return 0
    seconds = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"ttl must be seconds or a timedelta, not {type(ttl).__name__}")
    if not seconds > 0:
        raise ValueError(f"ttl={shown(ttl)}: a time to live is more than 0")
    return round(min(max(1, now_ms() + seconds * 1000), _LATEST_MS))


def user_meta(meta: object) -> int:
    """The user's byte."""
    if isinstance(meta, bool) or not isinstance(meta, int) or not 0 <= meta <= 255:
        raise ValueError(f"meta={shown(meta)}: a whole number from 0 to 255")
    return int(meta)


def range_bound(bound: object, what: str) -> bytes | None:
    """`start`, `stop` or a prefix as bytes."""
    return None if bound is None else as_bytes(bound, what)
