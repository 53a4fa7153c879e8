"""Weeks of ingest played against the real picker: levels keep their shape, nothing blocks."""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from meles.engine.options import Options

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "simulate_compaction.py"
MIB = 1 << 20
OPTIONS = Options(
    num_compactors=2, memtable_size=8 * MIB, base_level_size=2 * MIB, base_table_size=MIB
)


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("simulate_compaction", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def played(script: Any, workload: str, *, rate: float, days: float) -> Any:
    load = script.Load(workload, (512 * MIB) // 132, 132, random.Random(3))
    simulation = script.Simulation(OPTIONS, load, rate, 80e6)
    simulation.play(days * script.DAY, 2)
    simulation.version.check()
    return simulation


@pytest.mark.parametrize("workload", ["random", "sequential", "hot"])
def test_a_month_of_ingest(script: Any, workload: str) -> None:
    simulation = played(script, workload, rate=2_000, days=30)
    assert simulation.stalled == 0
    assert simulation.worst_l0 <= OPTIONS.num_level_zero_tables + 1
    assert simulation.amplification() < 15
    if workload == "sequential":  # moved, not rewritten
        assert simulation.amplification() < 2.2
        assert simulation.plans["move"] > 0


def test_more_than_the_compactors_can_do_stalls_but_goes_on(script: Any) -> None:
    simulation = played(script, "random", rate=60e6, days=0.003)
    assert simulation.worst_l0 == OPTIONS.num_level_zero_tables_stall
    assert 0 < simulation.longest_stall <= simulation.stalled
    assert simulation.longest_stall < 60
    assert simulation.ingested > 6e9
    assert simulation.amplification() < 6
