"""What the value of one option may be: checks that turn what the user gave into what is kept.

Runs in: supervisor.
Invariants: (1) a check returns a value of its option's type or raises `Refused`, whatever it is
given; (2) a text from the environment means what the same value means as a keyword.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from meles.engine.ids import MAX_FILE_BYTES

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

_BINARY: Final = {"": 1, "b": 1, "k": KIB, "m": MIB, "g": GIB}
_IEC: Final = {"kib": KIB, "mib": MIB, "gib": GIB, "tib": 1 << 40}
_SI: Final = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS: Final = {**_BINARY, **_IEC, **_SI}
_SIZE_TEXT: Final = re.compile(
    r"\s*(\d{1,20})(\.\d{1,20})?\s*([a-z]*)\s*", re.ASCII | re.IGNORECASE
)
_INTEGER_TEXT: Final = re.compile(r"\s*-?\d{1,20}\s*", re.ASCII)
_SIZE: Final = "a number of bytes, or a text such as '64MiB'"
_SHOWN_CHARS: Final = 200
_KEY: Final = "16, 24 or 32 bytes (in a text: hexadecimal)"


def shown(value: object) -> str:
    """A value for a message: bounded, and not in decimal where Python refuses to."""
    text = hex(value) if isinstance(value, int) and abs(value) >> 64 else repr(value)
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."


class Refused(ValueError):  # noqa: N818 - says what is allowed, the caller makes the error
    """What is allowed instead; becomes a `ConfigError` that also names option, value and origin."""


def parse_size(value: object) -> int:
    """Bytes from an int or a text such as `"64MiB"`; one letter means the binary unit."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _SIZE_TEXT.fullmatch(value) if isinstance(value, str) else None
    unit = _UNITS.get(match[3].lower()) if match is not None else None
    if match is None or unit is None:
        raise Refused(_SIZE)
    return int(match[1]) * unit + int(float(match[2] or 0) * unit)


def size(low: int, high: int = MAX_FILE_BYTES) -> Callable[[object], int]:
    """A size in bytes, bounds included."""

    def check(value: object) -> int:
        found = parse_size(value)
        if not low <= found <= high:
            raise Refused(f"{low:,} to {high:,} bytes")
        return found

    return check


def integer(low: int, high: int) -> Callable[[object], int]:
    """A whole number, bounds included."""

    def check(value: object) -> int:
        if isinstance(value, str) and _INTEGER_TEXT.fullmatch(value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise Refused(f"a whole number from {low:,} to {high:,}")
        return value

    return check


def number(low: float, high: float, *, open_ends: bool = False) -> Callable[[object], float]:
    """A number; `open_ends` leaves the bounds out."""

    def check(value: object) -> float:
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                value = math.nan
        given = isinstance(value, int | float) and not isinstance(value, bool)
        found = value if isinstance(value, int | float) and given else math.nan
        if not (low < found < high if open_ends else low <= found <= high):
            raise Refused(f"a number {'between' if open_ends else 'from'} {low} and {high}")
        return float(found)

    return check


def seconds(low: float, high: float) -> Callable[[object], float]:
    """A time in seconds, or a `timedelta`."""
    plain = number(low, high)

    def check(value: object) -> float:
        return plain(value.total_seconds() if isinstance(value, timedelta) else value)

    return check


def flag(value: object) -> bool:
    """True or false; in a text also yes, no, 1 and 0."""
    if isinstance(value, str) and value.lower() in ("true", "false", "1", "0", "yes", "no"):
        return value.lower() in ("true", "1", "yes")
    if not isinstance(value, bool):
        raise Refused("true or false")
    return value


def one_of(*names: str) -> Callable[[object], str]:
    """One of a few words."""

    def check(value: object) -> str:
        if not isinstance(value, str) or value not in names:
            raise Refused("one of " + ", ".join(repr(name) for name in names))
        return value

    return check


def path_or_none(value: object) -> str | None:
    """A path; an empty text is none."""
    if value is None or (isinstance(value, str) and not value):
        return None
    path = os.fsdecode(os.fspath(value)) if isinstance(value, str | os.PathLike) else "\0"
    if "\0" in path:
        raise Refused("a path, or nothing to keep values beside the tables")
    return path


def key_or_none(value: object) -> bytes | None:
    """A master key; an empty one is none."""
    if isinstance(value, str):
        try:
            value = bytes.fromhex(value)
        except ValueError:
            raise Refused(_KEY) from None
    if value is None:
        return None
    if not isinstance(value, bytes | bytearray) or len(value) not in (0, 16, 24, 32):
        raise Refused(_KEY)
    return bytes(value) or None


def memory_or_none(value: object) -> int | None:
    """A memory limit in bytes; an empty text is none."""
    if value is None or (isinstance(value, str) and not value):
        return None
    return size(32 * MIB, 1 << 50)(value)


def budget_or_none(value: object) -> int | None:
    """A memory budget in bytes; an empty text is none. How small is too small depends on others."""
    if value is None or (isinstance(value, str) and not value):
        return None
    return size(MIB, 1 << 50)(value)


def left_open(check: Callable[[object], int]) -> Callable[[object], int | None]:
    """A size, or nothing: it then follows from others."""
    return lambda value: None if value is None else check(value)


def compactors(value: object) -> int:
    """A number of workers; nothing chooses by the processors there are."""
    if value is None:
        return max(1, min(4, (os.cpu_count() or 1) - 1))
    return integer(0, 64)(value)
