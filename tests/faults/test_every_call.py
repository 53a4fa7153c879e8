"""Every call on the disk fails once, or from then on: a typed error or success, and nothing lost.

The story is told on one thread, so its n-th call is always the same one. `make test` takes a sample
of the n, at another place for each kind of failure; `make test-long` takes every one.
"""

from __future__ import annotations

import errno
import gc
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import meles
import pytest
from fault_fs import GROWING, MUTATING, READING, FailNth, FaultDisk, Operation
from leaks import Held, assert_nothing_left
from story import REFUSALS, Story
from tally import Tally
from waiting import wait_until

pytestmark = pytest.mark.usefixtures("frequent_rewrites")

OPENING = frozenset({"create", "open", "map", "map_read"})  # what needs a descriptor
SAMPLE = 19  # every so many calls in the default run


@dataclass(frozen=True)
class Fault:
    """How a call fails. `heals`: once it works again, the same handle takes writes again."""

    code: int
    kinds: frozenset[str] = MUTATING
    sticky: bool = False
    torn: float | None = None
    heals: bool = False

    def plan(self, n: int) -> FailNth:
        return FailNth(n, self.code, sticky=self.sticky, kinds=self.kinds, torn=self.torn)


FAULTS = {
    "EIO": Fault(errno.EIO),
    "EIO for good": Fault(errno.EIO, sticky=True),
    "EIO after half a write": Fault(errno.EIO, frozenset({"write"}), torn=0.5),
    "EIO in reading": Fault(errno.EIO, READING),
    "EIO in reading for good": Fault(errno.EIO, READING, sticky=True),
    "full": Fault(errno.ENOSPC, GROWING, torn=0.3, heals=True),
    "full for good": Fault(errno.ENOSPC, GROWING, sticky=True, heals=True),
    "full when synced": Fault(errno.ENOSPC, frozenset({"sync", "sync_dir"})),
    "no descriptors": Fault(errno.EMFILE, OPENING, heals=True),
    "no descriptors for good": Fault(errno.EMFILE, OPENING, sticky=True, heals=True),
}


def count_calls(home: Path, kinds: frozenset[str]) -> int:
    """Calls of these kinds in an undisturbed telling, which must have seen everything."""
    rewrites = 0

    def look(operation: Operation) -> None:
        nonlocal rewrites
        rewrites += operation.kind == "rename" and operation.name.startswith("MANIFEST")

    with FaultDisk(remember=False).installed() as disk:
        disk.plan = look
        story = Story()
        story.tell(home)
        assert story.errors == []
        assert story.saw_everything(), f"void: {story.seen}"
        assert rewrites > 2
        calls = sum(operation.kind in kinds for operation in disk.log)
        disk.plan = None
    story.judge(home)
    return calls


def tell_with(fault: Fault, n: int, home: Path) -> int:
    """One telling with one fault; returns how often it struck."""
    story = Story()
    with FaultDisk(remember=False).installed() as disk:
        disk.plan = plan = fault.plan(n)
        story.tell(home)
        disk.plan = None
    if story.begun or home.exists():
        story.judge(home)
    return plan.fired


def every(name: str, where: Path, tally: Tally, pick: Callable[[int], Iterator[int]]) -> None:
    """Tell the story once for each picked call."""
    fault = FAULTS[name]
    calls = count_calls(where / "whole", fault.kinds)
    gc.collect()
    held = Held.now()
    struck = tried = 0
    for n in pick(calls):
        home = where / str(n)
        tried += 1
        try:
            struck += tell_with(fault, n, home) > 0
        except BaseException as error:
            error.add_note(f"call {n} of {calls}, {fault}")
            raise
        shutil.rmtree(home, ignore_errors=True)
    tally(f"call fails: {name}", tried, struck)
    assert struck == tried > 0
    assert_nothing_left(held)


@pytest.mark.parametrize("name", FAULTS)
def test_some_calls(shm_path: Path, tally: Tally, name: str) -> None:
    first = 1 + list(FAULTS).index(name) * 7 % SAMPLE
    every(name, shm_path, tally, lambda calls: iter(range(first, calls + 1, SAMPLE)))


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", FAULTS)
def test_every_call(shm_path: Path, tally: Tally, name: str) -> None:
    every(name, shm_path, tally, lambda calls: iter(range(1, calls + 1)))


# -- the handle goes on --------------------------------------------------------------------------


def takes(story: Story, db: meles.DB) -> bool:
    try:
        story.commit(db, {b"after": b"x" * 2000})
    except REFUSALS:
        story.take_back()
        return False
    return True


def flushed(db: meles.DB) -> bool:
    try:
        db.flush()
    except REFUSALS:  # what failed is tried again after a pause
        return False
    return True


def goes_on(fault: Fault, n: int, home: Path) -> None:
    """What may be cured is cured for the same handle: what it refused it takes now."""
    story = Story()
    with FaultDisk(remember=False).installed() as disk:
        db = meles.open(home, **story.options)
        disk.plan = plan = fault.plan(n)
        story.go_on(db)
        disk.plan = None
        assert plan.fired
        assert story.begun == story.acknowledged, story.errors
        wait_until(lambda: takes(story, db), what="writing")
        wait_until(lambda: flushed(db), what="flushing")
        assert dict(db.items()) == story.states[-1]
        assert db.health().status in ("ok", "degraded"), db.health()
        db.close()
    story.judge(home)


HEALING = [name for name, fault in FAULTS.items() if fault.heals]


def heal(name: str, where: Path, tally: Tally, step: int) -> None:
    fault = FAULTS[name]
    calls = count_calls(where / "whole", fault.kinds)
    picked = range(1, calls * 3 // 4, step)  # the last quarter is closing
    tally(f"call fails, then heals: {name}", len(picked))
    for n in picked:
        try:
            goes_on(fault, n, where / str(n))
        except BaseException as error:
            error.add_note(f"call {n} of {calls}, {fault}")
            raise
        shutil.rmtree(where / str(n))


@pytest.mark.parametrize("name", HEALING)
def test_what_was_cured_is_taken(shm_path: Path, tally: Tally, name: str) -> None:
    heal(name, shm_path, tally, SAMPLE)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", HEALING)
def test_what_was_cured_is_taken_at_every_call(shm_path: Path, tally: Tally, name: str) -> None:
    heal(name, shm_path, tally, 1)
