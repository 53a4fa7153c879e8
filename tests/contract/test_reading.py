"""Table lookups, lookups over a view, and scans: the compiled ones against the readable ones."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import meles.engine.read_view as read_view
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from meles.engine.clock import now_ms
from meles.engine.codec.columns import Columns
from meles.engine.codec.entry import META_POINTER
from meles.engine.fs.files import Directory
from meles.engine.iterators.range_scan import KeyRange, scan, sources
from meles.engine.iterators.visible import OWN_VERSION, Visibility
from twins import NATIVE, needs_native, needs_native_run
from views import CODECS, KEYS, NOW_MS, Row, columns_of, random_view

pytestmark = needs_native_run
ASKED = [*KEYS, b"", b"A", b"bb", b"zz", b"\xff\xff"]


@contextmanager
def readable() -> Iterator[None]:
    """Views answer with the Python twin meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read_view, "NATIVE", None)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    numbers = iter(range(10**6))
    base = tmp_path_factory.mktemp("views")

    def make() -> Directory:
        path = base / str(next(numbers))
        path.mkdir(mode=0o700)
        return Directory(str(path))

    return make


@settings(max_examples=30)
@given(st.integers(0, 1 << 40))
def test_lookups(folder: Any, seed: int) -> None:
    rng = random.Random(seed)
    with folder() as directory:
        made = random_view(rng, directory)
        view, last = made.view, len(made.rows)
        for key in ASKED:
            for ts in {0, 1, last // 3, last // 2, last - 1, last, OWN_VERSION}:
                with readable():
                    found, value = view.find(key, ts), view.value_of(key, ts)
                assert view.points.find(key, ts) == view.find(key, ts) == found
                assert view.points.value_of(key, ts) == view.value_of(key, ts) == value
                for table in made.tables:
                    assert table.blocks().get(key, ts) == table.get(key, ts)
        made.close()


def test_pointers_and_expiry_of_a_value(folder: Any) -> None:
    """`value_of` follows pointers, and only of what is alive."""
    rows: list[Row] = [
        (b"gone", 1, META_POINTER, 1, b"p" * 12), (b"late", 2, META_POINTER, 1 << 60, b"q" * 12),
        (b"plain", 3, 0, 1 << 60, b"v"), (b"there", 4, META_POINTER, 0, b"r" * 12),
    ]  # fmt: skip
    with folder() as directory:
        made = random_view(random.Random(1), directory)
        memtable = made.view.active
        for key, version, meta, expiry, value in rows:
            memtable.put(key, value, meta, 0, expiry, version + 1000)
        asked: list[tuple[bytes, int]] = []

        def follow(pointer: bytes, version: int) -> bytes:
            asked.append((pointer, version))
            return pointer[:1]

        points = NATIVE.Points([memtable.index], (), [], follow, now_ms)
        values = [points.value_of(key, OWN_VERSION) for key, *_ in rows]
        assert values == [None, b"q", b"v", b"r"]
        assert asked == [(b"q" * 12, 1002), (b"r" * 12, 1004)]
        made.close()


# -- scans ---------------------------------------------------------------------------------------

bounds = st.none() | st.sampled_from(ASKED)


def joined(batches: Any) -> Columns:
    out = Columns()
    for batch in batches:
        out.extend(batch)
    return out


def compiled(made: Any, keys: KeyRange, look: Visibility, pending: Any, **shape: bool) -> Any:
    return NATIVE.Scan(
        sources(made.view, keys, look, reverse=False, pending=pending), keys.low, keys.high,
        look.ts, look.since, look.now_ms, made.view.values.read, **shape,
    )  # fmt: skip


def own_writes(rng: random.Random) -> Columns | None:
    if rng.randrange(2):
        return None
    rows = [(key, OWN_VERSION, rng.choice((0, 0, 1)), 0, b"own") for key in rng.sample(KEYS, 4)]
    return columns_of(rows)


@settings(max_examples=40)
@given(st.integers(0, 1 << 40), bounds, bounds)
def test_scans(folder: Any, seed: int, low: bytes | None, high: bytes | None) -> None:
    rng = random.Random(seed)
    with folder() as directory:
        made = random_view(rng, directory)
        last, pending = len(made.rows), own_writes(rng)
        keys = KeyRange(low, high)
        for ts, since in ((last, 0), (last // 2, 0), (last, last // 3), (last, last), (0, 0)):
            look = Visibility(ts, NOW_MS, False, since)
            expected = joined(scan(made.view, keys, look, pending=pending))
            if keys.is_empty():
                continue
            found = joined(
                Columns(*batch)
                for batch in iter(
                    compiled(made, keys, look, pending, details=True).next_batch, None
                )
            )
            assert found == expected
            pairs = list(iter(compiled(made, keys, look, pending).next_batch, None))
            assert [key for names, _ in pairs for key in names] == expected.keys
            assert [value for _, values in pairs for value in values] == expected.values
            only = list(iter(compiled(made, keys, look, pending, values=False).next_batch, None))
            assert [key for names, _ in only for key in names] == expected.keys
            assert all(values is None for _, values in only)
        made.close()


source = st.lists(
    st.tuples(
        st.sampled_from(KEYS), st.integers(0, 3), st.integers(0, 255), st.booleans(), st.binary()
    ),
    max_size=30,
)


@needs_native
@settings(max_examples=200)
@given(st.lists(source, max_size=4), st.integers(0, 140), st.integers(0, 140), st.integers(1, 9))
def test_scans_of_columns(found: list[Any], ts: int, since: int, size: int) -> None:
    """Sources of columns alone, cut anywhere: also between the versions of a key."""
    from meles.engine.iterators.merge import merge
    from meles.engine.iterators.visible import visible

    parts = []
    version = 1
    for entries in found:
        rows: list[Row] = []
        for key, delete, user, expires, value in entries:
            meta = user << 8 | (delete == 1)
            rows.append((key, version, meta, NOW_MS + version - 60 if expires else 0, value))
            version += 1
        parts.insert(0, columns_of(rows))

    def cut() -> list[Any]:
        return [
            iter([part.slice(at, at + size) for at in range(0, len(part), size)]) for part in parts
        ]

    look = Visibility(ts, NOW_MS, False, since)
    expected = joined(visible(merge(cut()), look))
    scanned = NATIVE.Scan(cut(), None, None, ts, since, NOW_MS, None, details=True)
    assert joined(Columns(*batch) for batch in iter(scanned.next_batch, None)) == expected
    assert scanned.next_batch() is None


@pytest.mark.parametrize("codec", CODECS)
def test_a_key_whose_versions_fill_many_blocks(folder: Any, codec: str) -> None:
    from meles.engine.jobs import BuildOptions
    from meles.engine.table.builder import TableBuilder
    from meles.engine.table.reader import Table

    rows: list[Row] = [(b"k", version, 0, 0, b"%d" % version * 5) for version in range(1, 400)]
    rows += [(b"j", 1, 0, 0, b"before"), (b"l", 2, 0, 0, b"behind")]
    with folder() as directory:
        builder = TableBuilder(
            directory, 1, BuildOptions(block_size=64, compression=codec), created_ms=NOW_MS
        )
        builder.add(columns_of(rows))
        builder.finish()
        with Table(directory, 1) as table:
            blocks = table.blocks()
            assert blocks.count > 20
            for ts in range(401):
                assert blocks.get(b"k", ts) == table.get(b"k", ts)
                scanned = NATIVE.Scan([[table]], None, None, ts, 0, NOW_MS, None, details=True)
                batch = scanned.next_batch()
                seen = dict(zip(batch[0], batch[1], strict=True)) if batch else {}
                assert seen.get(b"k") == (min(ts, 399) or None)
            assert blocks.get(b"j", 5) == table.get(b"j", 5) == (1, 0, 0, b"before")
