"""Where a key falls among sorted ones, against `bisect`."""

from __future__ import annotations

import random
from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twins import NATIVE, needs_native

pytestmark = needs_native
# few letters, the lowest and the highest among them: prefixes, padding and equal heads are common
ends = st.lists(st.sampled_from([0, 1, 97, 255]), max_size=12).map(bytes)
prefixes = st.sampled_from([b"", b"\0", b"a", b"user:", b"\xff" * 8, b"\0" * 9, b"0123456789"])


def holds(keys: list[bytes], key: bytes) -> None:
    assert NATIVE.first_from(keys, key) == (bisect_left(keys, key), True)


@given(prefixes, st.lists(ends, min_size=1, max_size=70), st.lists(st.tuples(prefixes, ends)))
def test_as_bisect_has_it(
    prefix: bytes, rows: list[bytes], others: list[tuple[bytes, bytes]]
) -> None:
    keys = sorted(prefix + end for end in rows)  # equal ones too, as an index has them
    for key in [*keys, *(part + end for part, end in others), *(prefix + end for _, end in others)]:
        holds(keys, key)


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 31, 32, 33, 127, 128, 129, 500, 2049])
@pytest.mark.parametrize("prefix", [b"", b"a longer one than eight"])
def test_every_place(count: int, prefix: bytes) -> None:
    rng = random.Random(count)
    keys = sorted({prefix + rng.randbytes(rng.choice([1, 3, 8, 16])) for _ in range(count)})
    for key in keys[:: 1 + count // 50]:
        for near in (key, key + b"\0", key[:-1], key[:-1] + bytes([key[-1] ^ 1])):
            holds(keys, near)
    for key in (b"", b"\0", prefix, b"\xff" * 40):
        holds(keys, key)


@pytest.mark.parametrize("alike", [b"\0" * 8, b"12345678", b"\xff" * 8])
def test_heads_that_are_alike(alike: bytes) -> None:
    """Bounds that differ keep them from being what all begin with."""
    for count in (1, 14, 15, 16, 40):
        keys = sorted([b"\0", b"\xff" * 9, *(alike + b"%03d" % nth for nth in range(count))])
        for key in (*keys, alike, alike + b"x", alike[:-1]):
            holds(keys, key)
