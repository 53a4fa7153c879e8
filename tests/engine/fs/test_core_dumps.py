"""Leaving memory out of core dumps; real ones are looked at in `security/test_core_dumps.py`."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from meles.engine.fs import core_dumps

MASK = "/proc/self/coredump_filter"
SCRIPT = f"""
import sys
from meles.engine.fs.core_dumps import leave_memory_out_of_core_dumps
with open("{MASK}", "w") as file:
    file.write(sys.argv[1])
for _ in range(2):
    leave_memory_out_of_core_dumps()
    with open("{MASK}") as file:
        print(file.read())
"""


@pytest.mark.skipif(not Path(MASK).exists(), reason=f"no {MASK}")
@pytest.mark.parametrize(
    ("before", "after"),
    [("0x33", 0x10), ("0x1ff", 0x19C), ("0x63", 0), ("0x1", 0), ("0x0", 0), ("0x9c", 0x9C)],
)
def test_the_bits_of_memory_are_cleared_and_no_other(before: str, after: int) -> None:
    command = [sys.executable, "-P", "-c", SCRIPT, before]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [int(line, 16) for line in done.stdout.split()] == [after, after]


def test_where_there_is_no_filter_nothing_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(core_dumps, "_FILTER", str(tmp_path / "missing"))
    core_dumps.leave_memory_out_of_core_dumps()
    assert list(tmp_path.iterdir()) == []
    assert caplog.records == []


@pytest.mark.parametrize("content", [None, b"", b"something else"])
def test_a_filter_that_cannot_be_changed_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    content: bytes | None,
) -> None:
    path = tmp_path / "filter"
    path.mkdir() if content is None else path.write_bytes(content)
    monkeypatch.setattr(core_dumps, "_FILTER", str(path))
    with caplog.at_level(logging.WARNING, "meles.fs"):
        core_dumps.leave_memory_out_of_core_dumps()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "a core dump would hold keys" in caplog.text
    assert content is None or path.read_bytes() == content
