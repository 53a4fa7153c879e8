"""What a campaign injected and reached: rows that tests note and the end of the run prints.

A test asks for the fixture `tally` and calls it, once or often: `tally("EIO at a call", 121)`. Rows
with the same name add up. A test that fails makes each of its rows a violation; one that is skipped
stands there with its reason, so that a campaign without means does not look like one without
findings.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytest

PROPERTY = "fault"  # of test reports, which cross from workers to the process that prints

Tally = Callable[..., None]


@dataclass
class Row:
    """Sums of one fault: how often it was injected, and how often it struck."""

    injected: int = 0
    reached: int = 0
    violations: int = 0


def noting(node: pytest.Item) -> Tally:
    """The fixture's value for a test."""

    def note(fault: str, injected: int, reached: int | None = None) -> None:
        reached = injected if reached is None else reached
        node.user_properties.append((PROPERTY, [fault, injected, reached]))

    return note


def rows_of(reports: Iterable[pytest.TestReport]) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for report in reports:
        if report.when != "call":
            continue
        for name, value in report.user_properties:
            if name != PROPERTY:
                continue
            assert isinstance(value, list)
            fault, injected, reached = value
            row = rows.setdefault(fault, Row())
            row.injected += injected
            row.reached += reached
            row.violations += report.failed
    return rows


def as_json(rows: dict[str, Row], skipped: Iterable[str]) -> str:
    """The rows, for whoever adds up several runs."""
    plain = {name: (row.injected, row.reached, row.violations) for name, row in rows.items()}
    return json.dumps({"rows": plain, "skipped": sorted(set(skipped))})


def table(rows: dict[str, Row], skipped: Iterable[str], failed: int) -> list[str]:
    """The rows as lines."""
    if not rows:
        return []
    width = max(map(len, rows))
    lines = [f"{'fault':<{width}} {'injected':>10} {'reached':>10} {'violations':>10}"]
    for name in sorted(rows):
        row = rows[name]
        lines.append(
            f"{name:<{width}} {row.injected:>10,} {row.reached:>10,} {row.violations:>10,}"
        )
    total = sum(row.injected for row in rows.values())
    lines.append(f"{total:,} faults injected, {failed} tests failed")
    lines += [f"not tried: {reason}" for reason in sorted(set(skipped))]
    return lines
