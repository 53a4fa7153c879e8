"""The service loop in this process, over real FIFOs, files and pipes, driven by its own output."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import meles
import pytest
from meles.engine.cli.position import Position
from meles.engine.cli.serve import serve
from meles.engine.cli.service import ServeSettings
from meles.engine.cli.sources import source_format
from meles.engine.cli.stop import StopSource


class Output(io.StringIO):
    """What the service prints; does the next step when it sees the text that step waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[str, Callable[[], object]]] = []
        self._seen = 0

    def write(self, text: str) -> int:
        count = super().write(text)
        while self.steps and self.steps[0][0] in self.getvalue()[self._seen :]:
            awaited, step = self.steps.pop(0)
            self._seen = self.getvalue().index(awaited, self._seen) + len(awaited)
            step()
        return count


class Bench:
    """One database directory, a stop pipe, and services run on it one after another."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.database = str(directory / "db")
        self._read_end, self._write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.log = ""

    def stop(self) -> None:
        os.write(self._write_end, b"\x0f")

    def run(
        self, *sources: str, steps: list[tuple[str, Callable[[], object]]],
        kind: str = "lines", key: str | None = None, skip: bool = True, **options: object,
    ) -> tuple[int, str]:  # fmt: skip
        output, log = Output(), io.StringIO()
        output.steps = steps
        settings = ServeSettings(
            format=source_format(kind, key, 1000), skip=skip, commit_every=0.01, acknowledge=True
        )
        stop = StopSource(self._read_end)
        assert stop.count == 0
        try:
            code = serve(
                self.database, sources, settings=settings, stop=stop, output=output, log=log,
                options={"workers": "inline", **options},
            )  # fmt: skip
        finally:
            self.log = log.getvalue()
        assert steps == [], f"never printed: {steps[0][0]}"
        return code, output.getvalue()

    def entries(self) -> dict[bytes, bytes]:
        """What is stored, positions left out."""
        with meles.open(self.database, mode="read_only") as db:
            return {k: v for k, v in db.items() if not k.startswith(b"_serve/")}

    def position(self, source: str) -> Position:
        with meles.open(self.database, mode="read_only") as db:
            return Position.decode(db[b"_serve/position/" + os.fsencode(source)])

    def close(self) -> None:
        os.close(self._read_end)
        os.close(self._write_end)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def append(path: Path | str, data: bytes) -> None:
    with open(path, "ab") as file:
        file.write(data)


def test_without_sources_the_database_is_held_open_until_told_to_stop(bench: Bench) -> None:
    held: list[BaseException] = []

    def try_to_open() -> None:
        with pytest.raises(meles.LockedError) as caught:
            meles.open(bench.database)
        held.append(caught.value)
        bench.stop()

    code, output = bench.run(steps=[("ready: ", try_to_open)])
    assert code == 0
    assert len(held) == 1
    assert "stopped: 0 records acknowledged" in output
    assert "release_locks" in output


def test_followed_file_goes_on_after_its_position(bench: Bench) -> None:
    log = bench.directory / "app.log"
    append(log, b"one\ntwo\nthr")
    code, output = bench.run(str(log), steps=[(f"ack {log} 2\n", bench.stop)])
    assert code == 0
    assert f"unfinished last line of {log}: 3 bytes, not taken" in output
    assert bench.position(str(log)).line == 2
    append(log, b"ee\nfour\n")
    code, _ = bench.run(str(log), steps=[(f"ack {log} 4\n", bench.stop)])
    assert code == 0
    name = os.fsencode(log)
    assert bench.entries() == {
        name + b":1": b"one", name + b":2": b"two", name + b":3": b"three", name + b":4": b"four",
    }  # fmt: skip


def test_rotation_while_running_and_while_stopped(bench: Bench) -> None:
    log = bench.directory / "app.log"
    append(log, b"1\n")

    def rotate(text: bytes) -> None:
        log.rename(log.with_name("app.log.1"))
        append(log, text)

    steps: list[tuple[str, Callable[[], object]]] = [
        (f"ack {log} 1\n", lambda: rotate(b"2\n")),
        (f"ack {log} 2\n", bench.stop),
    ]
    bench.run(str(log), key="{n}", steps=steps)
    append(log, b"3\n")
    rotate(b"4\n5")
    bench.run(str(log), key="{n}", steps=[(f"ack {log} 4\n", bench.stop)])
    assert bench.entries() == {b"%d" % n: b"%d" % n for n in (1, 2, 3, 4)}


def test_fifo_writers_come_and_go_and_numbers_go_on_after_a_restart(bench: Bench) -> None:
    fifo = str(bench.directory / "fifo")
    os.mkfifo(fifo)

    def write(text: bytes) -> None:
        fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        os.write(fd, text)
        os.close(fd)

    steps: list[tuple[str, Callable[[], object]]] = [
        ("ready: ", lambda: write(b"a\nb")),
        (f"ack {fifo} 2\n", lambda: write(b"c\n")),
        (f"ack {fifo} 3\n", bench.stop),
    ]
    bench.run(fifo, key="{n}", steps=steps)
    steps = [("ready: ", lambda: write(b"d\n")), (f"ack {fifo} 4\n", bench.stop)]
    bench.run(fifo, key="{n}", steps=steps)
    assert bench.entries() == {b"1": b"a", b"2": b"b", b"3": b"c", b"4": b"d"}


def test_what_was_read_when_told_to_stop_is_committed(bench: Bench) -> None:
    log = bench.directory / "app.log"
    append(log, b"".join(b"%d\n" % n for n in range(100_000)))
    code, output = bench.run(
        str(log), key="{n:06d}", steps=[("ack ", bench.stop)], memtable_size="64KiB"
    )
    assert code == 0
    kept = bench.entries()
    line = bench.position(str(log)).line
    assert f"stopped: {line:,} records acknowledged" in output
    assert kept == {b"%06d" % (n + 1): b"%d" % n for n in range(line)}
    assert 0 < line < 100_000


def test_small_transactions_split_without_loss(bench: Bench) -> None:
    log = bench.directory / "app.log"
    lines = [b"%d" % n * (n % 40) for n in range(5000)]
    append(log, b"\n".join(lines) + b"\n")
    steps: list[tuple[str, Callable[[], object]]] = [(f"ack {log} 5000\n", bench.stop)]
    code, _ = bench.run(str(log), key="{n:04d}", steps=steps, memtable_size="64KiB")
    assert code == 0
    assert bench.entries() == {b"%04d" % n: line for n, line in enumerate(lines, 1)}


def test_bad_records_are_reported_and_skipped(bench: Bench) -> None:
    log = bench.directory / "app.log"
    append(log, b'{"id": "a"}\nbad\n{"id": ""}\n{"id": "b"}\n')
    steps: list[tuple[str, Callable[[], object]]] = [(f"ack {log} 4\n", bench.stop)]
    code, output = bench.run(str(log), kind="jsonl", key="id", steps=steps)
    assert code == 1, "not everything is in"
    assert "2 records acknowledged, 2 bad" in output
    assert f"bad record: {log}, line 2: not JSON" in bench.log
    assert f"bad record: {log}, line 3: " in bench.log
    assert bench.entries() == {b"a": b'{"id": "a"}', b"b": b'{"id": "b"}'}


def test_bad_record_stops_the_service_when_asked_to_and_is_met_again(bench: Bench) -> None:
    log = bench.directory / "app.log"
    append(log, b'{"id": "a"}\n{"id": ""}\n{"id": "b"}\n')
    for _ in range(2):
        code, output = bench.run(str(log), kind="jsonl", key="id", skip=False, steps=[])
        assert code == 1
        assert f"stopped at bad record: {log}, line 2" in output
        assert bench.entries() == {b"a": b'{"id": "a"}'}
    steps: list[tuple[str, Callable[[], object]]] = [(f"ack {log} 3\n", bench.stop)]
    bench.run(str(log), kind="jsonl", key="id", steps=steps)
    assert sorted(bench.entries()) == [b"a", b"b"]


def test_a_damaged_position_is_refused_and_the_database_closed(bench: Bench) -> None:
    log = bench.directory / "app.log"
    append(log, b"1\n")
    with meles.open(bench.database, workers="inline") as db:
        db.set(b"_serve/position/" + os.fsencode(log), b"nonsense")
    with pytest.raises(meles.Error, match="does not parse"):
        bench.run(str(log), steps=[])
    assert bench.entries() == {}


def test_a_source_that_is_a_directory_is_refused_and_the_database_closed(bench: Bench) -> None:
    with pytest.raises(IsADirectoryError):
        bench.run(str(bench.directory), steps=[])
    assert bench.entries() == {}


def test_stopped_before_it_was_ready(bench: Bench) -> None:
    log = bench.directory / "app.log"
    append(log, b"1\n")
    output = Output()
    bench.stop()
    settings = ServeSettings(format=source_format("lines", None, 1000))
    stop = StopSource(bench._read_end)
    code = serve(
        bench.database, [str(log)], settings=settings, stop=stop, output=output,
        log=io.StringIO(), options={"workers": "inline"},
    )  # fmt: skip
    assert code == 0
    assert "stopped: 0 records" in output.getvalue()
