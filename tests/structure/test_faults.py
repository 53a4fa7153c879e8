"""FAULTS.md names every fault of the catalogue, tests that exist, and groups of the campaign."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
TEXT = (TESTS / "FAULTS.md").read_text()
ROWS = re.findall(r"^\| (F\d+|C\d+(?:[, \-C\d]+)?) \| (.*) \|$", TEXT, re.MULTILINE)


def test_every_fault_has_its_row() -> None:
    assert [name for name, _ in ROWS if name[0] == "F"] == [f"F{n}" for n in range(1, 34)]


@pytest.mark.parametrize(("name", "row"), ROWS, ids=[name for name, _ in ROWS])
def test_its_tests_exist(name: str, row: str) -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", row)
    assert named, name
    for path, test in named:
        assert f"def {test}(" in (TESTS / path).read_text(), (path, test)


def test_its_groups_are_those_of_the_campaign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TESTS))
    monkeypatch.setattr(sys, "modules", {**sys.modules})  # it is forgotten afterwards
    import campaign

    counts = [row.rpartition("|")[2] for name, row in ROWS if name[0] == "F"]
    said = {word for count in counts for word in re.findall(r"[a-z]+", count)}
    assert set(campaign.GROUPS) - said <= {"isolation", "model", "stress"}
    for count in counts:
        first = re.findall(r"[a-z]+", count)[0]
        assert first in campaign.GROUPS, count


def test_what_the_campaign_runs_exists() -> None:
    text = (TESTS / "campaign.py").read_text()
    for path, test in re.findall(r"\{(?:PROCESS|FAULTS)\}/(\w+\.py)(?:::(\w+))?", text):
        found = [folder / path for folder in (TESTS / "process", TESTS / "faults")]
        file = next((each for each in found if each.exists()), None)
        assert file is not None, path
        assert not test or f"def {test}(" in file.read_text(), test
