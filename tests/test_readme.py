"""What the documents promise: the example runs, the verbs and the make targets exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from meles.engine.cli.main import commands

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def test_the_example_does_what_it_says(tmp_path: Path) -> None:
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert example is not None
    done = subprocess.run(
        [sys.executable, "-c", example[1]], cwd=tmp_path, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout == "b'user/1' b'Ada'\nb'user/2' b'Ada Lovelace'\n"


def test_the_verbs_are_those_of_the_command() -> None:
    listed = re.search(r"^Verbs: `([a-z ]+)`", README, re.MULTILINE)
    assert listed is not None
    assert sorted(listed[1].split()) == sorted(commands.commands)


def test_the_commands_shown_are_understood() -> None:
    shown = re.findall(r"^(?:.*\| )?meles ([a-z]+) ", README, re.MULTILINE)
    assert len(shown) >= 5
    assert set(shown) <= set(commands.commands)


@pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_the_make_targets_exist(text: str) -> None:
    wanted = set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert wanted
    assert wanted <= targets


def test_continuous_integration_is_an_executable_strict_script() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail\n" in script.read_text()


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_to_files_lead_somewhere(name: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / name).read_text())
    for link in links:
        assert (ROOT / link).exists(), link
