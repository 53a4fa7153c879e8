"""Jobs and answers: what crosses the pipe comes back the same, and nothing else is a job."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from meles.engine.ids import MAX_FILE_ID
from meles.engine.jobs import (
    JOB_TYPES,
    BuildOptions,
    CompactJob,
    FlushJob,
    Job,
    JobResult,
    NewFile,
    RelocateJob,
    job_from_plain,
    job_to_plain,
    result_from_plain,
    result_to_plain,
)

u64 = st.integers(0, (1 << 64) - 1)
ids = st.integers(1, MAX_FILE_ID)
keys = st.binary(max_size=9)
builds = st.builds(BuildOptions, u64, st.text(max_size=5), u64, st.floats(0, 1))


def several(of: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(of, max_size=4).map(tuple)


jobs = st.one_of(
    st.builds(FlushJob, mem_id=u64, end=u64, table_id=ids, build=builds, created_ms=u64),
    st.builds(
        CompactJob, inputs=several(several(ids)), from_level=u64, level=u64,
        start=st.none() | keys, stop=st.none() | keys, first_table_id=ids, max_tables=u64,
        target_size=u64, discard_ts=u64, versions_to_keep=u64, now_ms=u64,
        below=several(st.tuples(keys, keys)), build=builds, created_ms=u64,
        drops=several(st.tuples(keys, u64)), splits=several(keys), ordered=st.booleans(),
    ),
    st.builds(
        RelocateJob, sources=several(st.tuples(ids, several(ids))), tables=several(ids), output=ids,
        rate=u64, created_ms=u64,
    ),
)  # fmt: skip
results = st.builds(
    JobResult,
    several(st.builds(NewFile, ids, u64, st.integers(0, (1 << 32) - 1))),
    st.dictionaries(st.text(max_size=5), u64, max_size=4),
)
FLUSH = FlushJob(3, 4096, 7, BuildOptions(), 1_700_000_000_000)
COMPACT = CompactJob(
    inputs=((9,), (4, 5)), from_level=0, level=1, start=b"a", stop=None, first_table_id=20,
    max_tables=4, target_size=1 << 21, discard_ts=77, versions_to_keep=1, now_ms=5,
    below=((b"a", b"c"),), build=BuildOptions(), created_ms=5,
)  # fmt: skip
RELOCATE = RelocateJob(((3, (3, 1)), (4, (4,))), (7, 9), 12, 0, 5)
JOBS: list[Job] = [FLUSH, COMPACT, RELOCATE]
PLAIN: list[dict[str, Any]] = [job_to_plain(job) for job in JOBS]


def over_the_wire(plain: object) -> object:
    return msgpack.unpackb(msgpack.packb(plain), strict_map_key=True)


@given(jobs)
def test_a_job_comes_back_the_same(job: Job) -> None:
    assert job_from_plain(job_to_plain(job)) == job
    found = job_from_plain(over_the_wire(job_to_plain(job)))
    assert found == job
    assert hash(found) == hash(job)


@given(results)
def test_an_answer_comes_back_the_same(result: JobResult) -> None:
    assert result_from_plain(result_to_plain(result)) == result
    assert result_from_plain(over_the_wire(result_to_plain(result))) == result


def test_kinds_are_those_of_the_workers() -> None:
    for kind, cls in (("flusher", FlushJob), ("compactor", CompactJob), ("value_gc", RelocateJob)):
        assert JOB_TYPES[kind] is cls
    assert [plain["kind"] for plain in PLAIN] == ["flusher", "compactor", "value_gc"]


def test_titles_are_short_and_name_files_by_number() -> None:
    assert [job.title() for job in JOBS] == [
        "flush memtable 3 to table 7",
        "compact L0>L1, 3 tables",
        "relocate value-log files 3, 4",
    ]


# -- hostile data --------------------------------------------------------------------------------

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.binary(max_size=3)
)
hostile = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=3) | st.binary(max_size=2), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(hostile)
def test_anything_is_a_value_error(plain: object) -> None:
    with pytest.raises(ValueError, match=r".+"):
        job_from_plain(plain)
    with pytest.raises(ValueError, match=r".+"):
        result_from_plain(plain)


def spoilt(data: st.DataObject, value: Any) -> Any:
    """The value with one part of it, at any depth, replaced by something else."""
    if isinstance(value, dict) and value and data.draw(st.booleans()):
        key = data.draw(st.sampled_from(sorted(value)))
        return {**value, key: spoilt(data, value[key])}
    if isinstance(value, list | tuple) and value and data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(value) - 1))
        return [*value[:at], spoilt(data, value[at]), *value[at + 1 :]]
    return data.draw(hostile)


@given(st.sampled_from(PLAIN), st.data())
def test_a_spoilt_job_is_a_value_error_or_a_sound_job(
    plain: dict[str, Any], data: st.DataObject
) -> None:
    try:
        job = job_from_plain(spoilt(data, plain))
    except ValueError:
        return
    assert job_from_plain(over_the_wire(job_to_plain(job))) == job


@given(results, st.data())
def test_a_spoilt_answer_is_a_value_error_or_a_sound_one(
    result: JobResult, data: st.DataObject
) -> None:
    try:
        found = result_from_plain(spoilt(data, result_to_plain(result)))
    except ValueError:
        return
    assert all(0 < file.id <= MAX_FILE_ID and 0 <= file.crc < 1 << 32 for file in found.files)
    assert result_from_plain(over_the_wire(result_to_plain(found))) == found


@pytest.mark.parametrize("plain", PLAIN, ids=lambda plain: plain["kind"])
def test_no_field_may_be_missing_or_too_many(plain: dict[str, Any]) -> None:
    for name in plain:
        with pytest.raises(ValueError, match=r".+"):
            job_from_plain({k: v for k, v in plain.items() if k != name})
    extras: list[dict[Any, Any]] = [{"x": 1}, {7: 1}, {b"kind": "flusher"}]
    for extra in extras:
        with pytest.raises(ValueError, match="wrong fields"):
            job_from_plain({**plain, **extra})
    for name in plain.get("build", ()):
        build = {k: v for k, v in plain["build"].items() if k != name}
        with pytest.raises(ValueError, match="build has the wrong fields"):
            job_from_plain({**plain, "build": build})


@pytest.mark.parametrize(
    ("index", "fields"),
    [
        (0, {"kind": ["flusher"]}), (0, {"kind": "compactor"}), (0, {"kind": None}),
        (0, {"kind": "serve"}), (0, {"mem_id": "3"}), (0, {"mem_id": 3.0}), (0, {"mem_id": True}),
        (0, {"mem_id": -1}), (0, {"mem_id": 1 << 64}), (0, {"mem_id": None}), (0, {"build": []}),
        (0, {"build": None}), (0, {"build": {1: 2}}),
        (0, {"build": {**PLAIN[0]["build"], "block_size": -1}}),
        (0, {"build": {**PLAIN[0]["build"], "compression": b"none"}}),
        (0, {"build": {**PLAIN[0]["build"], "bloom_false_positive": float("nan")}}),
        (0, {"build": {**PLAIN[0]["build"], "bloom_false_positive": "0.1"}}),
        (1, {"inputs": [[1], 2]}), (1, {"inputs": 7}), (1, {"inputs": [["1"]]}),
        (1, {"inputs": {"a": 1}}), (1, {"inputs": "ab"}), (1, {"inputs": b"ab"}),
        (1, {"start": "a"}), (1, {"start": 1}), (1, {"stop": [b"a"]}), (1, {"ordered": 1}),
        (1, {"below": [[b"a"]]}), (1, {"below": [[b"a", b"b", b"c"]]}), (1, {"below": [[b"a", 1]]}),
        (1, {"drops": [[b"a", b"b"]]}), (1, {"splits": [1]}), (1, {"splits": b"ab"}),
        (2, {"sources": [[3]]}), (2, {"sources": [[3, 3]]}), (2, {"sources": [[3, [None]]]}),
        (2, {"tables": None}), (2, {"output": [1]}), (2, {"rate": -1}),
    ],
)  # fmt: skip
def test_a_field_of_another_type_is_refused(index: int, fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        job_from_plain({**PLAIN[index], **fields})


def test_deep_nesting_is_refused_and_not_followed() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="inputs is a list"):
        job_from_plain({**PLAIN[1], "inputs": deep})
    with pytest.raises(ValueError, match=r".+"):
        result_from_plain({"files": deep, "counters": {}})
    while isinstance(deep, list):  # taken apart here: freeing it at once would go as deep
        deep = deep[0]


@pytest.mark.parametrize(
    "plain",
    [
        {}, {"files": []}, {"counters": {}}, {"files": [], "counters": {}, "x": 1},
        {"files": {}, "counters": {}}, {"files": None, "counters": {}},
        {"files": [], "counters": []},
        {"files": [[1, 2]], "counters": {}}, {"files": [[1, 2, 3, 4]], "counters": {}},
        {"files": [{"id": 1}], "counters": {}}, {"files": ["abc"], "counters": {}},
        {"files": [[0, 1, 1]], "counters": {}}, {"files": [[-1, 1, 1]], "counters": {}},
        {"files": [[MAX_FILE_ID + 1, 1, 1]], "counters": {}},
        {"files": [[1, -1, 1]], "counters": {}},
        {"files": [[1, 1, 1 << 32]], "counters": {}}, {"files": [[True, 1, 1]], "counters": {}},
        {"files": [[1.0, 1, 1]], "counters": {}}, {"files": [["../1", 1, 1]], "counters": {}},
        {"files": [], "counters": {1: 1}}, {"files": [], "counters": {b"a": 1}},
        {"files": [], "counters": {"a": "1"}}, {"files": [], "counters": {"a": None}},
        {"files": [], "counters": {"a": -1}}, {"files": [], "counters": {"a": 1.5}},
    ],
)  # fmt: skip
def test_an_answer_that_is_none(plain: object) -> None:
    with pytest.raises(ValueError, match=r".+"):
        result_from_plain(plain)


def test_jobs_are_values() -> None:
    for job in JOBS:
        assert dataclasses.replace(job) == job
        with pytest.raises(dataclasses.FrozenInstanceError):
            job.created_ms = 1  # type: ignore[misc]
