"""Rounds are drawn from a seed: the same ones again, all kinds, with options that are allowed."""

from __future__ import annotations

import meles
import pytest
from meles.engine.options import load_options
from meles.engine.stress.draw import Fault, draw

ROUNDS = 300


def test_a_seed_draws_the_same_rounds_again() -> None:
    first = [draw(7, number, ["none"]) for number in range(ROUNDS)]
    assert [draw(7, number, ["none"]) for number in range(ROUNDS)] == first
    assert [draw(8, number, ["none"]) for number in range(ROUNDS)] != first


def test_every_fault_and_many_options_are_drawn() -> None:
    rounds = [draw(1, number, ["none", "zstd"]) for number in range(ROUNDS)]
    assert {round_.fault for round_ in rounds} == set(Fault)
    for name in rounds[0].options:
        values = {round_.options[name] for round_ in rounds}
        assert len(values) > 1 or name.startswith(("worker_", "close_")), name


@pytest.mark.parametrize("seed", range(5))
def test_all_options_are_allowed(seed: int) -> None:
    for number in range(50):
        options = draw(seed, number, ["none"]).options
        assert isinstance(load_options(options), meles.Options)
