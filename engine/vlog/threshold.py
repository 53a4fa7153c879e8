"""The size from which values live in the value log, as a percentile of the sizes written.

Runs in: supervisor, under the store's write lock.
Invariants: (1) the threshold lies in [minimum, maximum]; (2) percentile 0 keeps it at the minimum.
The histogram lives in memory only: after an open the threshold begins at the minimum again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from functools import partial
from itertools import accumulate
from typing import Final

BUCKETS: Final = 1024
MAX_THRESHOLD: Final = 1 << 20  # bytes; values beyond it always leave the LSM tree
_RECOMPUTE_EVERY: Final = 4096  # values: about a thousandth of the cost of writing them


class DynamicThreshold:
    """`threshold` in bytes: values of at least this size go to the value log."""

    __slots__ = ("_bounds", "_counts", "_every", "_pending", "_percentile", "threshold")

    def __init__(
        self,
        minimum: int,
        percentile: float,
        *,
        maximum: int = MAX_THRESHOLD,
        every: int = _RECOMPUTE_EVERY,
    ) -> None:
        """Sizes in bytes; the threshold is recomputed each `every` values."""
        span = max(0, maximum - minimum)
        self._bounds = [minimum + span * i // BUCKETS for i in range(BUCKETS + 1)]
        self._counts = [0] * (BUCKETS + 2)  # [i]: sizes in [bounds[i-1], bounds[i])
        self._percentile = percentile
        self._every = every
        self._pending = 0
        self.threshold = minimum

    def observe_many(self, sizes: Iterable[int]) -> None:
        """Count these value sizes, in bytes; every written value belongs here, small ones too."""
        if not self._percentile:
            return
        counts = self._counts
        seen = 0
        for bucket in map(partial(bisect_right, self._bounds), sizes):
            counts[bucket] += 1
            seen += 1
        self._pending += seen
        if self._pending >= self._every:
            self._pending = 0
            self.recompute()

    def recompute(self) -> None:
        """Set the threshold to the lowest bucket bound that enough of the sizes lie below."""
        below = list(accumulate(self._counts))
        if self._percentile and below[-1]:
            wanted = self._percentile * below[-1]
            self.threshold = next(
                (
                    bound
                    for bound, count in zip(self._bounds, below, strict=False)
                    if count >= wanted
                ),
                self._bounds[-1],
            )
