"""Figures and reports as text: pure functions, no terminal, no database.

Runs in: supervisor.
Invariants: (1) sizes are shown in binary units, counts with thousands separators; (2) text of a
worker or report is shown with its control characters escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from meles.engine.reports import Stage, WorkerInfo

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def size_text(count: float) -> str:
    """`1536` as `1.5 KiB`."""
    value, unit = float(count), 0
    while abs(value) >= 1024 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    return f"{value:.0f} B" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"


def rate_text(records: float, size: float, seconds: float) -> str:
    """Records and bytes per second."""
    if seconds <= 0:
        return "-"
    return f"{records / seconds:,.0f} records/s, {size_text(size / seconds)}/s"


def printable(data: bytes) -> str:
    """Bytes as text on one line: UTF-8 where it is, everything unprintable as an escape."""
    text = data.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def aligned(rows: Iterable[Sequence[str]], *, right: frozenset[int] = frozenset()) -> list[str]:
    """Rows as lines with aligned columns; the columns in `right` are flush right."""
    table = [list(row) for row in rows]
    if not table:
        return []
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if at in right else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def worker_lines(workers: Iterable[WorkerInfo]) -> list[str]:
    """One line a worker under a heading."""
    rows = [("worker", "pid", "state", "RSS", "CPU", "restarts", "job")]
    for worker in workers:
        rows.append(
            (
                worker.name,
                "-" if worker.pid is None else str(worker.pid),
                worker.state,
                size_text(worker.rss_bytes),
                f"{worker.cpu_seconds:.2f} s",
                str(worker.restarts),
                printable((worker.job or "-").encode()),
            )
        )
    return aligned(rows, right=frozenset({1, 3, 4, 5}))


def stage_lines(stages: Iterable[Stage]) -> list[str]:
    """The stage table of a close, one line a stage under a heading."""
    rows = [("close stage", "seconds", "outcome", "detail")]
    for stage in stages:
        detail = printable(stage.detail.encode())
        rows.append((stage.name, f"{stage.seconds:.3f}", stage.outcome, detail))
    return aligned(rows, right=frozenset({1}))
