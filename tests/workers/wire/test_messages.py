"""Messages: each survives the trip, and nothing that is not exactly one is taken for one."""

import dataclasses
import re
from pathlib import Path

import meles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from meles.engine.jobs import (
    BuildOptions,
    CompactJob,
    FlushJob,
    JobResult,
    NewFile,
    RelocateJob,
)
from meles.workers.wire import messages
from meles.workers.wire.errors import Failure, RemoteProtocolError
from meles.workers.wire.framing import FrameDecoder, encode_frame
from meles.workers.wire.messages import (
    MESSAGES,
    Cancel,
    Heartbeat,
    Hello,
    JobDone,
    JobFailed,
    JobRequest,
    Ready,
    Setup,
    Stop,
    encode,
    parse,
)

FLUSH = FlushJob(3, 4096, 9, BuildOptions(compression="zstd"), 17)
COMPACT = CompactJob(
    ((9, 8), (1, 2, 3)), 0, 1, b"a", None, 10, 4, 2 << 20, 77, 1, 5, ((b"k", b"l"),),
    BuildOptions(), 6, ((b"", 4),), (b"m",), False,
)  # fmt: skip
RELOCATE = RelocateJob(((4, (4, 2)),), (1, 2), 11, 1 << 20, 8)
EXAMPLES = [
    Hello(1, "0.1.0", "python", 42, "flusher"),
    Setup(0.5, 20, None, "/data", "/values"),
    Setup(1.0, 20, 1 << 28, b"/\xff".decode("utf-8", "surrogateescape"), ""),
    Setup(1.0, 20, None, "/data", "/values", encrypted=True),
    Ready(),
    JobRequest(1, 2, FLUSH),
    JobRequest(1, 2, COMPACT),
    JobRequest(1, 2, RELOCATE),
    JobRequest(1, 2, RELOCATE, b"packed keys"),
    Cancel(7),
    Stop(),
    Heartbeat(1, 2, 3, 4),
    JobDone(1, 2, JobResult((NewFile(1, 2, 3),), {"read_bytes": 9})),
    JobDone(1, 2, JobResult((), {})),
    JobFailed(1, 2, Failure("OSError", "no", None, "trace", errno=5)),
    JobFailed(1, 2, Failure("CorruptionError", "bad", "hint", "", "p", 12, "block")),
]


def plain_of(message):
    (plain,) = FrameDecoder().feed(encode(message))
    return plain


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_every_message_survives_the_trip(message):
    assert parse(plain_of(message), to_child=message.to_child) == message


def test_there_is_an_example_of_every_message():
    assert {type(message) for message in EXAMPLES} == set(MESSAGES.values())


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_a_message_of_the_wrong_direction_is_refused(message):
    with pytest.raises(RemoteProtocolError, match="other way"):
        parse(plain_of(message), to_child=not message.to_child)


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_every_field_is_needed_and_no_other_is_taken(message):
    plain = plain_of(message)
    for field in dataclasses.fields(message):
        without = {key: value for key, value in plain.items() if key != field.name}
        with pytest.raises(RemoteProtocolError):
            parse(without, to_child=message.to_child)
    with pytest.raises(RemoteProtocolError):
        parse({**plain, "more": 1}, to_child=message.to_child)


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_every_field_must_be_of_its_type(message):
    plain = plain_of(message)
    for field in dataclasses.fields(message):
        for wrong in (True, -1, 1.5j, b"bytes", [[]], {"a": {}}):
            if (field.type, wrong) in (("bytes", b"bytes"), ("bool", True)):
                continue
            with pytest.raises(RemoteProtocolError):
                parse({**plain, field.name: wrong}, to_child=message.to_child)


@pytest.mark.parametrize("name", [None, 7, [], "", "hello", "Job", b"Hello"])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(RemoteProtocolError, match="no message"):
        parse({"t": name}, to_child=True)


def test_an_answer_with_strange_contents_is_refused():
    good = plain_of(EXAMPLES[10])
    for result in (
        {"files": [], "counters": {}, "path": "../x"},
        {"files": [["../x", 1, 2]], "counters": {}},
        {"files": [[1, 2]], "counters": {}},
        {"files": {}, "counters": {}},
        {"files": [], "counters": {"a": "b"}},
        {"files": [], "counters": {"a": True}},
        [],
        None,
    ):
        with pytest.raises(RemoteProtocolError):
            parse({**good, "result": result}, to_child=False)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(
    st.sampled_from(sorted(MESSAGES)),
    st.dictionaries(
        st.sampled_from(
            sorted({f.name for cls in MESSAGES.values() for f in dataclasses.fields(cls)})
        ),
        values,
    ),
    st.booleans(),
)
def test_any_map_is_a_message_or_a_protocol_error(name, fields, to_child):
    try:
        message = parse({"t": name, **fields}, to_child=to_child)
    except RemoteProtocolError:
        return
    assert type(message).__name__ == name


def test_the_release_is_the_one_of_the_package():
    project = (Path(meles.__file__).parent / "pyproject.toml").read_text()
    assert f'version = "{messages.PACKAGE_VERSION}"' in project
    assert meles.__version__ == messages.PACKAGE_VERSION


def test_the_example_in_the_document_is_what_the_code_writes():
    text = (Path(messages.__file__).parent / "PROTOCOL.md").read_text()
    example = bytes.fromhex(re.search(r"```hex\n(.*?)```", text, re.DOTALL)[1])
    assert encode(Cancel(7)) == example
    (plain,) = FrameDecoder().feed(example)
    assert parse(plain, to_child=True) == Cancel(7)


def test_the_document_names_every_message_and_field():
    text = (Path(messages.__file__).parent / "PROTOCOL.md").read_text()
    assert f"Version {messages.PROTOCOL_VERSION}." in text
    for name, cls in MESSAGES.items():
        (row,) = re.findall(rf"^\| `{name}` \| (\w+) \|(.*)\|.*\|$", text, re.MULTILINE)
        assert row[0] == ("worker" if cls.to_child else "supervisor")
        assert re.findall(r"`(\w+)`", row[1])[: len(dataclasses.fields(cls))] == [
            field.name for field in dataclasses.fields(cls)
        ]


def test_a_frame_without_a_name_is_no_message():
    (plain,) = FrameDecoder().feed(encode_frame({}))
    with pytest.raises(RemoteProtocolError):
        parse(plain, to_child=False)
