"""Key templates: how a record's key is made, such as `{source}:{n:09d}` or `user/{id}`.

Runs in: supervisor.
Invariants: (1) a template looks values up by name and formats them, it never reaches attributes of
objects; (2) `{source}` and `{n}` are the source's name and the line number, everything else is a
column of the record; (3) a template of those two alone becomes one `%`-pattern per source, so
that a key costs one C call.
Fails with: `ConfigError` (the template cannot be used), `RecordError` (the record has no key).
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from meles.engine.errors import ConfigError

_HINT: Final = "write it like '{source}:{n:09d}', or name one column"
_NUMBER_SPEC: Final = re.compile(r"(0?\d{0,2})[dxX]?", re.ASCII)
_NUMBER_BYTES: Final = 100  # no line number is formatted longer
_OWN_FIELDS: Final = ("source", "n")
_CONTROL: Final = frozenset("{}[]!")


class RecordError(Exception):
    """What is wrong with one record; its text says it in a few words."""


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    spec: str
    is_column: bool


def to_bytes(text: str) -> bytes:
    """Text of a command line or a record as key bytes. `RecordError` where it is not UTF-8."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise RecordError("key is not valid Unicode") from None


class KeyTemplate:
    """A parsed template. `columns` are the names it takes from the record.

    `known` are the columns records will have, None when that is not known beforehand.
    """

    def __init__(self, text: str, *, known: frozenset[str] | None) -> None:
        self.text = text
        self._parts = _parse(text, known)
        fields = [part for part in self._parts if isinstance(part, _Field)]
        self.columns = frozenset(field.name for field in fields if field.is_column)

    def numbered(self, source: bytes) -> tuple[bytes, int]:
        """A bytes `%`-pattern taking the line number, and how often it takes it.

        Only for templates without columns.
        """
        pattern, count = b"", 0
        for part in self._parts:
            if isinstance(part, str):
                pattern += to_bytes(part).replace(b"%", b"%%")
            elif part.name == "source":
                pattern += source.replace(b"%", b"%%")
            else:
                count += 1
                pattern += (
                    b"%" + part.spec.encode() + (b"" if part.spec[-1:] in ("d", "x", "X") else b"d")
                )
        return pattern, count

    def fixed_bytes(self, source: bytes) -> int:
        """At most how long a key is, what columns add to it left out."""
        fixed = 0
        for part in self._parts:
            if isinstance(part, str):
                fixed += len(to_bytes(part))
            elif not part.is_column:
                fixed += len(source) if part.name == "source" else _NUMBER_BYTES
        return fixed

    def render(self, source: bytes, line: int, row: Mapping[str, object]) -> bytes:
        """The key of one record. `RecordError` when it cannot be made."""
        pieces = []
        for part in self._parts:
            if isinstance(part, str):
                pieces.append(to_bytes(part))
            elif part.is_column:
                pieces.append(to_bytes(_format(_lookup(row, part.name), part)))
            elif part.name == "source":
                pieces.append(source)
            else:
                pieces.append(format(line, part.spec).encode())
        return b"".join(pieces)


def _parse(text: str, known: frozenset[str] | None) -> list[str | _Field]:
    if text and _CONTROL.isdisjoint(text) and (known is None or text in known):
        return [_Field(text, "", True)]
    parts: list[str | _Field] = []
    try:
        for literal, name, spec, conversion in string.Formatter().parse(text):
            if literal:
                parts.append(literal)
            if name is not None:
                parts.append(_field(text, name, spec or "", conversion, known))
    except ValueError as error:
        raise ConfigError(f"key template {text!r}: {error}", hint=_HINT) from None
    if not any(isinstance(part, _Field) for part in parts):
        raise ConfigError(f"key template {text!r} gives every record the same key", hint=_HINT)
    return parts


def _field(
    text: str, name: str, spec: str, conversion: str | None, known: frozenset[str] | None
) -> _Field:
    if not name or conversion or not _CONTROL.isdisjoint(name + spec):
        raise ConfigError(
            f"key template {text!r}: a field is {{name}} or {{name:format}}", hint=_HINT
        )
    if name not in _OWN_FIELDS and known is not None and name not in known:
        fields = ", ".join(f"{{{field}}}" for field in (*_OWN_FIELDS, *sorted(known)))
        raise ConfigError(
            f"key template {text!r}: {name!r} is unknown, this format has {fields}", hint=_HINT
        )
    if name == "source" and spec:
        raise ConfigError(f"key template {text!r}: {{source}} takes no format", hint=_HINT)
    if name == "n" and _NUMBER_SPEC.fullmatch(spec) is None:
        raise ConfigError(f"key template {text!r}: {{n}} takes formats such as 09d", hint=_HINT)
    return _Field(name, spec, name not in _OWN_FIELDS)


def _lookup(row: Mapping[str, object], name: str) -> object:
    """The column `name`; `a.b` also means member `b` of the object in `a`."""
    if name in row:
        return row[name]
    found: object = row
    for step in name.split("."):
        if not isinstance(found, Mapping) or step not in found:
            raise RecordError(f"key field {name!r} is missing")
        found = found[step]
    return found


def _format(value: object, field: _Field) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        kind = "null" if value is None else type(value).__name__
        raise RecordError(f"key field {field.name!r} is a {kind}, not a text or number")
    try:
        return format(value, field.spec)
    except ValueError:
        raise RecordError(
            f"key field {field.name!r} does not take the format {field.spec!r}"
        ) from None
