"""Key templates: what they accept, what they make, how records without a key are refused."""

from __future__ import annotations

import pytest
from meles.engine.cli.key_template import KeyTemplate, RecordError
from meles.engine.errors import ConfigError

NONE: frozenset[str] = frozenset()


def numbered(text: str, source: bytes, line: int) -> bytes:
    pattern, count = KeyTemplate(text, known=NONE).numbered(source)
    return pattern % ((line,) * count)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("{source}:{n}", b"a%b.txt:7"),
        ("{source}:{n:09d}", b"a%b.txt:000000007"),
        ("{n:04x}/100%", b"0007/100%"),
        ("{{{n}}}", b"{7}"),
        ("{n}-{n:03}", b"7-007"),
        ("ü{n}", "ü7".encode()),
    ],
)
def test_pattern_and_rendering_agree(text: str, key: bytes) -> None:
    assert numbered(text, b"a%b.txt", 7) == key
    assert KeyTemplate(text, known=NONE).render(b"a%b.txt", 7, {}) == key


def test_bytes_of_a_source_name_pass_through() -> None:
    assert numbered("{source}", b"\xff\n", 1) == b"\xff\n"
    assert KeyTemplate("\udcff{n}", known=NONE).render(b"", 1, {}) == b"\xff1"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("fixed", "same key"),
        ("", "same key"),
        ("{id}", "unknown"),
        ("{}", "a field is"),
        ("{0}x{source[0]}", "'0' is unknown"),
        ("{source.__class__}", "unknown"),
        ("{source!r}", "a field is"),
        ("{source:>9}", "no format"),
        ("{n:s}", "09d"),
        ("{n:9999d}", "09d"),
        ("{n:{n}}", "a field is"),
        ("{n", "expected '}'"),
    ],
)
def test_refuses_what_it_cannot_mean(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        KeyTemplate(text, known=NONE)
    assert "{source}:{n:09d}" in caught.value.hint


def test_bare_name_is_a_column() -> None:
    template = KeyTemplate("id", known=None)
    assert template.columns == {"id"}
    assert template.render(b"s", 1, {"id": 41}) == b"41"
    assert KeyTemplate("n", known=None).render(b"s", 1, {"n": "own"}) == b"own"


def test_columns_are_formatted_and_nested_members_found() -> None:
    template = KeyTemplate("{source}/{user.id:05d}/{tag}", known=None)
    row = {"user": {"id": 7}, "tag": "ü"}
    assert template.render(b"s", 1, row) == "s/00007/ü".encode()
    assert KeyTemplate("a.b", known=None).render(b"", 1, {"a.b": "flat"}) == b"flat"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "'id' is missing"),
        ({"id": None}, "null"),
        ({"id": True}, "bool"),
        ({"id": [1]}, "list"),
        ({"id": "x\ud800"}, "not valid Unicode"),
        ({"id": "text"}, "does not take the format"),
    ],
)
def test_record_without_a_key_says_why(row: dict[str, object], reason: str) -> None:
    with pytest.raises(RecordError, match=reason):
        KeyTemplate("{id:d}" if row.get("id") == "text" else "{id}", known=None).render(b"", 1, row)


def test_fixed_bytes_bound_the_key() -> None:
    template = KeyTemplate("x{source}{source}{n:99d}", known=NONE)
    assert len(template.render(b"name", 5, {})) <= template.fixed_bytes(b"name")
