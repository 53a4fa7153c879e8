"""Scans over values of the value log: the compiled one against reading them one by one."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from meles.engine.codec.columns import Columns
from meles.engine.codec.entry import META_POINTER
from meles.engine.errors import CorruptionError
from meles.engine.fs.files import Directory
from meles.engine.jobs import RelocateJob
from meles.engine.vlog.layout import ENTRY_BYTES
from meles.engine.vlog.reader import ValueLogFile, load_meta
from meles.engine.vlog.relocate import live_entries, relocate
from meles.engine.vlog.value_log import ValueLogView
from meles.engine.vlog.writer import ValueLogWriter
from twins import NATIVE, needs_native_run

pytestmark = needs_native_run
SIZES = (0, 1, 15, 47, 48, 49, 100, 1024, 2047, 2048, 2049, 5000, 16383, 16384, 70_000)


class Calm:
    def progress(self, done_bytes: int) -> None:
        """Nothing to stop."""


@dataclass
class Log:
    """Values in three files: sealed, relocated by a collection, and still appended to."""

    path: Path
    view: ValueLogView
    writer: ValueLogWriter
    columns: Columns = field(default_factory=Columns)  # in key order, which is not that of the log
    values: list[bytes] = field(default_factory=list)

    def close(self) -> None:
        self.view.close()

    def place_of(self, nth: int) -> tuple[str, int]:
        """The file that holds the value of an inline or sealed entry, and where it begins."""
        pointer = self.columns.values[nth]
        name = f"{int.from_bytes(pointer[:4], 'little'):06d}.vlog"
        return name, int.from_bytes(pointer[4:8], "little") + ENTRY_BYTES


def fill(writer: ValueLogWriter, rng: random.Random, count: int) -> list[tuple[bytes, int, bytes]]:
    rows = []
    for _ in range(count):
        value = rng.randbytes(rng.choice(SIZES))
        version = rng.randrange(1, 1000)
        rows.append((writer.append(value, version).encode(), version, value))
    return rows


def make_log(tmp_path: Path, rng: random.Random, *, count: int = 150) -> Log:
    directory = Directory(str(tmp_path))
    rows: list[tuple[bytes, int, bytes]] = []
    for number in (1, 2):
        writer = ValueLogWriter(directory, number)
        rows += fill(writer, rng, count)
        writer.seal()
        writer.close()
    live = rows[count::2]  # of the second file
    found = live_entries([2], [b"".join(pointer for pointer, *_ in live)])
    relocate(RelocateJob(((2, (2,)),), (), 3, 0, 0), found, directory, Calm())
    active = ValueLogWriter(directory, 4)
    rows = rows[:count] + live + fill(active, rng, count // 10)
    rows += [(rng.randbytes(9), 5, b"") for _ in range(count // 10)]  # inline
    files: list[Any] = [ValueLogFile(directory, load_meta(directory, number)) for number in (1, 3)]
    log = Log(tmp_path, ValueLogView(str(tmp_path), [*files, active]), active)
    rng.shuffle(rows)
    for nth, (stored, version, value) in enumerate(rows):
        inline = not value and len(stored) == 9
        log.columns.append(
            b"%06d" % nth, version, 0 if inline else META_POINTER, 0, stored
        )  # fmt: skip
        log.values.append(stored if inline else value)
    return log


@pytest.fixture
def made(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., Log]:
    def make(seed: int, **more: int) -> Log:
        log = make_log(tmp_path, random.Random(seed), **more)
        request.addfinalizer(log.close)
        return log

    return make


def scanned(log: Log, **wanted: bool) -> Any:
    return NATIVE.Scan(
        [iter([log.columns])], None, None, 1 << 40, 0, 0, log.view.compiled, **wanted
    )


def collect(scan: Any, found: list[Any]) -> None:
    for keys, values in iter(scan.next_batch, None):
        for key, value in zip(keys, values, strict=True):
            found.append((key, value))


@pytest.mark.parametrize("seed", range(4))
def test_every_value_comes_with_its_key(made: Callable[..., Log], seed: int) -> None:
    log = made(seed)
    batches = list(iter(scanned(log).next_batch, None))
    assert [key for keys, _ in batches for key in keys] == log.columns.keys
    assert [value for _, values in batches for value in values] == log.values
    values_alone = iter(scanned(log, keys=False).next_batch, None)
    assert [value for keys, values in values_alone for value in values] == log.values
    assert len(batches) > 3


@pytest.mark.parametrize("seed", range(12))
def test_damage_comes_in_its_turn(made: Callable[..., Log], seed: int) -> None:
    """What lies before it is given first, wherever in a batch it is; behind it nothing is."""
    log = made(seed, count=60)
    rng = random.Random(seed)
    nth = rng.choice(
        [at for at, stored in enumerate(log.columns.values)
         if log.columns.metas[at] and log.values[at] and stored[0] in (1, 4)]
    )  # fmt: skip
    name, at = log.place_of(nth)
    with (log.path / name).open("r+b") as file:
        file.seek(at)
        first = file.read(1)
        file.seek(at)
        file.write(bytes([first[0] ^ 1]))
    found: list[Any] = []
    with pytest.raises(CorruptionError, match="checksum"):
        collect(scanned(log), found)
    assert found == list(zip(log.columns.keys, log.values, strict=True))[:nth]


@pytest.mark.parametrize("part", [slice(0, 4), slice(4, 8), slice(8, 12), slice(0, 11)])
def test_an_address_that_leads_nowhere(made: Callable[..., Log], part: slice) -> None:
    """Any address may stand in a damaged table: asking ahead for it harms nothing."""
    log = made(1, count=30)
    nth = next(
        at for at, stored in enumerate(log.columns.values)
        if at > 20 and log.columns.metas[at] and stored[0] == 2
    )  # fmt: skip
    for wrong in (b"\xff" * 12, b"\0" * 12, b"\x01\0\0\x80" * 3):
        pointer = bytearray(log.columns.values[nth])
        pointer[part] = wrong[part]
        if part.stop - part.start == 11:
            del pointer[11:]
        log.columns.values[nth] = bytes(pointer)
        found: list[Any] = []
        with pytest.raises(CorruptionError):
            collect(scanned(log), found)
        assert found == list(zip(log.columns.keys, log.values, strict=True))[:nth]


def test_files_closed_under_a_scan(made: Callable[..., Log]) -> None:
    log = made(2)
    scan = scanned(log)
    _, values = scan.next_batch()
    before = [values[at] for at in range(5)]
    assert before == log.values[:5]
    log.view.close()
    nth = next(at for at in range(5, len(values)) if log.columns.metas[at])
    with pytest.raises(Exception, match="is closed"):
        values[nth]
