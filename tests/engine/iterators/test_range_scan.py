"""Ranges of keys, as prefixes and bounds make them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from meles.engine.iterators.range_scan import KeyRange, prefix_range

few = st.binary(max_size=3).map(lambda data: bytes(b"\x00\x61\xfe\xff"[byte % 4] for byte in data))


@given(prefix=few, start=st.none() | few, stop=st.none() | few, key=few)
def test_a_prefix_within_bounds(
    prefix: bytes, start: bytes | None, stop: bytes | None, key: bytes
) -> None:
    keys = prefix_range(prefix, start, stop)
    inside = (
        key.startswith(prefix) and (start is None or key >= start) and (stop is None or key < stop)
    )
    assert keys.holds(key) is inside
    assert not (inside and keys.is_empty())


def test_empty_ranges() -> None:
    for low, high, empty in (
        (None, None, False), (b"a", None, False), (None, b"a", False), (None, b"", True),
        (b"a", b"a", True), (b"b", b"a", True), (b"a", b"a\0", False),
    ):  # fmt: skip
        assert KeyRange(low, high).is_empty() is empty
    assert prefix_range(b"\xff\xff", None, None) == KeyRange(b"\xff\xff", None)
    assert prefix_range(b"a\xff", None, None) == KeyRange(b"a\xff", b"b")
    assert prefix_range(b"", None, None) == KeyRange(None, None)
