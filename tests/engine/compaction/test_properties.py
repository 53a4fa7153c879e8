"""Compaction does not change what readers see, whatever is picked and in what order it ends."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from meles.engine.codec.columns import Columns
from meles.engine.codec.entry import META_DELETE, META_DISCARD_EARLIER
from meles.engine.compaction.picker import pick, pick_flatten, pick_level_zero
from meles.engine.compaction.plan import Plan

KEYS = [b"%s%03d" % (prefix, number) for prefix in (b"a", b"b", b"ba") for number in range(90)]
NOW_MS = 1_000_000
Entry = tuple[int, int, int, bytes]  # version, meta, expiry, value


@dataclass
class World:
    """The tree, what was written to it, and who reads it."""

    lsm: Any
    written: dict[bytes, list[Entry]] = field(default_factory=dict)
    ts: int = 0
    readers: list[int] = field(default_factory=list)
    running: list[tuple[Plan, list[Any]]] = field(default_factory=list)
    plans: int = 0

    def flush(self, seed: int) -> None:
        """A new L0 table, a few versions, half of the time of a narrow range of keys."""
        rng = random.Random(seed)
        lsm = self.lsm
        low = rng.randrange(len(KEYS))
        keys = KEYS[low : low + 12] if seed % 2 else KEYS
        fresh: dict[tuple[bytes, int], Entry] = {}
        for _ in range(rng.randrange(1, 25)):
            self.ts += rng.randrange(1, 3)
            for key in rng.sample(keys, min(len(keys), rng.randrange(1, 4))):
                kind = rng.randrange(10)
                entry = (self.ts, 0, 0, b"%d" % self.ts + bytes(rng.choice((0, 0, 6000))))
                if kind < 3 or seed % 5 == 0:
                    entry = (self.ts, META_DELETE, 0, b"")
                elif kind == 3:
                    entry = (self.ts, 0, NOW_MS + rng.choice((-1, 0, 1)), b"expires")
                elif kind == 4:
                    entry = (self.ts, META_DISCARD_EARLIER, 0, b"discards")
                fresh[key, self.ts] = entry
                self.written.setdefault(key, []).append(entry)
        columns = Columns()
        for key, version in sorted(fresh, key=lambda pair: (pair[0], -pair[1])):
            version, meta, expiry, value = fresh[key, version]
            columns.append(key, version, meta, expiry, value)
        lsm.add(0, columns)

    def drop(self, seed: int) -> None:
        self.ts += 1
        self.lsm.drop(
            ((b"ba", b"a01", b"b01", b"b", b"")[min(seed % 15, 4) if seed % 3 else 0],), self.ts
        )

    def discard_ts(self) -> int:
        return min([*self.readers, self.ts])

    def visible(self, key: bytes, entry: Entry | None, ts: int) -> Entry | None:
        if entry is None or entry[1] & META_DELETE or 0 < entry[2] <= NOW_MS:
            return None
        for drop in self.lsm.version.drops:
            if entry[0] <= drop.ts <= ts and key.startswith(drop.prefixes):
                return None
        return entry

    def check(self) -> None:
        """Every reader at or after the discard timestamp sees what was written."""
        sources = []
        for columns in self.lsm.sources():
            by_key: dict[bytes, list[Entry]] = {}
            for key, *entry in zip(
                columns.keys, columns.versions, columns.metas, columns.expiries, columns.values,
                strict=True,
            ):  # fmt: skip
                by_key.setdefault(key, []).append(tuple(entry))
            sources.append(by_key)
        discard = self.discard_ts()
        asked = {discard, discard + 1, (discard + self.ts) // 2, self.ts, *self.readers}
        for key, entries in self.written.items():
            chain = [source[key] for source in sources if key in source]
            for ts in asked:
                expected = next((e for e in reversed(entries) if e[0] <= ts), None)
                # as a reader does: the first source with a version <= ts decides
                found = next((e for versions in chain for e in versions if e[0] <= ts), None)
                assert self.visible(key, found, ts) == self.visible(key, expected, ts), (key, ts)

    def pick(self, choice: int) -> Plan | None:
        lsm = self.lsm
        if choice % 7 == 0:
            return pick_level_zero(lsm.version, lsm.options, lsm.in_flight)
        if choice % 7 == 1:
            return pick_flatten(lsm.version, lsm.options, lsm.in_flight)
        return pick(
            lsm.version, lsm.options, lsm.in_flight, l0_only=choice % 7 == 2, now=NOW_MS / 1000,
            discard_ts=self.discard_ts(),
        )  # fmt: skip

    def start(self, choice: int) -> None:
        plan = self.pick(choice)
        if plan is None:
            return
        self.plans += 1
        lsm = self.lsm
        lsm.discard_ts, lsm.parallel = self.discard_ts(), 1 + choice % 3
        jobs = lsm.start(plan)
        if plan.kind == "move":
            lsm.finish(plan, jobs)
        else:
            self.running.append((plan, jobs))

    def finish(self, choice: int) -> None:
        if self.running:
            self.lsm.finish(*self.running.pop(choice % len(self.running)))
            self.check()


STEPS = st.lists(
    st.tuples(
        st.sampled_from("ffffffffssssssseeeerrd"),  # flush, start, end, reader comes or goes, drop
        st.integers(0, 10_000),
    ),
    max_size=60,
)


def play(world: World, steps: list[tuple[str, int]]) -> None:
    for what, choice in steps:
        if what == "f":
            world.flush(choice)
        elif what == "s":
            world.start(choice)
        elif what == "e":
            world.finish(choice)
        elif what == "d":
            world.drop(choice)
        elif world.readers and choice % 2:
            world.readers.pop(choice % len(world.readers))
        else:
            world.readers.append(world.ts)
    while world.running:
        world.finish(0)
    world.check()


def settle(world: World) -> None:
    """Pick until nothing is due; it ends."""
    for _ in range(500):
        world.start(3)
        if not world.running:
            plan = world.pick(3)
            if plan is None:
                return
        world.finish(0)
    raise AssertionError("compaction does not come to an end")


@given(steps=STEPS, keep=st.sampled_from([1, 1, 2, 100]))
def test_readers_see_what_was_written(tools: Any, steps: list[tuple[str, int]], keep: int) -> None:
    with (
        tempfile.TemporaryDirectory() as path,
        tools.lsm(path, num_versions_to_keep=keep) as lsm,
    ):
        world = World(lsm)
        play(world, steps)
        settle(world)
        world.check()


@given(steps=STEPS)
def test_without_readers_nothing_deleted_or_dropped_stays(
    tools: Any, steps: list[tuple[str, int]]
) -> None:
    """Flattened and settled, the tree holds one version of each key, and no drop is left to do."""
    with tempfile.TemporaryDirectory() as path, tools.lsm(path) as lsm:
        world = World(lsm)
        play(world, steps)
        world.readers.clear()
        settle(world)
        while world.pick(1) is not None:
            world.start(1)
            world.finish(0)
        settle(world)
        levels = [level for level in lsm.version.levels if level]
        assert len(levels) <= 1
        for level in levels:
            for table in level:
                assert not table.stale_bytes > 0.2 * (table.raw_bytes + 16 * table.count)
        live = {
            key
            for key, entries in world.written.items()
            if world.visible(key, entries[-1], world.ts) is not None
        }
        kept = {key for columns in lsm.sources() for key in columns.keys}
        assert live <= kept
        for columns in lsm.sources():
            for key, version in zip(columns.keys, columns.versions, strict=True):
                for drop in lsm.version.drops:
                    assert version > drop.ts or not key.startswith(drop.prefixes)


def test_the_programs_do_reach_every_kind_of_plan(tools: Any, tmp_path: Any) -> None:
    """Guards the two tests above against passing because nothing happens."""
    kinds: dict[str, int] = {}
    rng = random.Random(4)
    spread: Callable[[], str] = lambda: rng.choice("ffffffffssssssseeeerrd")  # noqa: E731
    for number in range(30):
        path = tmp_path / str(number)
        path.mkdir()
        with tools.lsm(str(path)) as lsm:
            world = World(lsm)
            original = lsm.start

            def counted(plan: Plan, original: Any = original) -> Any:
                kinds[plan.kind] = kinds.get(plan.kind, 0) + 1
                return original(plan)

            lsm.start = counted
            play(world, [(spread(), rng.randrange(10_000)) for _ in range(60)])
    assert set(kinds) == {"l0_to_base", "l0_to_l0", "level", "last_level", "rewrite", "move"}
