"""A job's failure keeps its type and its story over the wire."""

import errno

import pytest
from meles.engine.errors import (
    CorruptionError,
    DiskFullError,
    Error,
    FormatVersionError,
    InvariantError,
    JobCancelledError,
    LockedError,
    StoreFailedError,
    WorkerFailedError,
)
from meles.workers.wire.errors import (
    MAX_MESSAGE,
    MAX_TRACEBACK,
    RemoteTracebackError,
    as_typed,
    describe,
    rebuild,
)
from meles.workers.wire.framing import MAX_PAYLOAD
from meles.workers.wire.messages import JobFailed, encode


def raised(error):
    try:
        raise error
    except type(error) as caught:
        return caught


def trip(error):
    return rebuild(describe(raised(error)), worker="compactor", pid=7, job="compact L0>L1")


def full():
    error = DiskFullError("no space to write 000007.sst")
    error.errno = errno.ENOSPC
    return error


@pytest.mark.parametrize(
    "error",
    [
        CorruptionError("bad sum", path="/x/000001.sst", offset=12, kind="block", hint="look"),
        CorruptionError("at byte 3: [block]", path="", offset=0, kind="block"),
        full(),
        StoreFailedError("sync failed"),
        FormatVersionError("newer"),
        JobCancelledError("cancelled"),
        InvariantError("two and two is five"),
        MemoryError("4 GiB"),
        FileNotFoundError(errno.ENOENT, "No such file", "000001.sst"),
        OSError(errno.EIO, "Input/output error"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_known_errors_arrive_as_themselves(error):
    arrived = trip(error)
    assert type(arrived) is type(error)
    assert isinstance(arrived.__cause__, RemoteTracebackError)
    assert "in raised" in str(arrived.__cause__)
    for name in ("path", "offset", "kind", "errno", "hint", "message"):
        assert getattr(arrived, name, None) == getattr(error, name, None), name


def test_an_errno_survives_and_the_file_is_named():
    arrived = trip(PermissionError(errno.EACCES, "Permission denied", "000001.sst"))
    assert isinstance(arrived, PermissionError)
    assert arrived.errno == errno.EACCES
    assert "000001.sst" in str(arrived)


def test_a_subclass_arrives_as_its_nearest_known_base():
    class Worse(CorruptionError):
        pass

    assert type(trip(Worse("x", path="p", offset=1, kind="k"))) is CorruptionError
    assert isinstance(trip(LockedError("held", path="p")), OSError)


def test_an_unknown_error_arrives_as_a_failed_worker():
    arrived = trip(ZeroDivisionError("by zero"))
    assert type(arrived) is WorkerFailedError
    assert (arrived.kind, arrived.pid, arrived.job) == ("compactor", 7, "compact L0>L1")
    assert "ZeroDivisionError: by zero" in arrived.message
    assert "ZeroDivisionError: by zero" in str(arrived.__cause__)


def test_the_whole_chain_of_causes_is_in_the_traceback():
    try:
        try:
            raise OSError(errno.EIO, "the first")
        except OSError as error:
            raise StoreFailedError("the second") from error
    except StoreFailedError as error:
        arrived = rebuild(describe(error), worker="flusher", pid=1, job="flush")
    assert "the first" in str(arrived.__cause__)


def test_endless_texts_are_cut_to_fit_a_frame():
    failure = describe(raised(ValueError("\N{SNOWMAN}" * 10_000_000)))
    assert len(failure.message) == MAX_MESSAGE
    assert len(failure.traceback) == MAX_TRACEBACK
    assert len(encode(JobFailed(1, 1, failure))) < MAX_PAYLOAD // 4


def test_in_this_process_errors_have_the_same_types():
    for error in (full(), MemoryError(), OSError(5, "x"), JobCancelledError("c")):
        assert as_typed(error, worker="flusher", job="flush") is error
    failed = as_typed(ZeroDivisionError("z"), worker="flusher", job="flush")
    assert type(failed) is WorkerFailedError
    assert isinstance(failed.__cause__, ZeroDivisionError)
    assert isinstance(failed, Error)
