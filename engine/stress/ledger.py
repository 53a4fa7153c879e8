"""The acked-write ledger: what a load was promised, and whether a database keeps it.

The ledger is a file outside the database's directory. One `os.write` to an O_APPEND descriptor per
event, so that every event before a SIGKILL is in it: the page cache outlives the process. A line is
a JSON list; its newline comes first, so that a line a kill cut short spoils no other.

    O run                     a run of the load begins; the database is about to be opened
    F {...}                   an `Observation`: everything the database shows, nobody writing
    B txn client seq writes   a commit is about to be called; writes are [key, op, digest]
    K txn ts                  it returned; ts is null where the API does not tell
    N txn error               it refused, nothing of it may ever appear
    W txn version             a reader saw a value of this transaction
    G {...}                   counters of the run so far
    X text                    the load itself saw something that must not be

`judge.py` judges it.

Runs in: the load (which writes it) and whoever judges.
Owns: the ledger file.
Invariants: (1) an event is one system call to a descriptor opened for appending; (2) a value says
what it is, so a torn, mixed or foreign one is recognised.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

SET: Final = "S"
DELETE: Final = "D"

# -- values that say what they are ---------------------------------------------------------------

_MAGIC: Final = b"LdGr"
_HEAD: Final = struct.Struct("<4sQIHHI")  # magic, txn, seq, client, index of the write, length
_CRC: Final = struct.Struct("<I")
_FRAME_BYTES: Final = _HEAD.size + _CRC.size
_POOL: Final = random.Random(7).randbytes(1 << 17)


def make_value(txn: int, seq: int, client: int, index: int, length: int) -> bytes:
    """Exactly `length` bytes; too short for the header, they are a digest of the same."""
    head = _HEAD.pack(_MAGIC, txn, seq, client, index, length)
    if length < _FRAME_BYTES:
        return hashlib.blake2b(head).digest()[:length]
    at = (txn * 2654435761 + index * 40503) % (len(_POOL) // 2)
    filler = _POOL[at : at + length - _FRAME_BYTES]
    return head + _CRC.pack(zlib.crc32(filler, zlib.crc32(head))) + filler


def txn_of(value: bytes) -> int | None:
    """The transaction a value belongs to, None when it is too short to say."""
    return _HEAD.unpack_from(value)[1] if len(value) >= _FRAME_BYTES else None


def value_fault(value: bytes) -> str:
    """Why a value cannot be one of `make_value`, or an empty text."""
    if len(value) < _FRAME_BYTES:
        return ""
    magic, txn, seq, client, index, length = _HEAD.unpack_from(value)
    if magic != _MAGIC:
        return f"foreign value of {len(value)} bytes: {value[:16]!r}"
    name = f"value {index} of txn {txn} (client {client}, seq {seq})"
    if length != len(value):
        return f"{name} has {len(value)} bytes instead of {length}"
    crc = _CRC.unpack_from(value, _HEAD.size)[0]
    if zlib.crc32(value[_FRAME_BYTES:], zlib.crc32(value[: _HEAD.size])) != crc:
        return f"{name} is torn or mixed"
    return ""


def digest(value: bytes) -> str:
    return f"{len(value)}:{hashlib.blake2b(value, digest_size=8).hexdigest()}"


# -- what is seen --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Observation:
    """Everything a database shows, by each way of asking. Keys are ASCII texts."""

    forward: list[tuple[str, int, str]]  # key, version, digest
    reverse: list[tuple[str, str]]
    gets: dict[str, str | None]
    max_version: int
    faults: list[str] = field(default_factory=list)  # of values that do not say what they are
    source: str = "own"

    @staticmethod
    def from_plain(plain: dict[str, Any]) -> Observation:
        """From what JSON makes of `asdict`."""
        pairs = {name: [tuple(row) for row in plain[name]] for name in ("forward", "reverse")}
        return Observation(**{**plain, **pairs})


def observe(db: Any, keys: Iterable[str], source: str = "own") -> Observation:
    """Look at all of a quiet database: scans both ways, and a get of each of `keys`."""
    names = list(keys)
    faults: list[str] = []

    def seen(key: bytes, value: bytes) -> str:
        if fault := value_fault(value):
            faults.append(f"{key.decode()}: {fault}")
        return digest(value)

    forward = [(i.key.decode(), i.version, seen(i.key, i.value)) for i in db.iterate()]
    reverse = [(key.decode(), seen(key, value)) for key, value in db.items(reverse=True)]
    found = db.get_many([name.encode() for name in names])
    gets = {
        name: None if value is None else seen(name.encode(), value)
        for name, value in zip(names, found, strict=True)
    }
    return Observation(forward, reverse, gets, db.max_version(), faults, source)


# -- writing the ledger --------------------------------------------------------------------------


class Ledger:
    """Appends events; safe from several threads, a line is one system call."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def note(self, *event: Any) -> None:
        line = b"\n" + json.dumps(event, separators=(",", ":")).encode()
        if os.write(self._fd, line) != len(line):
            raise OSError("the ledger is cut short")

    def begin(self, txn: int, client: int, seq: int, writes: Sequence[Sequence[str]]) -> None:
        self.note("B", txn, client, seq, writes)

    def acked(self, txn: int, ts: int | None) -> None:
        self.note("K", txn, ts)

    def refused(self, txn: int, error: Exception) -> None:
        self.note("N", txn, type(error).__name__)

    def found(self, observation: Observation) -> None:
        self.note("F", asdict(observation))

    def close(self) -> None:
        os.close(self._fd)


class LedgerFile:
    """Reads a ledger piece by piece, while no load is alive."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._offset = 0
        self.torn = 0  # lines a kill cut short: their commits were not called, or not acknowledged

    def more(self) -> list[list[Any]]:
        """The events since the last call."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        self._offset += len(data)
        events = []
        for line in filter(None, data.split(b"\n")):
            try:
                events.append(json.loads(line))
            except ValueError:
                self.torn += 1
        return events
