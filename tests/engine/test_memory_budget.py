"""One budget for the whole process tree: what follows from it, and when it is refused."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import meles
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from meles.engine.errors import ConfigError
from meles.engine.memory_budget import DERIVED, block_room, index_room, page_room
from meles.engine.option_checks import GIB, KIB, MIB
from meles.engine.options import Options, load_options, load_with_origin
from resident import resident_of

HOST, PAGES, WORKER, COMPACTING, FLUSHING = 28 * MIB, 4 * MIB, 22 * MIB, 16 * MIB, 3


def load(**keywords: object) -> Options:
    return load_options(keywords, environ={})


def total(options: Options) -> int:
    """What a database with these options may take by the rules of the budget."""
    compactors = max(1, options.num_compactors)
    processes = compactors + 2 if options.workers == "process" else 0
    memtables = (options.num_memtables + 1 + FLUSHING) * options.memtable_size
    caches = options.block_cache_size + options.index_cache_size
    return HOST + PAGES + processes * WORKER + compactors * COMPACTING + memtables + caches


def test_without_a_budget_the_defaults_are_fixed() -> None:
    options = load()
    assert [getattr(options, name) for name in DERIVED] == [64 * MIB, 256 * MIB, 0, None]


@given(
    budget=st.integers(128 * MIB, 64 * GIB),
    memtables=st.integers(1, 30),
    compactors=st.integers(0, 8),
    workers=st.sampled_from(["process", "thread", "inline"]),
    block_size=st.sampled_from([256, 4 * KIB, 64 * KIB]),
)
def test_what_is_derived_stays_within_the_budget_and_uses_it(
    budget: int, memtables: int, compactors: int, workers: str, block_size: int
) -> None:
    given_ = {
        "memory_budget": budget, "num_memtables": memtables, "num_compactors": compactors,
        "workers": workers, "block_size": block_size,
    }  # fmt: skip
    try:
        options = load(**given_)
    except ConfigError:  # the small ones: many processes, many memtables
        assume(False)
    assert budget - 64 < total(options) <= budget
    assert 64 * KIB <= options.memtable_size <= 64 * MIB
    assert options.block_cache_size >= block_room(block_size)
    assert options.index_cache_size >= index_room(options.base_table_size, block_size)
    assert Options(**given_) == options
    assert dataclasses.replace(options, max_levels=3).memtable_size == options.memtable_size


def test_what_is_given_is_kept_and_the_rest_shares_what_is_left() -> None:
    free = load(memory_budget="512MiB", num_compactors=1)
    chosen = load(memory_budget="512MiB", num_compactors=1, memtable_size="32MiB")
    assert chosen.memtable_size == 32 * MIB > free.memtable_size
    assert chosen.block_cache_size < free.block_cache_size
    assert total(chosen) <= 512 * MIB
    same = load(memory_budget="4GiB", memtable_size="64MiB", block_cache_size="256MiB")
    assert (same.memtable_size, same.block_cache_size) == (64 * MIB, 256 * MIB)
    assert load(memory_budget="512MiB", block_cache_size=0).block_cache_size == 0


def test_a_larger_budget_makes_everything_larger() -> None:
    small, large = load(memory_budget="256MiB"), load(memory_budget="2GiB")
    for name in DERIVED:
        assert getattr(small, name) < getattr(large, name)
    assert load(memory_budget="2GiB", workers="thread").worker_memory_limit is None


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"memory_budget": "64MiB", "num_compactors": 1}, "for the processes"),
        ({"memory_budget": "256MiB", "memtable_size": "64MiB"}, "for the memtable_size given"),
        ({"memory_budget": "256MiB", "block_cache_size": "256MiB"}, "for the block_cache_size"),
        ({"memory_budget": "1GiB", "num_memtables": 1000, "memtable_size": "2MiB"}, "memtable"),
        ({"memory_budget": "256MiB", "index_cache_size": 0}, "index_cache_size=0"),
    ],
)
def test_a_budget_below_the_needs_is_refused(keywords: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(**keywords)
    text = str(caught.value)
    assert text.startswith("option memory_budget=")
    assert "(from keyword): allowed is nothing" in text
    assert named in text
    with pytest.raises(ConfigError, match="memory_budget"):
        Options(**keywords)


def test_the_least_budget_named_is_enough() -> None:
    with pytest.raises(ConfigError) as caught:
        load(memory_budget=MIB)
    least = int(str(caught.value).split("at least ")[1].split(" bytes")[0].replace(",", ""))
    assert load(memory_budget=least).memtable_size == 64 * KIB
    with pytest.raises(ConfigError):
        load(memory_budget=least - 1)


def test_the_origin_of_the_budget_is_named(tmp_path: Path) -> None:
    config = tmp_path / "small.toml"
    config.write_text('[meles]\nmemory_budget = "2MiB"\n')
    with pytest.raises(ConfigError, match="from config file"):
        load_options({}, config=config, environ={})
    with pytest.raises(ConfigError, match="from environment variable MELES_MEMORY_BUDGET"):
        load_options({}, environ={"MELES_MEMORY_BUDGET": "2MiB"})
    options, origin = load_with_origin({"memory_budget": "1GiB"}, config=config, environ={})
    assert options.memory_budget == GIB
    assert origin == {"memory_budget": "keyword"}


@pytest.mark.parametrize(
    ("name", "given_", "others"),
    [
        ("block_cache_size", 16 * KIB - 1, {}),
        ("block_cache_size", 1, {"block_size": "256"}),
        ("block_cache_size", "1MiB", {"block_size": "512KiB"}),
        ("index_cache_size", 1000, {}),
        ("index_cache_size", "256KiB", {"base_table_size": "64MiB"}),
    ],
)
def test_a_cache_too_small_for_one_block_or_index(
    name: str, given_: object, others: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=rf"^option {name}=.*allowed is 0, or at least [\d,]+ by"):
        load(**{name: given_}, **others)
    with pytest.raises(ConfigError, match=rf"^option {name}="):
        Options(**{name: given_}, **others)


def test_pages_have_what_the_block_cache_leaves() -> None:
    options = vars(load(memory_budget="512MiB", num_compactors=1))
    logs = (options["num_memtables"] + 1) * options["memtable_size"]
    empty = page_room(options, 0)
    assert 0 <= empty - logs - options["block_cache_size"] - PAGES < 64
    assert page_room(options, 10 * MIB) == empty - 10 * MIB
    assert page_room(options, 1 << 40) == PAGES


def test_files_read_in_place_stay_within_their_share(tmp_path: Path) -> None:
    rng = random.Random(1)
    with meles.open(
        tmp_path / "db", memory_budget="56MiB", workers="inline", num_compactors=1, sync="none"
    ) as db:
        values = [rng.randbytes(900), rng.randbytes(3000)]  # in tables, and in the value log
        for start in range(0, 24_000, 500):
            with db.write_batch() as batch:
                for nth in range(start, start + 500):
                    batch.set(b"%06d" % nth, values[nth % 4 == 0])
        db.flush()
        room = page_room(vars(db.options), 0)
        size = db.size()
        assert size.lsm_bytes > 1.5 * room
        assert size.lsm_bytes + size.value_log_bytes > 3 * room
        most = 0
        for turn in range(6):
            for _ in range(400):
                nth = rng.randrange(24_000)
                assert db[b"%06d" % nth] == values[nth % 4 == 0]
            most = max(most, resident_of(tmp_path))
            if turn % 2:
                assert sum(1 for _ in db.items()) == 24_000
                most = max(most, resident_of(tmp_path))
        assert room / 4 < most <= room + 4 * MIB


def test_a_refused_budget_leaves_no_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="memory_budget"):
        meles.open(tmp_path / "db", memory_budget="2MiB")
    assert list(tmp_path.iterdir()) == []


def test_a_database_opens_with_the_derived_sizes(tmp_path: Path) -> None:
    with meles.open(tmp_path / "db", memory_budget="192MiB", num_compactors=1) as db:
        assert db.options.memtable_size < 16 * MIB
        for n in range(3000):
            db[b"%05d" % n] = bytes(500)
        db.flush()
        assert db[b"00042"] == bytes(500)
        assert "memory_budget=201326592" in repr(db.options)
