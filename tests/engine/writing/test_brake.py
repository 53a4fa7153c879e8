"""Writers are slowed down before they are stopped: gradually, visibly, and never for nothing."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meles.engine.writing import brake
from meles.engine.writing.brake import Brake, room_used

MIB = 1 << 20
CALM = {"sealed": 0, "max_sealed": 5, "level_zero": 0, "due": 5, "stall": 15, "compacting": True}


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What would have been slept."""
    slept: list[float] = []

    class Clock:
        sleep = slept.append

    monkeypatch.setattr(brake, "time", Clock)
    return slept


@pytest.mark.parametrize(
    ("state", "used"),
    [
        ({}, 0.0),
        ({"sealed": 2}, 0.4),
        ({"sealed": 5}, 1.0),
        ({"sealed": 9}, 1.0),
        ({"level_zero": 5}, 0.0),  # due, and no more than that
        ({"level_zero": 10}, 0.5),
        ({"level_zero": 15}, 1.0),
        ({"level_zero": 99}, 1.0),
        ({"level_zero": 10, "sealed": 4}, 0.8),
        ({"level_zero": 99, "compacting": False}, 0.0),  # nobody would make it less
        ({"level_zero": 2, "due": 1, "stall": 2}, 1.0),
    ],
)
def test_room_used_is_the_fuller_of_two(state: dict[str, Any], used: float) -> None:
    assert room_used(**{**CALM, **state}) == pytest.approx(used)


def test_up_to_half_of_the_room_nothing_is_delayed(naps: list[float]) -> None:
    found = Brake()
    for used in (0.0, 0.3, 0.5):
        found.set(used)
        assert found.seconds_per_byte == 0
        found.pay(MIB)
    assert (naps, found.sleeps, found.seconds) == ([], 0, 0.0)


def test_the_delay_grows_with_what_waits(naps: list[float]) -> None:
    """Up to 8 MiB a second just before the stop."""
    found = Brake()
    delays = []
    for used in (0.6, 0.7, 0.8, 0.9, 1.0):
        found.set(used)
        delays.append(found.seconds_per_byte)
    assert delays == sorted(set(delays))
    assert delays[-1] == pytest.approx(1 / (8 * MIB))
    found.pay(MIB // 8)
    assert naps == [pytest.approx(1 / 64)]
    found.set(0.2)
    assert found.seconds_per_byte == 0  # and it ends with the reason


def test_small_commits_pay_together_and_large_ones_not_for_ever(naps: list[float]) -> None:
    found = Brake()
    found.set(1.0)
    for _ in range(90):
        found.pay(100)
    assert len(naps) == 1  # 9,000 bytes are a millisecond's worth
    found.pay(1 << 40)
    assert naps[1:] == [0.1]
    assert (found.sleeps, found.seconds) == (2, pytest.approx(sum(naps)))


@given(
    used=st.floats(0, 1),
    sizes=st.lists(st.integers(0, MIB), max_size=30),
)
def test_what_is_slept_is_what_was_owed(used: float, sizes: list[int]) -> None:
    """Never more than a tenth of a second at once, never a sleep too short to be one."""
    slept: list[float] = []
    found = Brake()
    found.set(used)
    real, time.sleep = time.sleep, slept.append
    try:
        for size in sizes:
            found.pay(size)
    finally:
        time.sleep = real
    assert all(0.001 <= nap <= 0.1 for nap in slept)
    assert sum(slept) <= sum(sizes) * found.seconds_per_byte + 1e-9
    assert found.seconds == pytest.approx(sum(slept))
