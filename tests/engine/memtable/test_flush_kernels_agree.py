"""Both kernels flush a log alike: the same table byte for byte, counters and errors."""

from __future__ import annotations

import random
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meles.engine.errors import CorruptionError, FormatVersionError
from meles.engine.fs.files import Directory
from meles.engine.jobs import BuildOptions, FlushJob, JobResult
from meles.engine.log.writer import LogWriter
from meles.engine.memtable.flush import run_flush
from meles.engine.memtable.memtable import Memtable
from twins import NATIVE, needs_native

pytestmark = needs_native
NOW_MS = 1_700_000_000_000


class Calm:
    def progress(self, done_bytes: int) -> None:
        pass


def random_log(directory: Directory, rng: random.Random, frames: int) -> FlushJob:
    """A sealed log of entries of every kind, and a job for it."""
    alphabet = rng.choice((b"ab", b"abcdefgh", b"\x00\xff"))
    prefix = rng.choice((b"", b"short ", b"longer than 8 bytes "))
    managed = rng.random() < 0.4
    with closing(LogWriter(directory, 4)) as log:
        table = Memtable.create(log)
        for ts in range(1, frames + 1):
            keys = sorted(
                {prefix + bytes(rng.choices(alphabet, k=rng.randrange(1, 12)))
                 for _ in range(rng.choice((1, 1, 3, 30)))}
            )  # fmt: skip
            rng.shuffle(keys)
            metas = [rng.choice((0, 0, 0, 1, 4, 8, 7 << 8, 3 << 8 | 1)) for _ in keys]
            values = [
                b"" if meta & 1 else rng.randbytes(rng.choice((0, 5, 100, 9000))) for meta in metas
            ]
            expiries = [rng.choice((0, 0, NOW_MS - 1, NOW_MS, NOW_MS + 1)) for _ in keys]
            if managed:
                versions = [rng.randrange(1, 20) for _ in keys]
                table.put_many(
                    keys, values, metas, expiries, rng.randrange(1, frames + 1), versions
                )
            else:
                table.put_many(keys, values, metas, expiries, ts)
        table.seal()
    build = BuildOptions(
        block_size=rng.choice((256, 4096)), compression=rng.choice(("none", "none", "zstd"))
    )
    return FlushJob(
        4, table.end, 9, build, NOW_MS,
        discard_ts=rng.choice((0, frames // 2, frames)),
        versions_to_keep=rng.choice((1, 1, 2, 100)),
        ordered=rng.random() < 0.8,
    )  # fmt: skip


def outcome(job: FlushJob, directory: Directory, kernel: Any) -> tuple[JobResult, list[bytes]]:
    """The answer, and the tables, which are removed again."""
    result = run_flush(job, directory, Calm(), kernel)
    tables = []
    for _ in result.files:
        tables.append(directory.read("000009.sst"))
        directory.unlink("000009.sst")
    return result, tables


@given(seed=st.integers(0, 1 << 40), frames=st.integers(0, 60))
def test_any_log(tmp_path_factory: pytest.TempPathFactory, seed: int, frames: int) -> None:
    with Directory(str(tmp_path_factory.mktemp("flush"))) as directory:
        job = random_log(directory, random.Random(seed), frames)
        assert outcome(job, directory, None) == outcome(job, directory, NATIVE)


@pytest.mark.long
def test_many_logs(tmp_path: Path) -> None:
    for seed in range(3000):
        path = tmp_path / str(seed)
        path.mkdir()
        with Directory(str(path)) as directory:
            rng = random.Random(seed)
            job = random_log(directory, rng, rng.choice((3, 60, 1000)))
            assert outcome(job, directory, None) == outcome(job, directory, NATIVE), seed
            directory.unlink("00004.mem")


@pytest.mark.parametrize("key_bytes", [3, 6, 30])
def test_a_log_of_several_megabytes(directory: Directory, key_bytes: int) -> None:
    """More than a step of the walk and of the writing; many versions of few keys, too."""
    rng = random.Random(key_bytes)
    value = rng.randbytes(4000)
    with closing(LogWriter(directory, 4)) as log:
        table = Memtable.create(log)
        for ts in range(1, 1000):
            keys = list({b"%0*d" % (key_bytes, rng.randrange(1000)) for _ in range(20)})
            values = [value[: rng.randrange(300)] for _ in keys]
            table.put_many(keys, values, [0] * len(keys), [0] * len(keys), ts)
        table.seal()
    for discard_ts in (0, 500, 1000):
        job = FlushJob(4, table.end, 9, BuildOptions(), NOW_MS, discard_ts=discard_ts)
        python = outcome(job, directory, None)
        assert python == outcome(job, directory, NATIVE)
        assert (python[0].counters["dropped_entries"] > 0) == (discard_ts > 0)


def flushed(job: FlushJob, directory: Directory, kernel: Any) -> object:
    try:
        return outcome(job, directory, kernel)
    except (CorruptionError, FormatVersionError) as error:
        return str(error)


def test_any_damage_is_an_error_or_harmless(directory: Directory) -> None:
    """Harmless: in the zeros between frames. And where a log is cut."""
    rng = random.Random(5)
    job = random_log(directory, rng, 12)
    whole = directory.read("00004.mem")
    right = outcome(job, directory, NATIVE)
    found = {True: 0, False: 0}
    files = [whole[:at] for at in (64, 70, len(whole) // 2, len(whole) - 1)]
    for at in range(0, len(whole), max(1, len(whole) // 700)):
        changed = bytearray(whole)
        changed[at] ^= 1 << rng.randrange(8)
        files.append(bytes(changed))
    for data in files:
        directory.unlink("00004.mem")
        with directory.create("00004.mem") as file:
            file.pwrite(data, 0)
        python, native = (flushed(job, directory, kernel) for kernel in (None, NATIVE))
        assert python == native
        found[native == right] += 1
        assert isinstance(native, str) or native == right
        assert directory.names() == ["00004.mem"]
    assert found[False] > 300
