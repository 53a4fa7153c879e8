"""Every message between supervisor and worker, as a frozen type with a direction. See PROTOCOL.md.

Runs in: supervisor and workers.
Invariants: (1) a message that parses has exactly its fields, each of its type; (2) whatever speaks
of a job carries the job's id and, from the worker, the generation it was given with; (3) a job
names files by number, never by path.
Fails with: `RemoteProtocolError` when what came is no message of that direction.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from meles.engine.jobs import (
    Job,
    JobResult,
    job_from_plain,
    job_to_plain,
    result_from_plain,
    result_to_plain,
)
from meles.workers.wire.errors import Failure, RemoteProtocolError
from meles.workers.wire.framing import encode_frame

PROTOCOL_VERSION: Final = 2
PACKAGE_VERSION: Final = (
    "0.1.0"  # both sides must run the same release: jobs have no schema of their own
)


@dataclass(frozen=True, slots=True)
class Hello:
    """First words of a worker: who it is and what it runs."""

    to_child: ClassVar[bool] = False
    protocol: int
    package: str
    kernel: str
    pid: int
    role: str


@dataclass(frozen=True, slots=True)
class Setup:
    """The answer to Hello. `tables` and `values` name the inherited directories, for messages only.

    `heartbeat` is seconds between heartbeats, `log_level` a level of `logging`, `memory_limit`
    bytes. `encrypted`: jobs come with data keys, so the worker must leave no core dump.
    """

    to_child: ClassVar[bool] = True
    heartbeat: float
    log_level: int
    memory_limit: int | None
    tables: str
    values: str
    encrypted: bool = False


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker has imported what it needs and takes jobs."""

    to_child: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class JobRequest:
    """Do this job. Never sent to a worker that has one. `keys` are the packed data keys, if any."""

    to_child: ClassVar[bool] = True
    job_id: int
    generation: int
    job: Job
    keys: bytes = dataclasses.field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop the job at its next sign of life. Means nothing when it is over."""

    to_child: ClassVar[bool] = True
    job_id: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Cancel what runs, answer for it, and leave."""

    to_child: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The worker lives. `ticks` counts the signs of life of the job itself; job id 0 is no job."""

    to_child: ClassVar[bool] = False
    job_id: int
    generation: int
    done_bytes: int
    ticks: int


@dataclass(frozen=True, slots=True)
class JobDone:
    """The job's outputs are on the medium."""

    to_child: ClassVar[bool] = False
    job_id: int
    generation: int
    result: JobResult


@dataclass(frozen=True, slots=True)
class JobFailed:
    """The job raised; its outputs are gone."""

    to_child: ClassVar[bool] = False
    job_id: int
    generation: int
    failure: Failure


Message = Hello | Setup | Ready | JobRequest | Cancel | Stop | Heartbeat | JobDone | JobFailed
_CLASSES: Final[tuple[type[Message], ...]] = (
    Hello, Setup, Ready, JobRequest, Cancel, Stop, Heartbeat, JobDone, JobFailed,
)  # fmt: skip
MESSAGES: Final[dict[str, type[Message]]] = {cls.__name__: cls for cls in _CLASSES}


def _number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("is not a whole number")
    return value


def _real(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e18:
        raise ValueError("is not a number")
    return float(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("is not a text")
    return value


def _octets(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("is not bytes")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError("is not true or false")
    return value


def _failure(value: object) -> Failure:
    return Failure(**_fields(Failure, value))


_Parser = Callable[[object], object]


def _or_none(parse: _Parser) -> _Parser:
    return lambda value: None if value is None else parse(value)


# By the annotation as written in the classes above.
_PARSERS: Final[dict[str, _Parser]] = {
    "int": _number,
    "float": _real,
    "str": _text,
    "bytes": _octets,
    "bool": _flag,
    "int | None": _or_none(_number),
    "str | None": _or_none(_text),
    "Job": job_from_plain,
    "JobResult": result_from_plain,
    "Failure": _failure,
}
_WRITERS: Final[dict[str, Callable[[Any], object]]] = {
    "Job": job_to_plain,
    "JobResult": result_to_plain,
    "Failure": dataclasses.asdict,
}
_SCHEMAS: Final[dict[type, dict[str, _Parser]]] = {
    cls: {field.name: _PARSERS[str(field.type)] for field in dataclasses.fields(cls)}
    for cls in (*_CLASSES, Failure)
}


def _fields(cls: type, plain: object) -> dict[str, Any]:
    schema = _SCHEMAS[cls]
    if not isinstance(plain, dict) or plain.keys() != schema.keys():
        raise ValueError(f"{cls.__name__} has the wrong fields")
    values = {}
    for name, parse in schema.items():
        try:
            values[name] = parse(plain[name])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(f"{cls.__name__}.{name}: {error}") from error
    return values


def encode(message: Message) -> bytes:
    """A message as one frame. `LocalProtocolError` when it is too long."""
    plain: dict[str, Any] = {"t": type(message).__name__}
    for field in dataclasses.fields(message):
        value = getattr(message, field.name)
        write = _WRITERS.get(str(field.type))
        plain[field.name] = value if write is None else write(value)
    return encode_frame(plain)


def parse(plain: dict[str, Any], *, to_child: bool) -> Message:
    """The message a frame's map stands for. `to_child` says which side is reading."""
    name = plain.get("t")
    cls = MESSAGES.get(name) if isinstance(name, str) else None
    if cls is None:
        raise RemoteProtocolError("a frame is no message")
    if cls.to_child is not to_child:
        raise RemoteProtocolError(f"{cls.__name__} goes the other way")
    try:
        return cls(**_fields(cls, {key: value for key, value in plain.items() if key != "t"}))
    except ValueError as error:
        raise RemoteProtocolError(str(error)) from error
