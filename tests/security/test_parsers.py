"""Every parser of bytes from outside, fed what nobody wrote: a typed error or a right answer.

Samples are real files; what is done to them is drawn: cut, flipped, repeated, moved, overwritten.
`MELES_TEST_PROFILE=long` draws a thousand of each instead of twenty-five.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import meles
import pytest
from backups import backup
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from meles.engine.cli.key_template import KeyTemplate
from meles.engine.cli.verb import parse_options
from meles.engine.errors import Error
from meles.engine.fs.dir_lock import DirectoryLock
from meles.engine.fs.files import Directory
from meles.engine.log.reader import LogReader
from meles.engine.manifest.manifest_file import replay_manifest
from meles.engine.options import load_options
from meles.engine.table.reader import Table
from meles.engine.vlog.reader import ValueLogFile, load_meta
from meles.engine.vlog.recover import recover_tail
from whole import Whole, build

FIXTURES = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
fuzzed = settings(suppress_health_check=FIXTURES)


@st.composite
def changes(draw: st.DrawFn) -> list[tuple[str, float, bytes, float]]:
    """What is done to a file: kind, place and length as shares of it, and bytes."""
    one = st.tuples(
        st.sampled_from(["cut", "flip", "repeat", "move", "write", "zero", "insert"]),
        st.floats(0, 1),
        st.binary(min_size=1, max_size=32),
        st.floats(0, 1),
    )
    return draw(st.lists(one, min_size=1, max_size=4))


def damaged(data: bytes, how: list[tuple[str, float, bytes, float]]) -> bytes:
    for kind, place, extra, share in how:
        at = int(place * len(data))
        stop = min(len(data), at + 1 + int(share * 200))
        if kind == "cut":
            data = data[:at]
        elif kind == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ (1 << extra[0] % 8)]) + data[at + 1 :]
        elif kind == "repeat":
            data = data[:stop] + data[at:]
        elif kind == "move":
            to = int(share * len(data))
            data = data[:to] + data[at:stop] + data[to + stop - at :]
        elif kind == "write":
            data = data[:at] + extra + data[at + len(extra) :]
        elif kind == "zero":
            data = data[:at] + bytes(stop - at) + data[stop:]
        else:
            data = data[:at] + extra + data[at:]
    return data


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return build(tmp_path_factory.mktemp("whole"), closed=False)


def sample(whole: Whole, kind: str) -> tuple[str, bytes]:
    name = whole.names(kind)[0]
    return name, (whole.path / name).read_bytes()


def only_ours(parse: Callable[[], object], *also: type[Exception]) -> None:
    """It ends, and what it raises is an error of ours, or one of `also`."""
    with contextlib.suppress(Error, *also):
        parse()


# -- files ---------------------------------------------------------------------------------------


@fuzzed
@given(how=changes())
def test_the_manifest(whole: Whole, how: list[tuple[str, float, bytes, float]]) -> None:
    _, data = sample(whole, "MANIFEST")
    only_ours(lambda: replay_manifest(damaged(data, how), "MANIFEST"))


@fuzzed
@given(data=st.binary(max_size=400))
def test_a_manifest_of_anything(data: bytes) -> None:
    only_ours(lambda: replay_manifest(data, "MANIFEST"))


@fuzzed
@given(how=changes())
def test_a_log(whole: Whole, how: list[tuple[str, float, bytes, float]]) -> None:
    _, data = sample(whole, "log")

    def parse() -> None:
        reader = LogReader(damaged(data, how), "log")
        for frame in reader.frames():
            deque(reader.records(frame), maxlen=0)
        if reader.tail is not None:
            reader.whole_frame_after(reader.tail.end)

    only_ours(parse)


@fuzzed
@given(how=changes())
def test_a_backup_stream(whole: Whole, how: list[tuple[str, float, bytes, float]]) -> None:
    """More of these are in test_backup_stream.py."""
    with meles.open(whole.path, mode="read_only") as db:
        stream = backup(db)
    only_ours(lambda: meles.check_backup(io.BytesIO(damaged(stream, how))))


def with_file(whole: Whole, name: str, data: bytes, where: Path) -> Directory:
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir()
    (where / name).write_bytes(data)
    return Directory(str(where))


def read_table(directory: Directory, number: int) -> None:
    with Table(directory, number) as table:
        deque(table.scan(), maxlen=0)
        deque(table.scan_reverse(), maxlen=0)
        deque(table.pointers(), maxlen=0)
        table.get(b"k1", 1 << 60)
        table.verify()


@fuzzed
@given(how=changes())
def test_a_table(whole: Whole, shm_path: Path, how: list[tuple[str, float, bytes, float]]) -> None:
    name, data = sample(whole, "table")
    with with_file(whole, name, damaged(data, how), shm_path / "d") as directory:
        only_ours(partial(read_table, directory, int(name[:6])))


def read_values(directory: Directory, number: int) -> None:
    file = ValueLogFile(directory, load_meta(directory, number))
    try:
        file.verify()
    finally:
        file.close()


@fuzzed
@given(how=changes())
def test_a_value_log(
    whole: Whole, shm_path: Path, how: list[tuple[str, float, bytes, float]]
) -> None:
    for kind in ("value log", "open value log"):
        name, data = sample(whole, kind)
        with with_file(whole, name, damaged(data, how), shm_path / "d") as directory:
            only_ours(partial(read_values, directory, int(name[:6])))
            only_ours(partial(recover_tail, directory, int(name[:6])))


@fuzzed
@given(how=changes(), which=st.randoms(use_true_random=False))
def test_a_whole_directory(
    whole: Whole, shm_path: Path, how: list[tuple[str, float, bytes, float]], which: object
) -> None:
    """Opened, read, verified and looked at by the doctor."""
    path = shm_path / "db"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(whole.path, path)
    name = which.choice(sorted(whole.kinds))  # type: ignore[attr-defined]
    (path / name).write_bytes(damaged((path / name).read_bytes(), how))

    def read() -> None:
        with meles.open(path, mode="read_only", workers="inline") as db:
            db.verify(values=True)
            deque(db.items(), maxlen=0)

    only_ours(read)
    meles.doctor(path, workers="inline")


# -- text ----------------------------------------------------------------------------------------


@fuzzed
@given(data=st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
def test_a_configuration_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "meles.toml"
    path.write_bytes(data)
    only_ours(lambda: load_options({}, config=path))


OWNER = ["pid", "command", "since"]
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()


@fuzzed
@given(
    name=st.sampled_from(sorted(meles.Options.__dataclass_fields__)) | st.text(max_size=10),
    value=VALUES | st.lists(VALUES, max_size=3),
)
def test_an_option(name: str, value: object) -> None:
    only_ours(lambda: load_options({name: value}))


@fuzzed
@given(pairs=st.lists(st.text(max_size=20), max_size=4))
def test_options_of_the_command_line(pairs: list[str]) -> None:
    only_ours(lambda: parse_options(pairs), click.UsageError)


@fuzzed
@given(text=st.text(alphabet="{}:09dnxk,.!/[]%\\ ", max_size=20) | st.text(max_size=20))
def test_a_key_template(text: str) -> None:
    only_ours(lambda: KeyTemplate(text, known=None), ValueError)


PLAIN = VALUES.filter(lambda value: not isinstance(value, bytes))
JSON = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(OWNER) | st.text(), inner),
    max_leaves=8,
).map(lambda value: json.dumps(value).encode())


@fuzzed
@given(data=st.binary(max_size=200) | JSON)
def test_what_lock_says(tmp_path: Path, data: bytes) -> None:
    """Somebody else holds the lock, and LOCK holds anything."""
    home = tmp_path / "db"
    home.mkdir(exist_ok=True)
    with Directory(str(home)) as holder, Directory(str(home)) as other:
        lock = DirectoryLock.acquire(holder, write_pid=False)
        (home / "LOCK").write_bytes(data)
        with pytest.raises(meles.LockedError):
            DirectoryLock.acquire(other)
        lock.release()
