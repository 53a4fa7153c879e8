"""The hot pure functions in plain Python: readable, and the definition a compiled twin must equal.

Runs in: supervisor and workers.
Invariants: (1) a function here takes buffers, lists and ints, returns the same, touches no file and
keeps no state; (2) damage is answered with a plain value (None, -1), and the caller, who knows the
path and offset, raises; (3) results are the same bytes on every host.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import accumulate, islice
from typing import Final

LINE_BYTES: Final = 64  # one filter line: a cache line
LINE_BITS: Final = LINE_BYTES * 8
PATTERN_FIELD: Final = 4095  # a pattern is chosen by 12 bits of the hash
_PATTERN_MIX: Final = 0x9E3779B97F4A7C15  # 2**64 / golden ratio, as in multiplicative hashing
_MAX_EVEN_PARTS: Final = 1024  # a prepared unpacker takes 36 bytes a part, and 256 are kept
_PAIR: Final = struct.Struct("<II")
_U64: Final = (1 << 64) - 1


@lru_cache(maxsize=8)
def bloom_patterns(bits: int) -> tuple[int, ...]:
    """The 4096 masks of (up to) `bits` set bits within a line.

    Mask i has the bits (x >> 55) & 511, (x >> 46) & 511, ... of x = (i + 1) * mix mod 2**64. With
    a table, setting some bits of a line is one OR of two ints.
    """
    masks = []
    for number in range(PATTERN_FIELD + 1):
        mixed = (number + 1) * _PATTERN_MIX & _U64
        mask = 0
        for nth in range(1, bits + 1):
            mask |= 1 << (mixed >> (64 - 9 * nth) & LINE_BITS - 1)
        masks.append(mask)
    return tuple(masks)


def bloom_build(hashes: Iterable[int], lines: int, bits: int) -> bytes:
    """The filter of these 64-bit hashes: `lines` lines of 64 bytes, line 0 first.

    A hash h owns line h mod `lines` and in it the patterns h mod 4096 and h >> 52. `lines` is odd:
    otherwise the line would decide part of the first pattern.
    """
    patterns = bloom_patterns(bits)
    table = [0] * lines
    for h in hashes:
        table[h % lines] |= patterns[h & 4095] | patterns[h >> 52]
    return b"".join([line.to_bytes(LINE_BYTES, "little") for line in table])


def bloom_prober(data: bytes, bits: int) -> Callable[[int], bool]:
    """A function that says whether a hash may be in the filter `data` (a multiple of 64 bytes).

    The lines become ints once: 1.6 times the memory, and a probe costs a third.
    """
    patterns = bloom_patterns(bits)
    table = [
        int.from_bytes(data[at : at + LINE_BYTES], "little")
        for at in range(0, len(data), LINE_BYTES)
    ]
    lines = len(table)

    def probe(h: int) -> bool:
        mask = patterns[h & 4095] | patterns[h >> 52]
        return table[h % lines] & mask == mask

    return probe


def offsets(parts: Sequence[bytes]) -> bytes:
    """u32 offsets of the parts in their concatenation, and its end: len(parts) + 1 words."""
    lengths = set(map(len, parts))
    if len(lengths) == 1 and (length := lengths.pop()) and len(parts) <= _MAX_EVEN_PARTS:
        return _even(length, len(parts))[0]
    return array("I", accumulate(map(len, parts), initial=0)).tobytes()


@lru_cache(maxsize=256)
def _even(length: int, count: int) -> tuple[bytes, struct.Struct]:
    """Offsets of `count` parts of one length, not 0, and the unpacker that cuts them."""
    words = array("I", range(0, length * count + 1, length))
    return words.tobytes(), struct.Struct(f"{length}s" * count)


def split(words: bytes, region: bytes) -> list[bytes] | None:
    """Cut a region at its u32 offsets, as `offsets` makes them; None when they are not such.

    Parts of one length, the usual case for keys, are cut by one `struct` call, 5 times faster.
    """
    count = len(words) // 4 - 1
    length, rest = divmod(len(region), count)
    if not rest and length and count <= _MAX_EVEN_PARTS:
        even, unpacker = _even(length, count)
        if words == even:
            return list(unpacker.unpack(region))
    ends = memoryview(words).cast("I").tolist()
    if ends[0] != 0 or ends[-1] != len(region) or ends != sorted(ends):
        return None
    parts = []
    start = 0
    for end in islice(ends, 1, None):  # a quarter faster than a comprehension over pairs
        parts.append(region[start:end])
        start = end
    return parts


def find_part(raw: bytes, part: bytes, *, words_at: int, count: int, start: int, end: int) -> int:
    """Number of the first part equal to `part`, without cutting; -1 if absent, -2 if unsure.

    `count` parts lie in raw[start:end], their u32 offsets at `words_at`. Searches the bytes, then
    asks whether the hit is a part. A hit across a border says nothing about the rest: unsure.
    """
    hit = raw.find(part, start, end) - start
    if hit < 0:
        return -1
    length = len(part)
    number = min(hit // (length or 1), count - 1)  # exact when all parts have one length
    if _PAIR.unpack_from(raw, words_at + 4 * number) != (hit, hit + length):
        words = memoryview(raw)[words_at : words_at + 4 * count + 4].cast("I")
        number = bisect_left(words, hit, 0, count)
        if number == count or words[number] != hit or words[number + 1] != hit + length:
            return -2
    return number


def key_order(keys: list[bytes]) -> list[int]:
    """The stable order by key: equal keys keep their positions' order."""
    return sorted(range(len(keys)), key=keys.__getitem__)
