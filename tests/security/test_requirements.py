"""The list of requirements names tests that exist; dependencies are few; warnings are errors."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

TESTS = Path(__file__).parents[1]
PROJECT = tomllib.loads((TESTS.parent / "pyproject.toml").read_text())
CHOSEN = {
    "click", "crc32c", "msgpack", "multiprocessing-logging", "psutil", "rich", "sortedcontainers",
    "xxhash",
}  # fmt: skip


def test_every_test_that_is_named_exists() -> None:
    text = (TESTS / "security" / "REQUIREMENTS.md").read_text()
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", text)
    assert len(named) > 25
    for path, name in named:
        assert f"def {name}(" in (TESTS / path).read_text(), (path, name)


def test_every_requirement_is_there() -> None:
    text = (TESTS / "security" / "REQUIREMENTS.md").read_text()
    found: set[int] = set()
    for first, last in re.findall(r"^\| S(\d+)(?: - S(\d+))? \|", text, re.MULTILINE):
        found.update(range(int(first), int(last or first) + 1))
    assert found == set(range(1, 17))


def test_dependencies_are_the_few_that_were_chosen() -> None:
    names = {re.split(r"[<>=; \[]", line)[0] for line in PROJECT["project"]["dependencies"]}
    assert names == CHOSEN


def test_warnings_are_errors() -> None:
    assert PROJECT["tool"]["pytest"]["ini_options"]["filterwarnings"] == ["error"]
