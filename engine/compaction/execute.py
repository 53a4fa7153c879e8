"""The compaction job: merge the inputs, keep what is to stay, write it as new tables.

Runs in: compactors (or wherever jobs run).
Owns: the tables it makes, until it has answered.
Invariants: (1) inputs are only read; (2) an answer names every entry that stays: damage or an input
that ends early is an error, never a shorter output; (3) on any error, a cancel included, every
output is gone; (4) the outputs and their names are durable when the answer is given; (5) an output
ends only where the key changes; (6) both kernels make the same outputs and counters.
Fails with: `CorruptionError` (an input is damaged), `JobCancelledError`, `DiskFullError`,
`OSError`.
"""

from __future__ import annotations

from typing import Any

from meles.engine.compaction.merge_columns import merge_columns
from meles.engine.compaction.merge_native import merge_native
from meles.engine.compaction.outputs import Outputs
from meles.engine.fs.files import Directory
from meles.engine.jobs import CompactJob, JobContext, JobResult, NewFile
from meles.engine.kernel import NATIVE


def run_compaction(
    job: CompactJob, directory: Directory, context: JobContext, kernel: Any = NATIVE
) -> JobResult:
    """Do the job; `JobResult.counters` are bytes and entries read, written and dropped."""
    outputs = Outputs(job, directory, kernel)
    try:
        if kernel is None:
            counts = merge_columns(job, directory, outputs, context)
        else:
            counts = merge_native(job, directory, outputs, context, kernel)
        context.progress(counts.bytes)
        built = outputs.finish()
    except BaseException:
        outputs.abandon()
        raise
    return JobResult(
        tuple(NewFile(table.id, table.size, table.crc) for table in built),
        {
            "read_bytes": counts.bytes,
            "read_entries": counts.entries,
            "written_bytes": sum(table.size for table in built),
            "written_entries": sum(table.meta.count for table in built),
            "dropped_entries": counts.dropped,
            "dropped_tombstones": counts.tombstones,
        },
    )
