"""Units: complete, within budget, each with the exact place after its last line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meles.engine.cli.follow import FileFollower, FileMark, Piece
from meles.engine.cli.intake import Intake, Unit
from meles.engine.cli.position import Position, PositionError, position_key
from meles.engine.cli.sources import source_format

HOW = source_format("lines", "{n}", 1000)


class Script:
    """A follower that gives prepared bytes, a piece a read, and then ends."""

    name = "script"
    fd = None

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces
        self._offset = 0
        self.finished = False

    def read(self, limit: int) -> Piece | None:
        if self._pieces:
            data = self._pieces.pop(0)
            self._offset += len(data)
            return Piece(data, ends=False, mark=FileMark(1, self._offset, 0, 0))
        if self.finished:
            return None
        self.finished = True
        return Piece(b"", ends=True, mark=FileMark(1, self._offset, 0, 0))

    def close(self) -> None:
        pass


def units_of(intake: Intake) -> list[Unit]:
    units: list[Unit] = []
    while (taken := intake.take()) is not None:
        units += taken
    return units


@given(
    st.lists(st.binary(max_size=30).map(lambda b: b.replace(b"\x00", b"\n")), max_size=20),
    st.integers(1, 600),
)
def test_positions_are_exact_whatever_the_cuts_and_the_budget(
    pieces: list[bytes], budget: int
) -> None:
    text = b"".join(pieces)
    units = units_of(Intake(Script(list(pieces)), b"script", HOW, Position(), budget))
    values = [value for unit in units for chunk in unit.chunks for value in chunk.values]
    whole = text.split(b"\n")
    assert values == (whole if whole[-1] else whole[:-1])
    taken = 0
    for unit in units:
        count = sum(len(chunk.values) for chunk in unit.chunks)
        taken += count
        assert count == 1 or unit.cost <= budget
        assert unit.position.line == taken
        assert unit.position.mark is not None
        assert (
            text[: unit.position.mark.offset].count(b"\n")
            + (unit.position.mark.offset == len(text) and not text.endswith(b"\n"))
            == taken
        )


def test_too_long_line_leaves_the_places_after_it_exact(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"a\n" + b"x" * 5000 + b"\nb\nc\n")
    source = FileFollower(str(path))
    intake = Intake(source, b"in", HOW, Position(), budget=170)
    units = units_of(intake)
    source.close()
    places = [(u.position.line, u.position.mark.offset) for u in units if u.position.mark]
    assert places == [(1, 2), (2, 5003), (3, 5005), (4, 5007)]
    assert [chunk.bad.line for unit in units for chunk in unit.chunks if chunk.bad] == [2]


def test_numbers_go_on_from_the_position_and_torn_lines_wait() -> None:
    intake = Intake(Script([b"a\nb"]), b"s", HOW, Position(line=41), 10_000)
    taken = intake.take()
    assert taken is not None
    assert [chunk.keys for unit in taken for chunk in unit.chunks] == [[b"42"]]
    assert intake.torn == 1
    taken = intake.take()
    assert taken is not None
    assert [chunk.keys for unit in taken for chunk in unit.chunks] == [[b"43"]]
    assert intake.torn == 0


@pytest.mark.parametrize("position", [Position(), Position(7), Position(7, FileMark(1, 2, 3, 4))])
def test_position_survives_coding(position: Position) -> None:
    assert Position.decode(position.encode()) == position


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff", b"{}", b"[]", b"7", b'{"line": 1}', b'{"line": -1, "mark": null}',
     b'{"line": "1", "mark": null}', b'{"line": 1, "mark": {}}', b'{"line": true, "mark": null}'],
)  # fmt: skip
def test_what_is_no_position_is_refused(data: bytes) -> None:
    with pytest.raises(PositionError, match="stored position"):
        Position.decode(data)


def test_position_key_holds_the_bytes_of_the_name() -> None:
    assert position_key(b"p/", "x\udcff") == b"p/x\xff"
