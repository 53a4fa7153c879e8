"""Figures and reports as text."""

from __future__ import annotations

import pytest
from meles.engine.cli.render import (
    aligned,
    printable,
    rate_text,
    size_text,
    stage_lines,
    worker_lines,
)
from meles.engine.reports import Stage, WorkerInfo


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (5 << 20, "5.0 MiB"),
        (1 << 50, "1024.0 TiB"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text


def test_rates() -> None:
    assert rate_text(5000, 2048, 2) == "2,500 records/s, 1.0 KiB/s"
    assert rate_text(1, 1, 0) == "-"


def test_unprintable_bytes_are_escaped() -> None:
    assert printable(b"a\tb\n\x1b[0m\xff") == r"a\tb\n\x1b[0m\xff"
    assert printable("grün".encode()) == "grün"


def test_columns_are_aligned() -> None:
    assert aligned([("a", "1"), ("long", "22")], right=frozenset({1})) == ["a      1", "long  22"]
    assert aligned([]) == []


def test_worker_line_shows_state_job_memory_and_cpu() -> None:
    busy = WorkerInfo("compactor", "compactor-1", 77, "busy", "compact L0>L1", 3 << 20, 1.5, 2)
    idle = WorkerInfo("flusher", "flusher", None, "idle", None, 0, 0.0, 0)
    heading, first, second = worker_lines([busy, idle])
    assert heading.split() == ["worker", "pid", "state", "RSS", "CPU", "restarts", "job"]
    assert first.split("  ")[0] == "compactor-1"
    for text in ("77", "busy", "3.0 MiB", "1.50 s", "2", "compact L0>L1"):
        assert text in first
    assert second.split() == ["flusher", "-", "idle", "0", "B", "0.00", "s", "0", "-"]


def test_stage_table_has_a_line_per_stage() -> None:
    lines = stage_lines([Stage("flush", 0.25, "done"), Stage("stop", 10, "timeout", "left\n")])
    assert [line.split() for line in lines] == [
        ["close", "stage", "seconds", "outcome", "detail"],
        ["flush", "0.250", "done"],
        ["stop", "10.000", "timeout", r"left\n"],
    ]
