"""Workers that lie: whatever is wrong with an answer, nothing of it counts and the job runs again.

A job is really run, then its answer or its files are changed before the supervisor sees them, as a
worker with bad memory, a bad disk or a defect would.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import meles
import pytest
from meles.engine.background import retry
from meles.engine.codec.columns import Columns
from meles.engine.fs.names import Kind, file_name
from meles.engine.jobs import CompactJob, FlushJob, Job, JobContext, JobResult, NewFile, RelocateJob
from meles.engine.run_job import JobDirs, run_job
from meles.engine.table.builder import TableBuilder
from meles.engine.table.reader import Table
from meles.workers.parent import make_pool
from story import OPTIONS, REFUSALS, Story
from waiting import wait_until

Lie = Callable[[Job, JobDirs, JobResult], JobResult]


def where(job: Job, dirs: JobDirs, file: NewFile) -> Path:
    relocation = isinstance(job, RelocateJob)
    directory = dirs.values if relocation else dirs.tables
    kind = Kind.VLOG if relocation else Kind.TABLE
    return Path(directory.path) / file_name(kind, file.id)


def answer(result: JobResult, *files: NewFile) -> JobResult:
    return dataclasses.replace(result, files=files)


# -- what the answer says ------------------------------------------------------------------------


def of_another_checksum(_: Job, __: JobDirs, result: JobResult) -> JobResult:
    return answer(result, *(dataclasses.replace(f, crc=f.crc ^ 1) for f in result.files))


def of_another_size(_: Job, __: JobDirs, result: JobResult) -> JobResult:
    return answer(result, *(dataclasses.replace(f, size=f.size + 1) for f in result.files))


def of_a_number_it_was_not_given(_: Job, __: JobDirs, result: JobResult) -> JobResult:
    return answer(result, *(dataclasses.replace(f, id=f.id + 5000) for f in result.files))


def of_an_old_file(job: Job, _: JobDirs, result: JobResult) -> JobResult:
    return answer(result, *(dataclasses.replace(f, id=1) for f in result.files))


def named_twice(_: Job, __: JobDirs, result: JobResult) -> JobResult:
    return answer(result, *result.files, *result.files)


def of_nothing(_: Job, __: JobDirs, result: JobResult) -> JobResult:
    return answer(result)


# -- what the file holds -------------------------------------------------------------------------


def missing(job: Job, dirs: JobDirs, result: JobResult) -> JobResult:
    for file in result.files:
        where(job, dirs, file).unlink()
    return result


def empty(job: Job, dirs: JobDirs, result: JobResult) -> JobResult:
    for file in result.files:
        where(job, dirs, file).write_bytes(b"")
    return result


def cut(job: Job, dirs: JobDirs, result: JobResult) -> JobResult:
    for file in result.files:
        os.truncate(where(job, dirs, file), file.size // 2)
    return result


def flipped(job: Job, dirs: JobDirs, result: JobResult) -> JobResult:
    for file in result.files:
        path = where(job, dirs, file)
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 16
        path.write_bytes(data)
    return result


def a_directory(job: Job, dirs: JobDirs, result: JobResult) -> JobResult:
    for file in result.files:
        where(job, dirs, file).unlink()
        where(job, dirs, file).symlink_to("/etc/passwd")
    return result


LIES: list[Lie] = [
    of_another_checksum, of_another_size, of_a_number_it_was_not_given, of_an_old_file, named_twice,
    of_nothing, missing, empty, cut, flipped, a_directory,
]  # fmt: skip


def rebuilt(
    job: Job, dirs: JobDirs, result: JobResult, change: Callable[[Columns], Columns]
) -> JobResult:
    """The same tables, whole and with their checksums, holding something else."""
    if isinstance(job, RelocateJob) or not result.files:
        return result
    files = []
    for file in result.files:
        with Table(dirs.tables, file.id) as table:
            columns = Columns()
            for batch in table.scan():
                columns.extend(batch)
        where(job, dirs, file).unlink()
        changed = change(columns)
        if len(changed):
            builder = TableBuilder(dirs.tables, file.id, job.build, created_ms=job.created_ms)
            builder.add(changed)
            built = builder.finish()
            files.append(NewFile(built.id, built.size, built.crc))
    return answer(result, *files)


def with_a_key_of_its_own(job: Job, dirs: JobDirs, result: JobResult) -> JobResult:
    def change(columns: Columns) -> Columns:
        columns.append(b"\xff" * 20, 3, 0, 0, b"made up")
        return columns

    return rebuilt(job, dirs, result, change)


KEY = b"v3"  # of the story: flushed, and read before it is written again


def without_a_key(job: Job, dirs: JobDirs, result: JobResult) -> JobResult:
    def change(columns: Columns) -> Columns:
        return columns.take([n for n, key in enumerate(columns.keys) if key != KEY])

    return rebuilt(job, dirs, result, change)


def from_the_future(job: Job, dirs: JobDirs, result: JobResult) -> JobResult:
    def change(columns: Columns) -> Columns:
        columns.versions[0] = 1 << 40
        return columns

    return rebuilt(job, dirs, result, change)


@pytest.fixture(autouse=True)
def _again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed job runs again after a pause of half a second, which is not what is tested."""
    monkeypatch.setattr(retry, "_FIRST_SECONDS", 0.001)


