"""The pool that the option `workers` asks for.

Runs in: supervisor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from meles.engine.errors import ConfigError
from meles.engine.jobs import Job, JobContext, JobResult
from meles.engine.run_job import JobDirs, run_job
from meles.workers.parent.pool import ProcessPool, log_error
from meles.workers.parent.protocol import (
    OnError,
    OnFailure,
    OnRerun,
    OnResult,
    Pool,
    PoolDirs,
)


def make_pool(
    mode: str,
    counts: Mapping[str, int],
    dirs: JobDirs,
    *,
    heartbeat: float,
    hang_timeout: float,
    memory_limit: int | None,
    on_result: OnResult,
    on_failure: OnFailure,
    on_rerun: OnRerun | None = None,
    on_ready: Callable[[str], None] | None = None,
    on_error: OnError = log_error,
) -> Pool:
    """A pool that has not been started. `mode` is `process`, `thread` or `inline`."""

    def run(job: Job, context: JobContext) -> JobResult:
        return run_job(job, dirs, context)

    if mode == "process":
        tables, values = dirs.tables, dirs.values
        keys = None if tables.keys is None else tables.keys.pack
        return ProcessPool(
            counts,
            PoolDirs(tables.fd, values.fd, tables.path, values.path, keys),
            heartbeat=heartbeat,
            hang_timeout=hang_timeout,
            memory_limit=memory_limit,
            on_result=on_result,
            on_failure=on_failure,
            on_rerun=on_rerun,
            on_ready=on_ready,
            on_error=on_error,
        )
    if mode == "thread":
        from meles.workers.parent.thread_pool import ThreadPool

        return ThreadPool(
            counts, run, on_result=on_result, on_failure=on_failure, on_error=on_error
        )
    if mode == "inline":
        from meles.workers.parent.inline_pool import InlinePool

        return InlinePool(
            counts, run, on_result=on_result, on_failure=on_failure, on_error=on_error
        )
    raise ConfigError(f"option workers={mode!r}: allowed is one of 'process', 'thread', 'inline'")
