"""Meta bits are distinct, and a value pointer is what it encodes."""

from __future__ import annotations

import struct
from functools import reduce
from operator import or_

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meles.engine.codec.entry import (
    META_DELETE,
    META_DISCARD_EARLIER,
    META_MASK,
    META_MERGE,
    META_POINTER,
    POINTER_BYTES,
    ValuePointer,
)

BITS = (META_DELETE, META_POINTER, META_DISCARD_EARLIER, META_MERGE)
u32 = st.integers(0, (1 << 32) - 1)


def test_meta_bits_are_distinct_single_bits_of_the_mask() -> None:
    assert all(bit.bit_count() == 1 for bit in BITS)
    assert reduce(or_, BITS) == sum(BITS) == META_MASK


@given(u32, u32, u32)
def test_a_pointer_is_what_it_encodes(file_id: int, offset: int, length: int) -> None:
    pointer = ValuePointer(file_id, offset, length)
    assert len(pointer.encode()) == POINTER_BYTES
    assert ValuePointer.decode(pointer.encode()) == pointer


@pytest.mark.parametrize("size", [0, POINTER_BYTES - 1, POINTER_BYTES + 1])
def test_anything_but_12_bytes_is_no_pointer(size: int) -> None:
    with pytest.raises(struct.error):
        ValuePointer.decode(bytes(size))
