"""Jobs: what a worker is asked to do and what it answers, as plain data.

Runs in: supervisor (makes and judges them) and workers (run them).
Invariants: (1) a job names files by ids reserved for it, never by path; (2) every field is
msgpack-able, so the wire needs no schema of its own; (3) an answer carries no metadata the
supervisor cannot read from the file itself: it verifies the file and takes the rest from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import UnionType
from typing import Any, ClassVar, Final, Protocol, get_args, get_origin, get_type_hints

from meles.engine.ids import MAX_FILE_ID

_NUMBERS: Final = 1 << 64  # what msgpack can carry


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How a table is built; sizes in bytes."""

    block_size: int = 4096
    compression: str = "none"
    zstd_level: int = 1
    bloom_false_positive: float = 0.01


@dataclass(frozen=True, slots=True)
class FlushJob:
    """Turn the first `end` bytes of a sealed write-ahead log into one L0 table.

    Versions that newer ones <= `discard_ts` supersede are left out; tombstones stay. `ordered` is
    False when the log holds versions older than some in the tables before it (managed mode).
    """

    kind: ClassVar[str] = "flusher"
    mem_id: int
    end: int
    table_id: int
    build: BuildOptions
    created_ms: int
    discard_ts: int = 0
    versions_to_keep: int = 1
    ordered: bool = True

    def title(self) -> str:
        return f"flush memtable {self.mem_id} to table {self.table_id}"


@dataclass(frozen=True, slots=True)
class CompactJob:
    """Merge `inputs` within [start, stop) into tables of `level`.

    `inputs` are groups of table ids, newest group first; the tables of one group are disjoint and
    ascend by key. `below` are the key ranges [min, max] of tables deeper than `level` that overlap
    the job: outside them a tombstone has nothing left to hide. `splits` are keys at which an
    output is cut early so that it does not overlap too much of the next level. Outputs use ids
    `first_table_id .. first_table_id + max_tables - 1`; the last one takes what is left.
    `drops` are (prefix, ts) pairs: versions <= ts of such keys are gone for readers at or after ts.
    """

    kind: ClassVar[str] = "compactor"
    inputs: tuple[tuple[int, ...], ...]
    from_level: int
    level: int
    start: bytes | None
    stop: bytes | None
    first_table_id: int
    max_tables: int
    target_size: int
    discard_ts: int
    versions_to_keep: int
    now_ms: int
    below: tuple[tuple[bytes, bytes], ...]
    build: BuildOptions
    created_ms: int
    drops: tuple[tuple[bytes, int], ...] = ()
    splits: tuple[bytes, ...] = ()
    ordered: bool = True

    def title(self) -> str:
        tables = sum(map(len, self.inputs))
        return f"compact L{self.from_level}>L{self.level}, {tables} tables"


@dataclass(frozen=True, slots=True)
class RelocateJob:
    """Copy the live values of `sources` into the new value-log file `output`.

    `sources` are (physical id, logical ids in it); `tables` are all tables whose properties name
    one of those logical files: the union of their pointers is what lives. `rate` bounds the copy
    in bytes a second, 0 = unbounded.
    """

    kind: ClassVar[str] = "value_gc"
    sources: tuple[tuple[int, tuple[int, ...]], ...]
    tables: tuple[int, ...]
    output: int
    rate: int
    created_ms: int

    def title(self) -> str:
        return f"relocate value-log files {', '.join(str(s[0]) for s in self.sources)}"


@dataclass(frozen=True, slots=True)
class NewFile:
    """An output: its id, bytes and the CRC-32C of the whole file."""

    id: int
    size: int
    crc: int


@dataclass(frozen=True, slots=True)
class JobResult:
    """What a job made. `counters` are sums such as `read_bytes`, `dropped`, `written_bytes`."""

    files: tuple[NewFile, ...]
    counters: dict[str, int]


Job = FlushJob | CompactJob | RelocateJob
JOB_TYPES: dict[str, type[FlushJob] | type[CompactJob] | type[RelocateJob]] = {
    cls.kind: cls for cls in (FlushJob, CompactJob, RelocateJob)
}


