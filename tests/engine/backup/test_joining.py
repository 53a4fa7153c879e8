"""Increments on top of one another, as rows: what replaces, what stays, what goes."""

from __future__ import annotations

import io

import pytest
from backups import columns, stream_of
from hypothesis import given
from hypothesis import strategies as st
from meles.engine.backup.format import KEPT, Start, reference
from meles.engine.backup.joining import check_chain, joined
from meles.engine.backup.reading import StreamReader
from meles.engine.errors import ConfigError, CorruptionError

Row = tuple[bytes, int, int, int, bytes]


def reader(data: bytes, name: str = "f") -> StreamReader:
    return StreamReader(io.BytesIO(data), name, largest=1 << 30)


def kept(row: Row) -> Row:
    key, version, meta, expiry, value = row
    return key, version, meta | KEPT, expiry, reference(len(value))


def result(*streams: tuple[int, int, list[Row]]) -> list[Row]:
    """What streams (since, token, rows) add up to."""
    readers = [
        reader(stream_of(*([columns(*rows)] if rows else []), start=Start(since, token)))
        for since, token, rows in streams
    ]
    check_chain(readers)
    rows = []
    for batch in joined(readers):
        batch.check()
        rows += zip(
            batch.keys, batch.versions, batch.metas, batch.expiries, batch.values, strict=True
        )
    assert all(stream.end for stream in readers)
    return rows


A1, A2, A3 = ((b"a", version, 0, 0, b"a%d" % version) for version in (1, 2, 3))
B1, B4 = (b"b", 1, 0x0704, 99, b"b1"), (b"b", 4, 1, 0, b"")


def test_one_stream_is_itself() -> None:
    assert result((0, 2, [A2, A1, B1])) == [A2, A1, B1]


def test_what_is_new_is_there_and_what_is_referred_to_stays() -> None:
    assert result((0, 2, [A2, A1, B1]), (2, 4, [A3, kept(A2), B4, kept(B1)])) == [A3, A2, B4, B1]


def test_what_is_not_referred_to_is_gone() -> None:
    assert result((0, 2, [A2, A1, B1]), (2, 4, [A3])) == [A3]
    assert result((0, 2, [A2, A1, B1]), (2, 4, [kept(B1)])) == [B1]
    assert result((0, 2, [A2, A1, B1]), (2, 4, [])) == []


def test_an_older_tombstone_replaces_what_expired() -> None:
    buried = (b"b", 1, 1, 0, b"")
    assert result((0, 2, [A1, B1]), (2, 4, [kept(A1), buried])) == [A1, buried]


def test_a_chain_of_three() -> None:
    chain = [(0, 1, [A1, B1]), (1, 2, [A2, kept(A1), kept(B1)]), (2, 4, [A3, kept(A2), B4])]
    assert result(*chain) == [A3, A2, B4]
    with pytest.raises(CorruptionError, match="not in the streams before it"):
        result(chain[0], (1, 2, [A2, kept(B1)]), (2, 4, [kept(A1)]))


@pytest.mark.parametrize(
    "wrong",
    [(b"a", 2), (b"Z", 1), (b"c", 1), (b"b", 2)],
)
def test_a_reference_to_what_is_not_there(wrong: tuple[bytes, int]) -> None:
    row = kept((*wrong, 0, 0, b"a1"))
    with pytest.raises(CorruptionError, match="not in the streams before it"):
        result((0, 2, [A1, B1]), (2, 4, [row]))


def test_what_follows_what() -> None:
    def check(*tokens: tuple[int, int]) -> None:
        check_chain([reader(stream_of(start=Start(*t)), f"f{n}") for n, t in enumerate(tokens, 1)])

    check((0, 0))
    check((0, 0), (0, 5), (5, 5), (5, 9))
    for wrong, what in (
        ([(5, 9)], "f1 is an increment since version 5"),
        ([(0, 5), (4, 9)], "f2 is an increment since version 4, and f1 ends at version 5"),
        ([(0, 5), (6, 9)], "f2 is an increment since version 6, and f1 ends at version 5"),
        ([(0, 5), (5, 7), (5, 7)], "f3 is an increment since version 5, and f2 ends at version 7"),
    ):
        with pytest.raises(ConfigError, match=what):
            check(*wrong)


def test_a_base_is_read_to_its_end_also_if_nothing_of_it_is_needed() -> None:
    base = stream_of(columns(A2, A1, B1))
    more = reader(stream_of(start=Start(2, 4)))
    with pytest.raises(CorruptionError, match="ends before its end"):
        list(joined([reader(base[:-1]), more]))


@given(st.data())
def test_a_chain_of_anything(data: st.DataObject) -> None:
    """States drawn one after the other, each told by what is new and what is left."""
    now: dict[tuple[bytes, int], Row] = {}
    streams, token = [], 0
    for _ in range(data.draw(st.integers(1, 7))):
        since, token = token, token + data.draw(st.integers(0, 3))
        for place in sorted(now):
            if data.draw(st.booleans()):
                del now[place]
        if token > since:
            new = st.tuples(
                st.sampled_from([b"a", b"ab", b"b"]), st.integers(-token, -since - 1),
                st.sampled_from([0, 4, 0x0900]), st.sampled_from([0, 5]), st.binary(max_size=3),
            )  # fmt: skip
            for key, older, *rest in data.draw(st.lists(new, max_size=4)):
                now[key, older] = (key, -older, *rest)  # type: ignore[assignment]
        rows = [now[place] if -place[1] > since else kept(now[place]) for place in sorted(now)]
        streams.append((since, token, rows))
    assert result(*streams) == [now[place] for place in sorted(now)]
