"""What is being compacted now, and what was tried lately to no avail.

Runs in: supervisor, on the control thread.
Invariants: (1) a table is in at most one plan; (2) no two plans write overlapping key ranges to one
level; (3) the memory of attempts is bounded.
A handful of plans run at once, so plain lists are searched: a sorted structure would not earn its
keep.
"""

from __future__ import annotations

from typing import Final

from meles.engine.compaction.plan import Plan
from meles.engine.errors import InvariantError
from meles.engine.manifest.version import TableMeta

FIRST_WAIT: Final = 600.0  # seconds until a rewrite for garbage is tried again on the same content
_WAIT_GROWTH: Final = 4
_MAX_ATTEMPTS: Final = 4096

_Content = tuple[bytes, bytes, int, int]


def _content(table: TableMeta) -> _Content:
    """The same for a table and its rewrite, if nothing could leave."""
    return table.min_key, table.max_key, table.count, table.max_version


class InFlight:
    """Claims of running plans. Claim a plan before its jobs start, release it after its install."""

    def __init__(self) -> None:
        self.plans: list[Plan] = []
        self._tables: set[int] = set()
        self._attempts: dict[_Content, tuple[float, float]] = {}  # when, seconds to wait

    def claim(self, plan: Plan) -> None:
        """`InvariantError` if the plan touches what another one works on."""
        ids = {table.id for table in (*plan.top, *plan.bottom)}
        if ids & self._tables or len(ids) != len(plan.top) + len(plan.bottom):
            raise InvariantError("a table is claimed twice")
        if self.blocks(plan.to_level, plan.low, plan.high):
            raise InvariantError(f"two compactions write to one range of level {plan.to_level}")
        self._tables |= ids
        self.plans.append(plan)
        if plan.kind in ("last_level", "rewrite"):
            for table in plan.top:
                self._attempted(table, plan.decided)

    def release(self, plan: Plan) -> None:
        """`InvariantError` if the plan was not claimed."""
        if plan not in self.plans:
            raise InvariantError("a compaction was released that was not claimed")
        self.plans.remove(plan)
        self._tables -= {table.id for table in (*plan.top, *plan.bottom)}

    def busy(self, table: TableMeta) -> bool:
        return table.id in self._tables

    def blocks(self, level: int, low: bytes, high: bytes) -> bool:
        """Whether a plan is writing to [low, high] of a level. Not on L0, which may overlap."""
        return level > 0 and any(
            plan.to_level == level and plan.low <= high and low <= plan.high for plan in self.plans
        )

    def bytes_leaving(self, level: int) -> int:
        return sum(
            table.size
            for plan in self.plans
            if plan.from_level == level != plan.to_level
            for table in plan.top
        )

    def _attempted(self, table: TableMeta, now: float) -> None:
        content = _content(table)
        _, wait = self._attempts.pop(content, (0.0, FIRST_WAIT / _WAIT_GROWTH))
        self._attempts[content] = (now, wait * _WAIT_GROWTH)
        while len(self._attempts) > _MAX_ATTEMPTS:
            del self._attempts[next(iter(self._attempts))]

    def may_rewrite(self, table: TableMeta, now: float) -> bool:
        """False for a while after a rewrite that left this content as it was, each time longer.

        Some garbage cannot be told from what must stay by looking at a table's properties (merge
        operands, entries that expire late): this is what keeps it from being rewritten in a loop.
        """
        when, wait = self._attempts.get(_content(table), (0.0, 0.0))
        return not wait or not when <= now < when + wait

    def tried(self, table: TableMeta) -> bool:
        """Whether a rewrite left this content as it was."""
        return _content(table) in self._attempts

    def may_rewrite_at(self, table: TableMeta) -> float:
        """When `may_rewrite` will be true, in the unix seconds it is asked in."""
        return sum(self._attempts.get(_content(table), (0.0, 0.0)))
