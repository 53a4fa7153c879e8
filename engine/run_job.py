"""Running a job: the one place that knows which function does which kind.

Runs in: workers, or threads of the host under workers="thread" and "inline".
"""

from __future__ import annotations

from dataclasses import dataclass

from meles.engine.errors import InvariantError
from meles.engine.fs.files import Directory
from meles.engine.jobs import CompactJob, FlushJob, Job, JobContext, JobResult, RelocateJob


@dataclass(frozen=True, slots=True)
class JobDirs:
    """Where tables and logs, and where value-log files, are."""

    tables: Directory
    values: Directory


def run_job(job: Job, dirs: JobDirs, context: JobContext) -> JobResult:
    """Do the job; its outputs are durable when this returns and gone when it raises."""
    if isinstance(job, FlushJob):
        from meles.engine.memtable.flush import run_flush

        return run_flush(job, dirs.tables, context)
    if isinstance(job, CompactJob):
        from meles.engine.compaction.execute import run_compaction

        return run_compaction(job, dirs.tables, context)
    if isinstance(job, RelocateJob):
        from meles.engine.vlog.relocate import run_relocation

        return run_relocation(job, dirs.tables, dirs.values, context)
    raise InvariantError(f"no such job: {type(job).__name__}")
