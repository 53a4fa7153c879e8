"""Options: what is allowed, who wins, and what a refusal says."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meles.engine.errors import ConfigError
from meles.engine.option_checks import GIB, KIB, MIB
from meles.engine.options import FIELDS, Options, load_options, load_with_origin, read_config

KEY = bytes(range(32))
NONE: dict[str, str] = {}


def load(**keywords: object) -> Options:
    return load_options(keywords, environ=NONE)


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return tmp_path / "meles.toml"


# -- defaults ------------------------------------------------------------------------------------

DEFAULTS = {
    "value_dir": None, "sync": "interval", "sync_interval": 0.1, "num_versions_to_keep": 1,
    "zstd_level": 1, "memtable_size": 64 * MIB, "num_memtables": 5, "base_table_size": 2 * MIB,
    "base_level_size": 10 * MIB, "level_size_multiplier": 10, "table_size_multiplier": 2,
    "max_levels": 7, "value_threshold": KIB, "vlog_percentile": 0.0, "value_log_file_size": GIB - 1,
    "value_log_max_entries": 1_000_000, "block_size": 4 * KIB, "bloom_false_positive": 0.01,
    "block_cache_size": 256 * MIB, "index_cache_size": 0, "num_level_zero_tables": 5,
    "num_level_zero_tables_stall": 15, "compact_l0_on_close": False, "lmax_compaction": True,
    "detect_conflicts": True, "namespace_offset": -1, "encryption_key": None,
    "encryption_key_rotation": 864_000.0, "bypass_lock_guard": False, "trust_directory": False,
    "external_magic_version": 0,
    "metrics_enabled": True, "managed": False, "workers": "process", "gc": True,
    "gc_discard_ratio": 0.5, "worker_heartbeat": 1.0, "worker_hang_timeout": 30.0,
    "worker_memory_limit": None, "close_timeout": 10.0, "memory_budget": None,
}  # fmt: skip


def test_defaults_are_the_documented_ones() -> None:
    options = load()
    assert {name: getattr(options, name) for name in DEFAULTS} == DEFAULTS
    cores = os.cpu_count() or 1
    assert options.num_compactors == max(1, min(4, cores - 1))
    others = {"compression", "num_compactors", "write_stall_timeout"}
    assert set(FIELDS) == set(DEFAULTS) | others


def test_a_transaction_may_hold_15_percent_of_a_memtable() -> None:
    assert load(memtable_size="1MiB").txn_limit == 157_286


def test_every_option_says_what_it_is_for() -> None:
    for name, field in FIELDS.items():
        assert field.metadata["doc"], name
        assert callable(field.metadata["check"]), name


# -- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (1 << 20, 1 << 20), ("1048576", 1 << 20), ("1048576b", 1 << 20), (" 1 MiB ", 1 << 20),
        ("1mib", 1 << 20), ("1M", 1 << 20), ("1024k", 1 << 20), ("1MB", 10**6), ("20kB", 20_000),
        ("1.5MiB", 3 << 19), ("0.5g", 1 << 29), ("00000000000000000001MiB", 1 << 20),
        ("1125899906842624", 1 << 50),
    ],
)  # fmt: skip
def test_sizes(given: object, expected: int) -> None:
    assert load(block_cache_size=given).block_cache_size == expected


@pytest.mark.parametrize(
    "given",
    ["", "MiB", "1 XiB", "1e6", "-1", "1,5MiB", "1..5MiB", ".5MiB", "1MiB MiB", "9" * 400, "9" * 21,
     "\u0661", 1.5, True, b"1", [1], {}, 10**400, -1, (1 << 50) + 1, float("nan")],
)  # fmt: skip
def test_what_is_no_size(given: object) -> None:
    with pytest.raises(ConfigError, match="option block_cache_size="):
        load(block_cache_size=given)


GOOD: list[tuple[str, object, object]] = [
    ("value_dir", Path("/data"), "/data"), ("value_dir", "data", "data"), ("value_dir", "", None),
    ("sync", "commit", "commit"), ("sync_interval", timedelta(milliseconds=50), 0.05),
    ("sync_interval", "0.5", 0.5), ("sync_interval", 1, 1.0), ("num_versions_to_keep", " 3 ", 3),
    ("memtable_size", "64KiB", 64 * KIB), ("value_log_file_size", "1MiB", MIB),
    ("value_threshold", 0, 0), ("bloom_false_positive", 0, 0.0), ("vlog_percentile", 1, 1.0),
    ("num_compactors", 0, 0), ("num_compactors", "2", 2), ("namespace_offset", "-1", -1),
    ("gc", "No", False), ("gc", "TRUE", True), ("gc", "1", True), ("managed", False, False),
    ("encryption_key", KEY.hex(), KEY), ("encryption_key", KEY[:16], KEY[:16]),
    ("encryption_key", bytearray(KEY[:24]), KEY[:24]), ("encryption_key", b"", None),
    ("encryption_key", "", None), ("worker_memory_limit", "", None),
    ("worker_memory_limit", "1GiB", GIB), ("close_timeout", timedelta(seconds=3), 3.0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "expected"), GOOD)
def test_values_are_taken(name: str, value: object, expected: object) -> None:
    found = getattr(load(**{name: value}), name)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(("name", "value", "expected"), [g for g in GOOD if isinstance(g[1], str)])
def test_a_text_means_the_same_in_the_environment(name: str, value: str, expected: object) -> None:
    options = load_options({}, environ={f"MELES_{name.upper()}": value})
    assert getattr(options, name) == expected


BAD: list[tuple[str, object]] = [
    ("value_dir", 7), ("value_dir", b"data"), ("value_dir", "a\0b"),
    ("sync", "always"), ("sync", None), ("sync", ["none"]), ("sync_interval", 0),
    ("sync_interval", "soon"), ("sync_interval", timedelta(0)), ("sync_interval", float("nan")),
    ("sync_interval", "inf"), ("sync_interval", True), ("num_versions_to_keep", 0),
    ("num_versions_to_keep", 1.0), ("num_versions_to_keep", True), ("num_versions_to_keep", "x"),
    ("num_versions_to_keep", "1" * 5000),
    ("compression", "gzip"), ("compression", "ZSTD"), ("zstd_level", 23),
    ("memtable_size", 64 * KIB - 1), ("value_log_file_size", MIB - 1),
    ("value_log_file_size", 2 * GIB), ("value_threshold", -1), ("max_levels", 17),
    ("block_cache_size", 1 << 60), ("bloom_false_positive", 1), ("bloom_false_positive", None),
    ("gc_discard_ratio", 0), ("gc_discard_ratio", 1), ("gc_discard_ratio", "1.0"),
    ("num_compactors", -1), ("num_compactors", 65), ("num_compactors", "many"), ("gc", 1),
    ("gc", "maybe"), ("gc", None), ("workers", "fork"), ("external_magic_version", 1 << 16),
    ("worker_memory_limit", 1), ("close_timeout", -1), ("namespace_offset", -2),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_refusal_names_option_value_origin_and_what_is_allowed(name: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        load(**{name: value})
    text = str(caught.value)
    assert text.startswith(f"option {name}=")
    assert "(from keyword): allowed is " in text
    assert len(text) < 500
    with pytest.raises(ConfigError, match=f"^option {name}="):
        Options(**{name: value})  # type: ignore[arg-type]


def test_the_value_is_shown() -> None:
    for value, shown in (("always", "sync='always' "), (7, "sync=7 "), (10**400, "sync=0x")):
        with pytest.raises(ConfigError, match=shown):
            load(sync=value)
    for name, huge in (
        ("sync", 10**5000),
        ("max_levels", -(10**5000)),
        ("gc_discard_ratio", 1 << 9999),
    ):
        with pytest.raises(ConfigError, match=rf"{name}=-?0x[0-9a-f]+\.\.\. \(from"):
            load(**{name: huge})
    with pytest.raises(ConfigError, match=r"sync='x{199}\.\.\. \(from"):
        load(sync="x" * 10_000)


@given(st.sampled_from(sorted(FIELDS)), st.data())
def test_any_value_is_taken_or_refused(name: str, data: st.DataObject) -> None:
    anything = st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(),
        st.lists(st.integers()), st.timedeltas(), st.just(10**5000), st.just("9" * 5000),
    )  # fmt: skip
    value = data.draw(anything)
    try:
        options = load(**{name: value})
    except ConfigError:
        return
    assert load(**{name: getattr(options, name)}) == options  # what is kept is allowed itself


# -- rules between options -----------------------------------------------------------------------


def test_stalling_begins_above_compaction() -> None:
    with pytest.raises(ConfigError) as caught:
        load(num_level_zero_tables=15)
    assert str(caught.value).startswith(
        "option num_level_zero_tables_stall=15 (from the default): allowed is more than "
        "num_level_zero_tables (15, from keyword)"
    )
    with pytest.raises(ConfigError, match="num_level_zero_tables_stall=15"):
        Options(num_level_zero_tables=15)
    load(num_level_zero_tables=15, num_level_zero_tables_stall=16)


def test_a_block_fits_a_table(toml: Path) -> None:
    toml.write_text('[meles]\nbase_table_size = "64KiB"\n')
    with pytest.raises(ConfigError) as caught:
        load_options({}, config=toml, environ={"MELES_BLOCK_SIZE": "128KiB"})
    assert str(caught.value).startswith(
        "option block_size=131072 (from environment variable MELES_BLOCK_SIZE): allowed is at most "
        f"base_table_size (65,536, from config file {str(toml)!r})"
    )
    load(block_size="64KiB", base_table_size="64KiB")


# -- precedence and sources ----------------------------------------------------------------------


def test_keyword_beats_environment_beats_file_beats_default(toml: Path) -> None:
    toml.write_text("[meles]\nmax_levels = 4\nzstd_level = 4\nnum_memtables = 4\n")
    environ = {"MELES_MAX_LEVELS": "5", "MELES_ZSTD_LEVEL": "5"}
    options, origin = load_with_origin({"max_levels": 6}, config=toml, environ=environ)
    found = (options.max_levels, options.zstd_level, options.num_memtables)
    assert found == (6, 5, 4)
    assert options.base_table_size == 2 * MIB
    assert origin == {
        "max_levels": "keyword",
        "zstd_level": "environment variable MELES_ZSTD_LEVEL",
        "num_memtables": f"config file {str(toml)!r}",
    }


def test_a_bad_value_is_refused_where_it_stands_even_if_it_is_overridden(toml: Path) -> None:
    toml.write_text("[meles]\nmax_levels = 99\n")
    with pytest.raises(ConfigError, match=r"max_levels=99 \(from config file"):
        load_options({"max_levels": 6}, config=toml, environ=NONE)
    with pytest.raises(
        ConfigError, match=r"max_levels='no' \(from environment variable MELES_MAX_"
    ):
        load_options({"max_levels": 6}, environ={"MELES_MAX_LEVELS": "no"})


def test_the_environment_of_the_process_is_what_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MELES_MAX_LEVELS", "5")
    assert load_options({}).max_levels == 5


def test_other_variables_are_ignored() -> None:
    environ = {"MELES_KERNEL": "python", "MELES_": "x", "MELES_max_levels": "3", "MAX_LEVELS": "3"}
    assert load_options({}, environ=environ) == load()


@pytest.mark.parametrize(
    ("name", "guess"),
    [("memtable_sise", "; did you mean 'memtable_size'?"), ("Sync", "; did you mean 'sync'?"),
     ("nothing_like_it_at_all", "")],
)  # fmt: skip
def test_an_unknown_option_is_refused_with_a_guess(toml: Path, name: str, guess: str) -> None:
    toml.write_text(f"[meles]\n{name} = 1\n")
    for origin, keywords, config in (
        ("keyword", {name: 1}, None),
        (f"config file {str(toml)!r}", {}, toml),
    ):
        with pytest.raises(ConfigError) as caught:
            load_options(keywords, config=config, environ=NONE)
        assert caught.value.message == f"unknown option {name!r} (from {origin}){guess}"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", {}),
        (b"[other]\nx = 1\n", {}),
        (b"[meles]\n", {}),
        (b'[meles]\nsync = "none"\nmax_levels = 3\n', {"sync": "none", "max_levels": 3}),
    ],
)
def test_the_table_of_a_file(toml: Path, content: bytes, expected: dict[str, object]) -> None:
    toml.write_bytes(content)
    for path in (toml, str(toml)):
        assert read_config(path) == expected


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[meles", "is not TOML"),
        (b"\xff\xfe", "is not TOML"),
        (b"[meles]\nmax_levels = " + b"9" * 5000, "is not TOML"),
        (b"x = " + b"[" * 50_000, "is not TOML"),
        (b"[meles]\nsync = 1\nsync = 2\n", "is not TOML"),
        (b"meles = 3\n", "is not a table"),
        (b"[[meles]]\n", "is not a table"),
    ],
)
def test_a_file_that_cannot_be_read_as_options(toml: Path, content: bytes, why: str) -> None:
    toml.write_bytes(content)
    with pytest.raises(ConfigError, match=why) as caught:
        load_options({}, config=toml, environ=NONE)
    assert repr(str(toml)) in str(caught.value)


@pytest.mark.parametrize("config", ["absent.toml", ".", "", "a\0b", 7])
def test_a_file_that_is_none(config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="config"):
        load_options({}, config=config, environ=NONE)


# -- the encryption key --------------------------------------------------------------------------


def test_the_key_is_in_no_text() -> None:
    options = load(encryption_key=KEY, max_levels=3)
    assert repr(options) == str(options)
    assert "encryption_key='<set>'" in repr(options)
    assert "max_levels=3" in repr(options)
    for text in (repr(options), f"{options}", repr([options]), "%s" % options):  # noqa: UP031
        assert repr(KEY) not in text
        assert KEY.hex() not in text


@pytest.mark.parametrize(
    "value", ["not hexadecimal", "0011", b"short-secret", 12345678, ["secret"]]
)
def test_a_bad_key_is_in_no_error(value: object) -> None:
    errors = []
    attempts: list[Callable[[], Options]] = [
        lambda: load(encryption_key=value),
        lambda: Options(encryption_key=value),  # type: ignore[arg-type]
        lambda: load_options({}, environ={"MELES_ENCRYPTION_KEY": f"{value!r}"}),
        lambda: load_options({"encryption_kee": value}, environ=NONE),
    ]
    for attempt in attempts:
        with pytest.raises(ConfigError) as caught:
            attempt()
        errors.append(caught.value)
    for error in errors:
        chain: BaseException | None = error
        while chain is not None:
            for secret in (repr(value), f"{value}", "secret", "hexadecimal'"):
                assert secret not in f"{chain}{chain!r}"
            chain = chain.__cause__ or chain.__context__
    assert str(errors[0]).startswith(
        "option encryption_key=<hidden> (from keyword): allowed is 16, "
    )


# -- the object ----------------------------------------------------------------------------------


def test_options_are_values() -> None:
    options = load(max_levels=3)
    assert options == load(max_levels="3")
    assert options != load()
    assert hash(options) == hash(load(max_levels=3))
    assert {options: 1}[load(max_levels=3)] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.max_levels = 4  # type: ignore[misc]
    with pytest.raises(TypeError):
        Options(3)  # type: ignore[call-arg, arg-type]


def test_a_changed_copy_is_checked_again() -> None:
    options = dataclasses.replace(load(encryption_key=KEY), max_levels=3)
    assert (options.max_levels, options.encryption_key) == (3, KEY)
    with pytest.raises(ConfigError, match="max_levels=99"):
        dataclasses.replace(options, max_levels=99)


def test_strict_interpreters_find_nothing_to_complain_of() -> None:
    """`python -bb` makes comparing bytes with text an error."""
    script = (
        "from meles.engine.options import load_options\n"
        "load_options({'encryption_key': 'aa' * 16}, environ={})\n"
        "load_options({'encryption_key': b'a' * 16, 'value_dir': 'x'}, environ={})\n"
        "load_options({'worker_memory_limit': '1GiB', 'encryption_key': ''}, environ={})\n"
    )
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-bb", "-c", script]) == 0
