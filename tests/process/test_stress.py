"""`meles stress` on a real directory: it strikes, judges, and condemns what must be condemned."""

from __future__ import annotations

import json
import os

import pytest
from meles.engine.cli.main import main
from meles.engine.stress.draw import Fault, Round, draw
from meles.engine.stress.ledger import SET, Ledger
from meles.engine.stress.rounds import Stress, StressError

MINUTES = float(os.environ.get("MELES_STRESS_MINUTES", "20"))


def test_a_few_rounds(tmp_path, capsys, tally):
    directory = tmp_path / "db"
    assert main(["stress", str(directory), "--rounds", "2", "--seed", "11", "--json"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["rounds"] == 2
    assert report["acknowledged"] > 100
    assert report["problem"] == ""
    assert err.startswith("seed 11\nround 1: ")
    assert not (tmp_path / "db.ledger").exists()
    assert main(["stress", str(directory)]) == 2  # only ever a new directory
    for fault, count in report["struck"].items():
        tally(f"stress: {fault}", count)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_stress_for_long(tmp_path, capsys, tally):
    assert main(["stress", str(tmp_path / "db"), "--minutes", str(MINUTES), "--json"]) == 0
    for fault, count in json.loads(capsys.readouterr().out)["struck"].items():
        tally(f"stress: {fault}", count)


RARE = [Fault.NO_DESCRIPTORS, Fault.WORKER_HUNG, Fault.KILL_IN_CLOSING, Fault.STOPPED_WORKERS]


@pytest.mark.parametrize(
    "fault", [Fault.KILL_IN_OPENING, *(pytest.param(rare, marks=pytest.mark.long) for rare in RARE)]
)
def test_each_rarer_fault(tmp_path, fault):
    stress = Stress(str(tmp_path / "db"), str(tmp_path / "ledger"))
    drawn = draw(3, 1, ["none"])
    quiet = {**drawn.options, "num_memtables": 3, "memtable_size": 256 << 10}
    stress.run(Round(1, quiet, fault, 0.5, 1, "flusher"))
    stress.run(Round(2, quiet, Fault.CLOSE, 0.5, 2, "flusher"))
    assert stress.checker.acked > 0  # how many is a matter of the machine


def test_a_commit_that_is_missing_is_condemned(tmp_path):
    """Somebody was promised what the database never saw."""
    stress = Stress(str(tmp_path / "db"), str(tmp_path / "ledger"))
    ledger = Ledger(tmp_path / "ledger")
    ledger.begin(1, 9, 1, [["o/9/000", SET, "5:0011223344556677"]])
    ledger.acked(1, None)
    ledger.close()
    options = draw(3, 1, ["none"]).options
    with pytest.raises(StressError, match="violations: "):
        stress.run(Round(1, options, Fault.CLOSE, 0.1, 1, "flusher"))
