"""Plays weeks of ingest against the real picker in seconds: tables are metadata only.

    python benchmarks/simulate_compaction.py --workload random --days 60 --rate 0.05

Prints the shape of the levels over time, write amplification, the worst L0 depth, the time writers
stalled and the worst stall. Nothing is written to disk. What a merge leaves is computed: keys are
spread evenly within a table, so the chance that two tables share a key follows from their
densities.
"""

from __future__ import annotations

import argparse
import heapq
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

from meles.engine.compaction.in_flight import InFlight
from meles.engine.compaction.picker import keeps_for_level_zero, most_jobs, pick
from meles.engine.compaction.plan import Plan, subranges
from meles.engine.compaction.targets import level_targets
from meles.engine.manifest.version import TableMeta, Version
from meles.engine.options import Options

MIB = 1 << 20
GIB = 1 << 30
DAY = 86_400.0


def key(number: int) -> bytes:
    return b"%016d" % number


@dataclass
class Load:
    """What is written: `spread` distinct keys, entries of `entry` bytes."""

    kind: str
    spread: int
    entry: int
    rng: random.Random
    next_key: int = 0

    def flush(self, count: int) -> tuple[int, int, int]:
        """First key, last key and distinct keys of a memtable of `count` writes."""
        if self.kind == "sequential":
            low, self.next_key = self.next_key, self.next_key + count
            return low, self.next_key - 1, count
        low, width = 0, self.spread
        if self.kind == "hot" and self.rng.random() < 0.8:
            width = self.spread // 10
            low = self.rng.randrange(9) * width
        distinct = int(width * (1 - (1 - 1 / width) ** count))
        return low, low + width - 1, max(1, distinct)


