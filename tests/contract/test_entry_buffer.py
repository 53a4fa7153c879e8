"""EntryBuffer.set: what both twins collect, and what both leave to `_set`."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from meles.engine.codec.entry import POINTER_BYTES
from meles.engine.ids import MAX_KEY_BYTES, RESERVED_PREFIX
from meles.engine.txn.entry_buffer import ENTRY_OVERHEAD, EntryBufferPy
from meles.engine.txn.oracle import PublishedPy
from twins import NATIVE, needs_native, twins


class Text(bytes):
    """Bytes by inheritance: not plain, it may do anything."""


def buffer_of(base: Any) -> Any:
    """A class over one twin that notes what is left to it."""

    class Buffer(base):  # type: ignore[misc]
        def __init__(self, *limits: Any, ended: bool = False) -> None:
            published = PublishedPy if base is EntryBufferPy else NATIVE.Published
            self.clock = published(7)
            self.left: list[tuple[object, ...]] = []
            self._collect(self.clock, *limits)
            self.clock.ended = ended

        def _set(self, *given: object) -> None:
            self.left.append(given)

        def state(self) -> object:
            return self._writes, self._special, self._size, self.left

    return Buffer


both = pytest.mark.parametrize("base", twins(EntryBufferPy, "EntryBuffer"))
LIMITS = (1000, 100, 5, True)


@both
def test_plain_entries_are_collected(base: Any) -> None:
    buffer = buffer_of(base)(*LIMITS)
    buffer.set(b"a", b"1")
    buffer[b"b"] = b"22"
    buffer.set(b"a", b"333")
    assert buffer.state() == (
        {b"a": b"333", b"b": b"22"}, {}, 3 * ENTRY_OVERHEAD + 3 + 6, [],
    )  # fmt: skip


@both
@pytest.mark.parametrize(
    ("key", "value", "more"),
    [
        ("a", b"", {}), (b"a", "v", {}), (bytearray(b"a"), b"", {}), (b"a", memoryview(b""), {}),
        (Text(b"a"), b"", {}), (b"a", Text(b""), {}), (None, b"", {}), (b"a", None, {}),
        (b"", b"", {}), (b"k" * (MAX_KEY_BYTES + 1), b"", {}), (RESERVED_PREFIX + b"x", b"", {}),
        (RESERVED_PREFIX[:1], b"", {}), (b"a", b"", {"ttl": 5}), (b"a", b"", {"ttl": 0}),
        (b"a", b"", {"meta": 1}), (b"a", b"", {"meta": False}), (b"a", b"", {"meta": -1}),
        (b"a", b"", {"meta": 1 << 70}), (b"a", b"", {"discard_earlier": True}),
        (b"a", bytes(100), {}),
    ],
)  # fmt: skip
def test_the_rest_is_left(base: Any, key: Any, value: Any, more: dict[str, Any]) -> None:
    buffer = buffer_of(base)(1 << 20, 100, 5, True)
    buffer.set(key, value, **more)
    defaults = {"ttl": None, "meta": 0, "discard_earlier": False}
    assert buffer.state() == ({}, {}, 0, [(key, value, *{**defaults, **more}.values())])


@both
def test_the_limits_at_their_edges(base: Any) -> None:
    room = 2 * (ENTRY_OVERHEAD + 11)
    buffer = buffer_of(base)(room, 100, 5, True)
    buffer.set(b"a", bytes(10))
    buffer.set(b"b", bytes(11))  # one byte too many
    assert [given[0] for given in buffer.left] == [b"b"]
    buffer.set(b"b", bytes(10))
    assert buffer._size == room
    buffer.set(b"b", b"")
    assert len(buffer.left) == 2
    several = buffer_of(base)(1 << 20, 100, 3, True)
    for name in (b"a", b"b", b"c", b"d", b"a"):
        several.set(name, bytes(99))
    assert [given[0] for given in several.left] == [b"d", b"a"]  # not counted: not looked up
    whole = buffer_of(base)(1 << 20, 100, 3, True)
    whole.set(b"k" * MAX_KEY_BYTES, b"")
    assert whole.left == []


@both
@pytest.mark.parametrize("shift", [0, 2, 62])
def test_a_large_value_counts_as_its_address_and_a_part(base: Any, shift: int) -> None:
    part = ENTRY_OVERHEAD + 1 + POINTER_BYTES + (100 >> shift)
    buffer = buffer_of(base)(2 * part, 100, 5, True, 120, shift)
    buffer.set(b"a", bytes(100))
    buffer.set(b"b", bytes(100))
    assert (buffer._size, buffer.left) == (2 * part, [])
    buffer.set(b"c", bytes(100))
    assert [given[0] for given in buffer.left] == [b"c"]
    roomy = buffer_of(base)(1 << 20, 100, 5, True, 120, shift)
    roomy.set(b"a", bytes(120))
    assert list(roomy._writes) == [b"a"]
    roomy.set(b"b", bytes(121))
    assert [given[0] for given in roomy.left] == [b"b"]


@both
def test_ended_and_not_collecting(base: Any) -> None:
    ended = buffer_of(base)(*LIMITS, ended=True)
    ended.set(b"a", b"")
    closed = buffer_of(base)(1000, 100, 5, False)
    closed.set(b"a", b"")
    assert [len(ended.left), len(closed.left)] == [1, 1]
    ended.clock.ended = False
    ended.set(b"a", b"")
    assert ended._writes == {b"a": b""}


@both
def test_a_plain_entry_takes_the_place_of_a_special_one(base: Any) -> None:
    buffer = buffer_of(base)(*LIMITS)
    buffer._writes[b"a"], buffer._special[b"a"] = b"1", (3, 4)
    buffer._special[b"b"] = (5, 6)
    buffer.set(b"a", b"2")
    assert (buffer._writes, buffer._special) == ({b"a": b"2"}, {b"b": (5, 6)})


@both
def test_before_it_began_nothing_is_collected(base: Any) -> None:
    class Bare(base):  # type: ignore[misc]
        def _set(self, *given: object) -> None:
            raise LookupError

    buffer = Bare()
    for collecting in (False, True):
        buffer._collecting = collecting
        with pytest.raises((LookupError, AttributeError)):
            buffer.set(b"a", b"")


calls = st.tuples(
    st.binary(max_size=3) | st.sampled_from([b"!x", b"!meles!", "a", bytearray(b"a"), Text(b"a")]),
    st.binary(max_size=12) | st.just("v"),
    st.fixed_dictionaries({}, optional={"ttl": st.none() | st.just(9), "meta": st.integers(-1, 2)}),
)


@needs_native
@settings(max_examples=200)
@given(
    st.lists(calls, max_size=30), st.integers(0, 400), st.integers(0, 13), st.integers(0, 6),
    st.integers(0, 14), st.integers(0, 62),
)  # fmt: skip
def test_both_collect_the_same(
    done: list[Any], size_limit: int, value_limit: int, count_limit: int, large: int, shift: int
) -> None:
    python, native = (
        buffer_of(base)(size_limit, value_limit, count_limit, True, large, shift)
        for base in (EntryBufferPy, NATIVE.EntryBuffer)
    )
    for key, value, more in done:
        python.set(key, value, **more)
        native.set(key, value, **more)
        assert native.state() == python.state()