class JobContext(Protocol):
    """What running code may ask of whoever runs it."""

    def progress(self, done_bytes: int) -> None:
        """Say that the job lives and how far it is; raises `JobCancelledError` when told to stop.

        Called at least once per few MiB of work.
        """


def job_to_plain(job: Job) -> dict[str, Any]:
    """A job as a msgpack-able map."""
    plain: dict[str, Any] = _plain(job)
    plain["kind"] = job.kind
    return plain


def _plain(value: Any) -> Any:
    """As `dataclasses.asdict`, which copies what is immutable as well, at ten times the cost."""
    fields = _FIELDS.get(type(value))
    return value if fields is None else {n: _plain(getattr(value, n)) for n in fields}


def result_to_plain(result: JobResult) -> dict[str, Any]:
    return {"files": [[f.id, f.size, f.crc] for f in result.files], "counters": result.counters}


def result_from_plain(plain: object) -> JobResult:
    """Parse an answer from a worker. `ValueError` when it is not one: nothing is assumed of it."""
    if not isinstance(plain, dict) or set(plain) != {"files", "counters"}:
        raise ValueError("answer has the wrong fields")
    files, counters = plain["files"], plain["counters"]
    if not isinstance(files, list | tuple) or not isinstance(counters, dict):
        raise ValueError("answer has fields of the wrong type")
    return JobResult(
        tuple(map(_new_file, files)),
        {
            _conform(k, str, "counter name"): _conform(n, int, "counter")
            for k, n in counters.items()
        },
    )


def _new_file(plain: object) -> NewFile:
    file = NewFile(*_conform(plain, tuple[int, int, int], "file"))
    if not 0 < file.id <= MAX_FILE_ID or file.crc >> 32:
        raise ValueError("a file has an id or a checksum out of range")
    return file


def job_from_plain(plain: object) -> Job:
    """Parse a job in a worker. `ValueError` when it is not one."""
    kind = plain.get("kind") if isinstance(plain, dict) else None
    cls = JOB_TYPES.get(kind) if isinstance(kind, str) else None
    if cls is None or not isinstance(plain, dict):
        raise ValueError("not a job")
    fields = {name: value for name, value in plain.items() if name != "kind"}
    job: Job = _conform(fields, cls, "job")
    return job


_FIELDS: Final[dict[Any, dict[str, Any]]] = {
    cls: {name: kind for name, kind in get_type_hints(cls).items() if name != "kind"}
    for cls in (BuildOptions, *JOB_TYPES.values())
}


_SCALARS: Final = frozenset({bytes, int, str, bool, float})


def _conform(value: object, hint: Any, name: str) -> Any:
    """`value` as the annotated type, lists as tuples; no number here is negative. `ValueError`."""
    if hint in _SCALARS:  # most of what there is; the looks at other hints are slow
        return _scalar(value, hint, name)
    if (fields := _FIELDS.get(hint)) is not None:
        if not isinstance(value, dict) or set(value) != set(fields):
            raise ValueError(f"{name} has the wrong fields")
        return hint(**{n: _conform(value[n], fields[n], n) for n in fields})
    if get_origin(hint) is tuple:
        parts = get_args(hint)
        if not isinstance(value, list | tuple):
            raise ValueError(f"{name} is a {type(value).__name__}")
        if parts[-1] is Ellipsis:
            return tuple([_conform(item, parts[0], name) for item in value])
        if len(parts) != len(value):
            raise ValueError(f"{name} has {len(value)} parts, not {len(parts)}")
        return tuple([_conform(v, part, name) for v, part in zip(value, parts, strict=True)])
    if get_origin(hint) is UnionType:
        if value is None:
            return None
        hint = get_args(hint)[0]
    return _scalar(value, hint, name)


def _scalar(value: object, hint: Any, name: str) -> Any:
    if type(value) is not hint and not (hint is float and type(value) is int):
        raise ValueError(f"{name} is a {type(value).__name__}")
    if isinstance(value, int | float) and not 0 <= value < _NUMBERS:
        raise ValueError(f"{name} is out of range")
    return value
