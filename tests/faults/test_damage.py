"""Damage to any file: right data or a typed error, and an opening that deletes or cuts nothing.

One small database holds every kind of file: MANIFEST, tables on two levels, sealed, relocated and
open value-log files, sealed and open logs. Each case damages a copy of it. "Right" means: every
read gives what was committed or raises; what is missing is at most the end of the commits, and only
where a log, or a value of the last commits, was hit.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import meles
import pytest
from fault_fs import FaultDisk
from meles.engine.codec.header import HEADER_BYTES
from story import OPTIONS
from tally import Tally
from whole import (
    CHANGES,
    KINDS,
    Change,
    Whole,
    build,
    empty,
    listing,
    missing,
    no_more_tables,
    swapped,
)

SAMPLE = int(os.environ.get("MELES_FLIPS", "300"))  # flips of each kind of file in the default run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    made = build(tmp_path_factory.mktemp("damage"), closed=False)
    assert set(made.kinds.values()) == set(KINDS), made.kinds
    return made


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    made = build(tmp_path_factory.mktemp("closed"), closed=True)
    assert set(made.kinds.values()) == {"MANIFEST", "table", "value log"}, made.kinds
    return made


def test_the_whole_one_is_right(whole: Whole) -> None:
    with meles.open(whole.path, mode="read_only", **OPTIONS) as db:
        assert dict(db.items()) == whole.states[-1]
        assert db.verify(values=True).ok


# -- judging -------------------------------------------------------------------------------------


def ask(whole: Whole, db: meles.DB) -> int:
    """Every read gives the answer of one state, or raises; returns how many raised."""
    raised, wrong = 0, set(range(len(whole.states)))
    keys = sorted({key for state in whole.states for key in state})
    for key in keys:
        try:
            got = db.get(key)
        except meles.CorruptionError:
            raised += 1
            continue
        wrong -= {n for n in wrong if whole.states[n].get(key) != got}
        assert wrong, f"{key!r} shows what fits no state that also fits the keys before it"
    for reverse in (False, True):
        try:
            found = dict(db.items(reverse=reverse))
        except meles.CorruptionError:
            raised += 1
            continue
        assert found in whole.states
    return raised


def judge(whole: Whole, path: Path, kind: str) -> str:
    """Open read-only and read all; says what became of it: `refused`, `raised` or `right`."""
    before, outcome = listing(path), "right"
    with contextlib.ExitStack() as stack:
        try:
            db = stack.enter_context(meles.open(path, mode="read_only", **OPTIONS))
        except (meles.CorruptionError, meles.FormatVersionError):
            outcome = "refused"
        else:
            if ask(whole, db):
                outcome = "raised"
                assert not db.verify(values=True).ok
            elif kind in ("MANIFEST", "table", "value log"):
                assert dict(db.items()) == whole.states[-1]
    assert listing(path) == before
    return outcome


def own(whole: Whole, path: Path, refused: bool) -> None:
    """Open as owner: refuses alike and touches nothing, or removes no file that held anything.

    (A value log that was open may have been cut in front of its first whole entry.)
    """
    before = listing(path)
    with FaultDisk(remember=False).installed() as disk:
        disk.plan = no_more_tables  # so that nothing is removed because it was replaced
        try:
            db = meles.open(path, gc=False, **OPTIONS)
        except meles.Error:
            assert refused
            assert listing(path) == before
            return
        assert not refused
        ask(whole, db)
        after = listing(path)
        disk.plan = None
        db.close()
    for name, data in before.items():
        if any(data[HEADER_BYTES:]) and whole.kinds[name] != "open value log":
            assert name in after or f"{name}.aside" in after, f"{name} was removed"


@pytest.fixture
def damaged(whole: Whole, shm_path: Path) -> Path:
    """A copy to be damaged, in memory."""
    return Path(shutil.copytree(whole.path, shm_path / "db"))


# -- flipped bits --------------------------------------------------------------------------------


def flips(data: bytes, name: str, count: int | None) -> Iterator[tuple[int, int]]:
    """Byte and bit: all bits of the first and last 64 bytes and one of each other, or a sample."""
    rng = random.Random(name)
    stop = len(data.rstrip(b"\0")) + 1 if name.endswith(".mem") else len(data)
    stop = min(stop, len(data))
    ends = [*range(min(64, stop)), *range(max(64, stop - 64), stop)]
    found = [(at, bit) for at in ends for bit in range(8)]
    found += [(at, rng.randrange(8)) for at in range(64, max(64, stop - 64))]
    return iter(found if count is None else rng.sample(found, min(count, len(found))))


def flip_all(whole: Whole, path: Path, kind: str, count: int | None) -> dict[str, int]:
    """Flip one bit at a time in every file of a kind; returns how often each outcome came."""
    outcomes: dict[str, int] = {}
    names = whole.names(kind)
    for name in names:
        data = bytearray((path / name).read_bytes())
        share = None if count is None else max(1, count // len(names))
        for at, bit in flips(bytes(data), name, share):
            data[at] ^= 1 << bit
            (path / name).write_bytes(data)
            try:
                outcome = judge(whole, path, kind)
            except BaseException as error:
                error.add_note(f"bit {bit} of byte {at} of {name} ({kind})")
                raise
            data[at] ^= 1 << bit
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
        (path / name).write_bytes(data)
    return outcomes


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit(whole: Whole, damaged: Path, tally: Tally, kind: str) -> None:
    outcomes = flip_all(whole, damaged, kind, SAMPLE)
    tally(f"flipped bit: {kind}", sum(outcomes.values()))
    assert sum(outcomes.values()) >= SAMPLE // 2
    assert outcomes.get("refused", 0) + outcomes.get("raised", 0) > 0 or "log" in kind


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_anywhere(whole: Whole, damaged: Path, tally: Tally, kind: str) -> None:
    outcomes = flip_all(whole, damaged, kind, None)
    tally(f"flipped bit: {kind}", sum(outcomes.values()))


# -- whole files ---------------------------------------------------------------------------------


def change_each(whole: Whole, where: Path, tally: Tally, change: Change) -> None:
    """Do it to every file, one at a time."""
    applied = 0
    for name, kind in whole.kinds.items():
        path = Path(shutil.copytree(whole.path, where / name))
        if not change(whole, path, name):
            continue
        applied += 1
        try:
            outcome = judge(whole, path, kind)
            own(whole, path, outcome == "refused")
            if change in (missing, empty, swapped) and kind in ("table", "value log", "MANIFEST"):
                assert outcome == "refused"
        except BaseException as error:
            error.add_note(f"{name} ({kind}) {change.__name__}")
            raise
        shutil.rmtree(path)
    tally(f"file {change.__name__.replace('_', ' ')}", applied)
    assert applied > 0


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_file_that_is(whole: Whole, shm_path: Path, tally: Tally, change: Change) -> None:
    change_each(whole, shm_path, tally, change)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_file_of_a_closed_database_that_is(
    closed: Whole, shm_path: Path, tally: Tally, change: Change
) -> None:
    change_each(closed, shm_path, tally, change)


def test_files_that_are_not_ours_are_let_be(whole: Whole, damaged: Path) -> None:
    foreign = {
        "notes.txt": b"mine", "MANIFEST.bak": b"x", "000001.sst.orig": b"y", "1.sst": b"z",
        "000001.SST": b"", "0000001.vlog": b"w", "core": bytes(100), ".hidden": b"h",
    }  # fmt: skip
    for name, data in foreign.items():
        (damaged / name).write_bytes(data)
    (damaged / "a folder").mkdir()
    (damaged / "a folder" / "000001.sst").write_bytes(b"theirs")
    with meles.open(damaged, mode="read_only", **OPTIONS) as db:
        assert dict(db.items()) == whole.states[-1]
    with meles.open(damaged, **OPTIONS) as db:
        assert dict(db.items()) == whole.states[-1]
        db.flush()
        db.flatten()
    assert {name: (damaged / name).read_bytes() for name in foreign} == foreign
    assert (damaged / "a folder" / "000001.sst").read_bytes() == b"theirs"
