"""The dynamic threshold is a percentile of the sizes written, within its bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from meles.engine.vlog.threshold import BUCKETS, DynamicThreshold


def test_percentile_zero_keeps_the_minimum() -> None:
    threshold = DynamicThreshold(1024, 0.0, every=1)
    threshold.observe_many([5000] * 100)
    assert threshold.threshold == 1024


def test_it_is_recomputed_after_enough_values_only() -> None:
    threshold = DynamicThreshold(0, 0.5, maximum=BUCKETS, every=10)
    threshold.observe_many([100] * 9)
    assert threshold.threshold == 0
    threshold.observe_many([100])
    assert threshold.threshold == 101
    threshold.observe_many([200] * 9)
    assert threshold.threshold == 101
    threshold.observe_many([200] * 20)
    assert threshold.threshold == 201


def test_small_values_count_and_large_ones_end_at_the_maximum() -> None:
    threshold = DynamicThreshold(1000, 0.9, maximum=2000, every=100)
    threshold.observe_many([1] * 95 + [1500] * 5)
    assert threshold.threshold == 1000
    threshold.observe_many([10_000] * 900)
    assert threshold.threshold == 2000


def test_a_maximum_below_the_minimum_fixes_it() -> None:
    threshold = DynamicThreshold(1000, 0.5, maximum=10, every=1)
    threshold.observe_many([1, 999, 1000, 5000])
    assert threshold.threshold == 1000


@given(
    st.lists(st.integers(0, 3000), min_size=1, max_size=200),
    st.floats(0.01, 1.0),
    st.integers(0, 1500),
)
def test_enough_sizes_lie_below_and_not_below_a_bucket_less(
    sizes: list[int], percentile: float, minimum: int
) -> None:
    maximum = minimum + BUCKETS
    chosen = DynamicThreshold(minimum, percentile, maximum=maximum, every=len(sizes))
    chosen.observe_many(sizes)
    threshold = chosen.threshold
    assert minimum <= threshold <= maximum
    wanted = percentile * len(sizes)
    assert sum(size < threshold for size in sizes) >= wanted or threshold == maximum
    assert sum(size < threshold - 1 for size in sizes) < wanted or threshold == minimum
