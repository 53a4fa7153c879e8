"""Where the directories of an open database are: told once, and no more when they are back."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from meles.engine.background.whereabouts import Whereabouts
from meles.engine.fs.files import Directory


def test_a_move_is_told_once_and_forgotten_when_undone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home = tmp_path / "db"
    home.mkdir()
    with Directory(str(home)) as directory:
        places = Whereabouts([directory, directory])  # tables and values in one: one problem
        places.look()
        assert places.problems == []
        home.rename(tmp_path / "moved")
        for _ in range(3):
            places.look()
        (problem,) = places.problems
        assert str(home) in problem
        told = [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]
        assert told == [problem]
        (tmp_path / "moved").rename(home)
        places.look()
        assert places.problems == []
