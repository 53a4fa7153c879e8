"""The configurations shipped with the package: complete, true, and accepted."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from meles.engine.options import FIELDS, KIB, Options, load_options, load_with_origin

CONFIGS = Path(__file__).parents[1] / "configs"
NAMES = ("default", "tiny", "durable", "ingest")
MACHINE_DEPENDENT = {"num_compactors"}  # shown as a comment, its default depends on the cores


def test_exactly_these_are_shipped() -> None:
    assert sorted(path.stem for path in CONFIGS.glob("*.toml")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_is_accepted_and_holds_only_the_meles_table(name: str) -> None:
    content = tomllib.loads((CONFIGS / f"{name}.toml").read_text())
    assert list(content) == ["meles"]
    load_options({}, config=CONFIGS / f"{name}.toml", environ={})


def test_default_names_every_option_in_the_file() -> None:
    text = (CONFIGS / "default.toml").read_text()
    named = re.findall(r"^(?:# )?([a-z0-9_]+) = ", text, re.MULTILINE)
    assert sorted(set(named) & set(FIELDS)) == sorted(FIELDS)
    table = tomllib.loads(text)["meles"]
    assert set(FIELDS) - set(table) == MACHINE_DEPENDENT


def test_default_shows_the_defaults() -> None:
    assert load_options({}, config=CONFIGS / "default.toml", environ={}) == Options()


def test_default_gives_every_option_a_comment_with_badgers_name() -> None:
    blocks = (CONFIGS / "default.toml").read_text().split("\n\n")
    comments = {}
    for block in blocks:
        for match in re.finditer(r"^(?:# )?([a-z0-9_]+) = .*$", block, re.MULTILINE):
            comments[match[1]] = block[: match.start()]
    for name, spec in FIELDS.items():
        badger = spec.metadata["badger"]
        assert comments[name].startswith("# "), name
        named = re.findall(r"\[([A-Z]\w+)\]", comments[name])
        assert named == ([badger] if badger else []), name


def test_tiny_rotates_after_64_kib_and_durable_syncs() -> None:
    tiny = load_options({}, config=CONFIGS / "tiny.toml", environ={})
    assert tiny.memtable_size == 64 * KIB
    assert load_options({}, config=CONFIGS / "durable.toml", environ={}).sync == "commit"


@pytest.mark.parametrize("name", ["tiny", "durable", "ingest"])
def test_says_nothing_that_is_the_default_already(name: str) -> None:
    options, origin = load_with_origin({}, config=CONFIGS / f"{name}.toml", environ={})
    default = Options()
    same = [option for option in origin if getattr(options, option) == getattr(default, option)]
    assert same == []