# -- the story under lies ------------------------------------------------------------------------


class Liar:
    """Runs jobs; lies about the n-th that has files, counted over a kind."""

    def __init__(self, lie: Lie, kind: type, nth: int) -> None:
        self.lie, self.kind, self.nth = lie, kind, nth
        self.seen = self.lied = 0

    def __call__(self, job: Job, dirs: JobDirs, context: JobContext) -> JobResult:
        result = run_job(job, dirs, context)
        if isinstance(job, self.kind) and result.files:
            self.seen += 1
            if self.seen == self.nth:
                self.lied += 1
                return self.lie(job, dirs, result)
        return result


def settle(db: meles.DB) -> bool:
    try:
        db.flush()
        db.flatten()
    except (*REFUSALS, meles.WorkerFailedError):
        return False
    return db.health().status == "ok"


def tell(liar: Liar, home: Path) -> None:
    story = Story()
    with meles.open(home, **OPTIONS) as db:
        story.go_on(db)
        assert liar.lied == 1
        assert story.begun == story.acknowledged, story.errors
        wait_until(lambda: settle(db), 20, what="being well again")
        assert dict(db.items()) == story.states[-1]
        assert db.verify(values=True).ok
    left = {name for name in os.listdir(home) if not name.endswith((".sst", ".vlog"))}
    assert left == {"MANIFEST"}
    story.judge(home)


JOBS = {"flush": FlushJob, "compaction": CompactJob, "relocation": RelocateJob}


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_a_file(shm_path: Path, monkeypatch: pytest.MonkeyPatch, job: str, lie: Lie) -> None:
    liar = Liar(lie, JOBS[job], 1)
    monkeypatch.setattr(make_pool, "run_job", liar)
    tell(liar, shm_path / "db")


@pytest.mark.parametrize("job", ["flush", "compaction"])
@pytest.mark.parametrize(
    "lie", [with_a_key_of_its_own, from_the_future], ids=lambda lie: lie.__name__
)
def test_a_table(shm_path: Path, monkeypatch: pytest.MonkeyPatch, job: str, lie: Lie) -> None:
    liar = Liar(lie, JOBS[job], 1)
    monkeypatch.setattr(make_pool, "run_job", liar)
    tell(liar, shm_path / "db")


def test_a_flush_without_a_key(shm_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    liar = Liar(without_a_key, FlushJob, 1)
    monkeypatch.setattr(make_pool, "run_job", liar)
    tell(liar, shm_path / "db")
