"""Merging: one ordered stream, whatever the sources and however they cut their batches."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from meles.engine.codec.columns import Columns
from meles.engine.iterators.merge import merge, merge_reverse

Entry = tuple[bytes, int]


def batches(entries: list[Entry], source: int, cuts: list[int]) -> list[Columns]:
    """The entries as a source: in order, cut into batches; values name source and version."""
    entries = sorted(set(entries), key=lambda entry: (entry[0], -entry[1]))
    out = [Columns()]
    for nth, (key, version) in enumerate(entries):
        if nth in cuts:
            out.append(Columns())
        out[-1].append(key, version, source, version % 3, b"%d:%d" % (source, version))
    return out


def expected(sources: list[list[Columns]]) -> Columns:
    """All entries in order, of each (key, version) the newest source's."""
    kept: dict[tuple[bytes, int], tuple[int, int, bytes]] = {}
    for source in sources:
        for batch in source:
            rows = zip(batch.metas, batch.expiries, batch.values, strict=True)
            for key, version, row in zip(batch.keys, batch.versions, rows, strict=True):
                kept.setdefault((key, -version), row)
    out = Columns()
    for (key, version), row in sorted(kept.items()):
        out.append(key, -version, *row)
    return out


def check(sources: list[list[Columns]], *, ordered: bool) -> None:
    want = expected(sources)
    before = [[batch.slice(0, len(batch)) for batch in source] for source in sources]
    forward = list(merge([iter(source) for source in sources], ordered=ordered))
    backward = list(merge_reverse([iter(source[::-1]) for source in sources], ordered=ordered))
    assert sources == before, "the sources' batches are not changed"
    for result in (forward, backward[::-1]):
        joined = Columns()
        for batch in result:
            assert batch.keys
            assert not joined.keys or joined.keys[-1] != batch.keys[0], "a key is in two batches"
            joined.extend(batch)
        assert joined == want


keys = st.sampled_from([b"a", b"aa", b"b", b"c", b"cc", b"d", b"e", b"f"]) | st.binary(
    min_size=1, max_size=2
)
source_entries = st.lists(st.tuples(keys, st.integers(1, 12)), max_size=40)
source_cuts = st.lists(st.integers(0, 40), max_size=12)


@settings(max_examples=300)
@given(st.lists(st.tuples(source_entries, source_cuts), max_size=5), st.booleans())
def test_any_sources(specs: list[tuple[list[Entry], list[int]]], ordered: bool) -> None:
    """Versions in any order over the sources: right even where the promise of order is broken."""
    sources = [batches(entries, nth, cuts) for nth, (entries, cuts) in enumerate(specs)]
    check(sources, ordered=ordered)


@given(st.lists(st.tuples(source_entries, source_cuts), min_size=2, max_size=4))
def test_newer_sources_with_newer_versions(specs: list[tuple[list[Entry], list[int]]]) -> None:
    sources = [
        batches([(key, v + 100 * (9 - nth)) for key, v in entries], nth, cuts)
        for nth, (entries, cuts) in enumerate(specs)
    ]
    check(sources, ordered=True)


def numbered(numbers: range, source: int, per_batch: int, version: int = 1) -> list[Columns]:
    entries = [(b"%08d" % number, version) for number in numbers]
    return batches(entries, source, list(range(0, len(entries), per_batch)))


def test_large_interleaved_sources() -> None:
    """Long enough for reading ahead to reach its bounds."""
    sources = [numbered(range(nth, 12_000, 3), nth, 30 + nth, 9 - nth) for nth in range(4)]
    check(sources, ordered=True)


def test_disjoint_sources() -> None:
    check([numbered(range(n * 1000, n * 1000 + 1000), n, 37) for n in (2, 0, 1)], ordered=True)


def test_versions_of_one_key_over_many_batches() -> None:
    long = batches(
        [(b"k", v) for v in range(1, 3000)] + [(b"a", 1), (b"z", 1)], 0, [*range(0, 3001, 7)]
    )
    check([long], ordered=True)
    check([long, numbered(range(50), 1, 5)], ordered=True)
    check([batches([(b"k", 9000), (b"l", 1)], 0, []), long], ordered=True)


def test_one_source_passes_through_uncopied() -> None:
    source = numbered(range(100), 0, 10)
    for out, batch in zip(merge([iter(source)]), [b for b in source if b.keys], strict=True):
        assert out is batch


@pytest.mark.parametrize("sources", [[], [[]], [[], []], [[Columns()], [Columns(), Columns()]]])
def test_nothing(sources: list[list[Columns]]) -> None:
    assert list(merge([iter(source) for source in sources])) == []
    assert list(merge_reverse([iter(source) for source in sources])) == []


def test_reading_ahead_is_bounded() -> None:
    """After the first batch a source has not been read further than the next one."""
    pulled = [0, 0]

    def counted(nth: int) -> Iterator[Columns]:
        for batch in numbered(range(nth, 20_000, 2), nth, 30):
            if batch.keys:
                pulled[nth] += 1
                yield batch

    stream = merge([counted(0), counted(1)])
    next(stream)
    assert max(pulled) <= 3
    for _ in range(20):
        next(stream)
    before = list(pulled)
    next(stream)
    assert max(after - was for after, was in zip(pulled, before, strict=True)) <= 16


def test_large_values_are_not_read_ahead() -> None:
    pulled = 0

    def large() -> Iterator[Columns]:
        nonlocal pulled
        for number in range(100):
            pulled += 1
            yield Columns([b"%08d" % number], [1], [0], [0], [b"v" * 300_000])

    stream = merge([large(), iter(numbered(range(1000), 1, 30))])
    for _ in range(12):
        next(stream)
    assert pulled <= 14