@dataclass
class Simulation:
    """The levels, the compactors and the clock; seconds and bytes."""

    options: Options
    load: Load
    rate: float
    speed: float
    version: Version = field(init=False)
    in_flight: InFlight = field(default_factory=InFlight)
    now: float = 1e9
    ts: int = 0
    next_id: int = 1
    free: int = 0
    ingested: int = 0
    flushed: int = 0
    compacted: int = 0
    stalled: float = 0.0
    longest_stall: float = 0.0
    stalled_since: float | None = None
    worst_l0: int = 0
    plans: Counter[str] = field(default_factory=Counter)
    picks: int = 0
    pick_seconds: float = 0.0
    slowest_pick: float = 0.0
    running: list[tuple[float, int, int, Plan]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.version = Version.empty(self.options.max_levels)
        self.free = self.options.num_compactors

    def table(self, low: int, high: int, count: int, versions: tuple[int, int]) -> TableMeta:
        self.next_id += 1
        size = count * self.load.entry
        return TableMeta(
            self.next_id, size, 0, count, key(low), key(high), *versions, raw_bytes=size,
            created=self.now,
        )  # fmt: skip

    def play(self, seconds: float, reports: int) -> None:
        """Flush and compact for so long, with a line of output now and then."""
        count = self.options.memtable_size // self.load.entry
        every = self.options.memtable_size / self.rate
        begin, next_report = self.now, self.now
        next_flush = self.now + every
        while self.now < begin + seconds:
            full = len(self.version.levels[0]) >= self.options.num_level_zero_tables_stall
            done = self.running[0][0] if self.running else float("inf")
            if full and done == float("inf"):
                raise SystemExit("writers stall for ever: no compaction is picked")
            if done <= next_flush or full:
                if full and done > next_flush:
                    self.stalled += done - next_flush
                    if self.stalled_since is None:
                        self.stalled_since = next_flush
                    self.longest_stall = max(self.longest_stall, done - self.stalled_since)
                    next_flush = done
                self.now = max(self.now, done)
                self.finish()
            else:
                self.stalled_since = None
                self.now, next_flush = next_flush, next_flush + every
                self.flush(count)
            self.start()
            if self.now >= next_report:
                self.report(begin)
                next_report += seconds / reports
        self.report(begin)

    def flush(self, count: int) -> None:
        low, high, distinct = self.load.flush(count)
        table = self.table(low, high, distinct, (self.ts + 1, self.ts + count))
        self.ts += count
        self.version = self.version.with_tables(0, [table], [])
        self.ingested += count * self.load.entry
        self.flushed += table.size
        self.worst_l0 = max(self.worst_l0, len(self.version.levels[0]))

    def start(self) -> None:
        while self.free:
            begin = time.perf_counter()
            plan = pick(
                self.version, self.options, self.in_flight, now=self.now, discard_ts=self.ts,
                l0_only=keeps_for_level_zero(self.free, self.options, self.in_flight),
            )  # fmt: skip
            took = time.perf_counter() - begin
            self.picks += 1
            self.pick_seconds += took
            self.slowest_pick = max(self.slowest_pick, took)
            if plan is None:
                return
            self.plans[plan.kind] += 1
            self.in_flight.claim(plan)
            if plan.kind == "move":
                self.install(plan, list(plan.top))
                continue
            parallel = most_jobs(plan, self.free, self.options, self.in_flight)
            parts = len(subranges(plan, self.version, parallel))
            self.free -= parts
            seconds = sum(table.size for table in plan.inputs) / (self.speed * parts)
            heapq.heappush(self.running, (self.now + seconds, self.next_id, parts, plan))
            self.next_id += 1

    def finish(self) -> None:
        _, _, parts, plan = heapq.heappop(self.running)
        self.free += parts
        made = self.merged(plan)
        self.compacted += sum(table.size for table in made)
        self.install(plan, made)

    def install(self, plan: Plan, made: list[TableMeta]) -> None:
        version = self.version
        if plan.from_level == plan.to_level:
            ids = [table.id for table in plan.inputs]
            self.version = version.with_tables(plan.to_level, made, ids)
        else:
            version = version.with_tables(plan.from_level, [], [t.id for t in plan.top])
            self.version = version.with_tables(plan.to_level, made, [t.id for t in plan.bottom])
        self.in_flight.release(plan)

    def merged(self, plan: Plan) -> list[TableMeta]:
        """The tables a merge leaves: per stretch between table ends, the union of densities."""
        spans = [(int(t.min_key), int(t.max_key) + 1, t.count) for t in plan.inputs]
        edges = sorted({edge for low, high, _ in spans for edge in (low, high)})
        oldest = min(t.min_version for t in plan.inputs)
        newest = max(t.max_version for t in plan.inputs)
        # writes come in random order: the newest entry of each output is a little older or newer
        versions = (oldest, newest - self.load.rng.randrange(1 + (newest - oldest) // 100))
        most = max(1, int(0.95 * plan.target_size / self.load.entry))
        made: list[TableMeta] = []
        begin, held = edges[0], 0.0
        spans.sort()
        for low, high in pairwise(edges):
            absent = 1.0
            for first, after, count in spans:
                if first >= high:
                    break
                if after > low:
                    absent *= 1 - min(1.0, count / (after - first))
            density = 1 - absent
            if not density:
                if held >= 1:
                    made.append(self.table(begin, low - 1, int(held), versions))
                begin, held = high, 0.0
                continue
            at = low
            while held + density * (high - at) >= most:
                cut = min(high, at + max(1, int((most - held) / density)))
                made.append(self.table(begin, cut - 1, most, versions))
                begin, held, at = cut, 0.0, cut
            held += density * (high - at)
        if held >= 1:
            made.append(self.table(begin, edges[-1] - 1, int(held), versions))
        return made

    def amplification(self) -> float:
        return (self.flushed + self.compacted) / max(1, self.ingested)

    def report(self, begin: float) -> None:
        base = level_targets(self.version, self.options).base_level
        shape = "  ".join(
            f"L{number}{'*' if number == base else ''} {len(level)}/{level.size / MIB:,.0f}M"
            for number, level in enumerate(self.version.levels)
            if level or number == base
        )
        print(
            f"day {(self.now - begin) / DAY:6.1f}  in {self.ingested / GIB:7.1f}G"
            f"  wa {self.amplification():5.2f}  {shape}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", choices=("random", "sequential", "hot"), default="random")
    parser.add_argument("--days", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=0.05, help="MB/s written")
    parser.add_argument("--data", type=float, default=20.0, help="GiB of distinct entries")
    parser.add_argument("--entry", type=int, default=132, help="bytes of an entry in a table")
    parser.add_argument("--speed", type=float, default=80.0, help="MB/s of input per compactor")
    parser.add_argument("--compactors", type=int, default=2)
    parser.add_argument("--reports", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    load = Load(args.workload, int(args.data * GIB / args.entry), args.entry, rng)
    options = Options(num_compactors=args.compactors)
    simulation = Simulation(options, load, args.rate * 1e6, args.speed * 1e6)
    begin = time.perf_counter()
    simulation.play(args.days * DAY, args.reports)
    simulation.version.check()
    seconds = simulation.now - 1e9
    print(
        f"write amplification {simulation.amplification():.2f}"
        f", worst L0 {simulation.worst_l0} tables"
        f", stalled {simulation.stalled:.0f} s ({100 * simulation.stalled / seconds:.2f} %)"
        f", worst stall {simulation.longest_stall:.1f} s\n"
        f"plans {dict(simulation.plans)}\n"
        f"{simulation.picks} picks, {1e6 * simulation.pick_seconds / simulation.picks:.0f} us each"
        f", slowest {1e3 * simulation.slowest_pick:.1f} ms"
        f"; simulated in {time.perf_counter() - begin:.1f} s"
    )


if __name__ == "__main__":
    main()
