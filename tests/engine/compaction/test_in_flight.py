"""Claims exclude each other; attempts are remembered, for a while and not too many."""

from __future__ import annotations

from typing import Any

import pytest
from meles.engine.compaction.in_flight import FIRST_WAIT, InFlight
from meles.engine.compaction.plan import Plan, hull
from meles.engine.errors import InvariantError


def make(
    kind: Any, from_level: int, to_level: int, top: Any, bottom: Any = (), at: float = 0.0
) -> Plan:
    return Plan(kind, from_level, to_level, top, bottom, 1000, *hull((*top, *bottom)), at)


def test_a_table_is_claimed_once(tools: Any) -> None:
    in_flight = InFlight()
    one, two = tools.meta(1, b"a", b"b"), tools.meta(2, b"c", b"d")
    plan = make("level", 1, 2, (one,))
    in_flight.claim(plan)
    assert in_flight.busy(one)
    assert not in_flight.busy(two)
    with pytest.raises(InvariantError):
        in_flight.claim(make("level", 1, 3, (one, two)))
    assert not in_flight.busy(two)
    in_flight.release(plan)
    assert not in_flight.busy(one)
    with pytest.raises(InvariantError):
        in_flight.release(plan)


def test_a_range_is_written_by_one_plan(tools: Any) -> None:
    in_flight = InFlight()
    in_flight.claim(make("level", 1, 2, (tools.meta(1, b"c", b"d"),), (tools.meta(2, b"b", b"e"),)))
    assert in_flight.blocks(2, b"a", b"b")
    assert in_flight.blocks(2, b"e", b"e")
    assert not in_flight.blocks(2, b"f", b"g")
    assert not in_flight.blocks(1, b"a", b"z"), "tables leave it, none come"
    with pytest.raises(InvariantError):
        in_flight.claim(make("move", 1, 2, (tools.meta(3, b"e", b"g"),)))
    in_flight.claim(make("move", 1, 2, (tools.meta(3, b"f", b"g"),)))


def test_merges_within_level_zero_may_overlap(tools: Any) -> None:
    in_flight = InFlight()
    in_flight.claim(make("l0_to_l0", 0, 0, (tools.meta(1, b"a", b"z"),)))
    in_flight.claim(make("l0_to_l0", 0, 0, (tools.meta(2, b"a", b"z"),)))


def test_bytes_leaving_a_level(tools: Any) -> None:
    in_flight = InFlight()
    in_flight.claim(
        make("level", 1, 2, (tools.meta(1, b"c", b"d", size=70),), (tools.meta(2, b"b", b"e"),))
    )
    in_flight.claim(make("rewrite", 1, 1, (tools.meta(3, b"f", b"g", size=500),)))
    assert in_flight.bytes_leaving(1) == 70
    assert in_flight.bytes_leaving(2) == 0


def test_an_attempt_that_changed_nothing_waits_longer_each_time(tools: Any) -> None:
    in_flight = InFlight()
    wait, now = FIRST_WAIT, 1e9
    for table_id in range(1, 5):  # each rewrite has a new id and the same content
        table = tools.meta(table_id, b"a", b"b", count=7)
        assert in_flight.may_rewrite(table, now)
        plan = make("last_level", 2, 2, (table,), at=now)
        in_flight.claim(plan)
        in_flight.release(plan)
        again = tools.meta(table_id + 1, b"a", b"b", count=7)
        assert not in_flight.may_rewrite(again, now)
        assert not in_flight.may_rewrite(again, now + wait - 1)
        assert in_flight.may_rewrite(tools.meta(9, b"a", b"b", count=6), now), "something left"
        now += wait
        wait *= 4


def test_a_clock_set_back_does_not_forbid_rewriting(tools: Any) -> None:
    in_flight = InFlight()
    in_flight.claim(make("last_level", 2, 2, (tools.meta(1, b"a", b"b"),), at=1e9))
    assert in_flight.may_rewrite(tools.meta(2, b"a", b"b"), 5e8)


def test_the_memory_of_attempts_is_bounded(tools: Any) -> None:
    in_flight = InFlight()
    for number in range(5000):
        key = b"%05d" % number
        plan = make("last_level", 2, 2, (tools.meta(number + 1, key, key),), at=1e9)
        in_flight.claim(plan)
        in_flight.release(plan)
    assert in_flight.may_rewrite(tools.meta(9000, b"00000", b"00000"), 1e9)
    assert not in_flight.may_rewrite(tools.meta(9000, b"04999", b"04999"), 1e9)
