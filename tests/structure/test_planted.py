"""Each planted bug still has a place to be planted in: code that moves takes them along."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from planted import BUGS, Bug  # noqa: E402 - a script, found by the line above


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_it_applies(bug: Bug) -> None:
    texts = {file: (ROOT / file).read_text() for file, _, _ in bug.changes}
    for file, old, new in bug.changes:
        assert old in texts[file], file
        texts[file] = texts[file].replace(old, new)
