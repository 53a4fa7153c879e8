"""The table's key filter: how large it must be, and its section of the file.

Runs in: supervisor and workers.
Invariants: (1) a key that is in the table always passes; (2) `shape` is a pure function of the
count and the wanted rate, so the same entries make the same bytes.
Fails with: `CorruptionError`.
One key touches one 64-byte line (one cache miss); the price is about 15 % more bits than a classic
filter of the same rate, because lines fill unevenly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final

from meles.engine.errors import CorruptionError
from meles.engine.kernel import LINE_BITS, LINE_BYTES, bloom_build, bloom_prober
from meles.engine.table.layout import BLOOM_HEAD, BLOOM_HEAD_BYTES, lines_offset
from xxhash import xxh64_intdigest as key_hash

__all__ = ["decode_bloom", "encode_bloom", "expected_rate", "key_hash", "shape"]

_MAX_PATTERN_BITS: Final = 5  # twice that many bits a key: enough for one in a million
_MAX_KEY_BITS: Final = 40.0


def expected_rate(keys_per_line: float, pattern_bits: int) -> float:
    """False positives of a filter whose lines hold this many keys on average.

    Keys fall on lines by Poisson; a line of i keys has each bit set with p = 1-(1-1/512)^(2*b*i).
    """
    bits = 2 * pattern_bits
    rate = 0.0
    weight = math.exp(-keys_per_line)
    for keys in range(int(keys_per_line * 3) + 40):
        filled = 1.0 - (1.0 - 1.0 / LINE_BITS) ** (bits * keys)
        # Two patterns out of 4096: that a pattern is there as a whole beats its bits being so.
        same = 1.0 - (1.0 - 1.0 / 4096) ** (2 * keys)
        pattern = same + (1.0 - same) * filled**pattern_bits
        rate += weight * pattern**2
        weight *= keys_per_line / (keys + 1)
    return rate


@lru_cache(maxsize=64)
def _sizing(wanted: float) -> tuple[float, int]:
    """Fewest bits per key, and the pattern bits, that meet the wanted rate."""
    best = (_MAX_KEY_BITS, _MAX_PATTERN_BITS)
    for pattern_bits in range(1, _MAX_PATTERN_BITS + 1):
        low, high = 1.0, _MAX_KEY_BITS
        for _ in range(24):
            middle = (low + high) / 2
            if expected_rate(LINE_BITS / middle, pattern_bits) > wanted:
                low = middle
            else:
                high = middle
        best = min(best, (high, pattern_bits))
    return best


def shape(count: int, wanted: float) -> tuple[int, int]:
    """(lines, pattern bits) of a filter of `count` keys; (0, 0) when `wanted` is 0: no filter."""
    if wanted <= 0.0 or not count:
        return 0, 0
    bits_per_key, pattern_bits = _sizing(wanted)
    return math.ceil(count * bits_per_key / LINE_BITS) | 1, pattern_bits


def encode_bloom(hashes: Iterable[int], count: int, wanted: float, offset: int) -> bytes:
    """The section, to be written at `offset`; empty when there is no filter."""
    lines, pattern_bits = shape(count, wanted)
    if not lines:
        return b""
    head = BLOOM_HEAD.pack(lines, pattern_bits, bytes(3), 0)
    gap = lines_offset(offset) - offset - BLOOM_HEAD_BYTES
    return head + bytes(gap) + bloom_build(hashes, lines, pattern_bits)


def _always(_hash: int) -> bool:
    return True


def decode_bloom(data: bytes, offset: int, path: str) -> Callable[[int], bool]:
    """A probe of the section found at `offset`: False only if no key has that hash."""
    lines, pattern_bits = bloom_lines(data, offset, path)
    return bloom_prober(lines, pattern_bits) if lines else _always


def bloom_lines(data: bytes, offset: int, path: str) -> tuple[bytes, int]:
    """The lines of the section found at `offset`, and its pattern bits; no lines, no filter."""
    if not data:
        return b"", 0

    def damaged(what: str) -> CorruptionError:
        return CorruptionError(what, path=path, offset=offset, kind="table filter")

    if len(data) < BLOOM_HEAD_BYTES:
        raise damaged("filter is shorter than its header")
    lines, pattern_bits, zero, more_zero = BLOOM_HEAD.unpack_from(data)
    start = lines_offset(offset) - offset
    if not lines & 1 or not 1 <= pattern_bits <= _MAX_PATTERN_BITS or any(zero) or more_zero:
        raise damaged("filter header is not valid")
    if start + lines * LINE_BYTES != len(data) or any(data[BLOOM_HEAD_BYTES:start]):
        raise damaged("filter lines do not fill the section")
    return data[start:], pattern_bits
