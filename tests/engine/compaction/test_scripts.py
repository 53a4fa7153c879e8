"""The text scripts of tests/data/compaction: levels are built, compactions run, levels printed.

`MELES_REWRITE=1 pytest tests/engine/compaction/test_scripts.py` writes the outputs anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from meles.engine.compaction.drops import spent_drops
from meles.engine.compaction.in_flight import InFlight
from meles.engine.compaction.picker import (
    pick,
    pick_again_at,
    pick_flatten,
    pick_level_zero,
    pick_settling,
)
from meles.engine.compaction.plan import Plan, subranges
from meles.engine.compaction.targets import level_targets, scores
from meles.engine.manifest.version import Version

DATA = Path(__file__).parents[2] / "data" / "compaction"
KIB = 1 << 10


def number(text: str) -> int:
    """`64K`, `10M`, `3G` or plain."""
    units = {"K": KIB, "M": KIB**2, "G": KIB**3, "T": KIB**4}
    return int(float(text[:-1]) * units[text[-1]]) if text[-1] in units else int(text)


class Session:
    """What a script's commands work on."""

    def __init__(self, tools: Any, lsm: Any) -> None:
        self.tools = tools
        self.lsm = lsm
        self.running: dict[str, tuple[Plan, list[Any]]] = {}
        self.real = True

    def execute(self, command: str, lines: list[str]) -> str:
        name, *words = command.split()
        args = {}
        for word in words:
            key, _, value = word.partition("=")
            args[key] = value
        return getattr(self, f"do_{name}")(args, lines)

    # -- building --------------------------------------------------------------------------------

    def _options(self, args: dict[str, str]) -> None:
        special = {"discard": "discard_ts", "now": "now_ms"}
        for key in set(args) & set(special):
            setattr(self.lsm, special[key], int(args.pop(key)))
        if "parallel" in args:
            self.lsm.parallel = int(args.pop("parallel"))
        chosen: dict[str, Any] = {key: number(value) for key, value in args.items()}
        for flag in {"lmax_compaction", "managed"} & set(chosen):
            chosen[flag] = bool(chosen[flag])
        if chosen:
            self.lsm.options = dataclasses.replace(self.lsm.options, **chosen)

    def _fresh(self, args: dict[str, str], *, real: bool) -> None:
        self._options(args)
        self.real = real
        lsm = self.lsm
        for name in lsm.directory.names():
            lsm.directory.unlink(name)
        lsm.version = Version.empty(lsm.options.max_levels)
        lsm.version = dataclasses.replace(lsm.version, drops=())
        lsm.in_flight = InFlight()
        lsm.next_id = 1

    def do_define(self, args: dict[str, str], lines: list[str]) -> str:
        """Real tables, one per line: `L1: a@5=x b@4:del`. L0 tables from old to new."""
        self._fresh(args, real=True)
        for line in lines:
            level, _, entries = line.partition(":")
            self.lsm.add(int(level[1:]), self.tools.parse(entries))
        return self.do_levels({}, [])

    def do_add(self, args: dict[str, str], lines: list[str]) -> str:
        """More tables, as in `define`."""
        for line in lines:
            level, _, entries = line.partition(":")
            self.lsm.add(int(level[1:]), self.tools.parse(entries))
        return self.do_levels({}, [])

    def do_shape(self, args: dict[str, str], lines: list[str]) -> str:
        """Metadata only: `L5: 7 a-c 10M v=1-9 tombstones=3 count=9` (id, keys, size)."""
        self._fresh(args, real=False)
        return self.do_shape_more(args, lines)

    def do_shape_more(self, args: dict[str, str], lines: list[str]) -> str:
        """More tables, as in `shape`."""
        for line in lines:
            level, table_id, keys, size, *more = line.replace(":", "").split()
            low, _, high = keys.partition("-")
            named = dict(word.split("=") for word in more)
            first, _, last = named.pop("v", "1-1").partition("-")
            expiries = tuple(map(int, filter(None, named.pop("expiries", "").split(","))))
            meta = self.tools.meta(
                int(table_id), low.encode(), high.encode(), size=number(size),
                versions=(int(first), int(last)), expiries=expiries,
                **{key: number(value) for key, value in named.items()},
            )  # fmt: skip
            self.lsm.version = self.lsm.version.with_tables(int(level[1:]), [meta], [])
        return ""

    def do_set(self, args: dict[str, str], lines: list[str]) -> str:
        self._options(args)
        return ""

    def do_drop(self, args: dict[str, str], lines: list[str]) -> str:
        """`drop ts=5 prefix=ab`: hide versions <= ts of keys with the prefix."""
        self.lsm.drop((args["prefix"].encode(),), int(args["ts"]))
        return ""

    # -- deciding --------------------------------------------------------------------------------

    def _picked(self, args: dict[str, str]) -> Plan | None:
        lsm = self.lsm
        if "flatten" in args:
            return pick_flatten(lsm.version, lsm.options, lsm.in_flight)
        if "settling" in args:
            return pick_settling(lsm.version, lsm.options, lsm.in_flight)
        if "l0" in args:
            return pick_level_zero(lsm.version, lsm.options, lsm.in_flight)
        return pick(
            lsm.version, lsm.options, lsm.in_flight, l0_only="l0_only" in args,
            now=lsm.now_ms / 1000, discard_ts=lsm.discard_ts,
        )  # fmt: skip

    def _shown(self, plan: Plan | None) -> str:
        if plan is None:
            return "nothing"
        text = f"{plan.kind} L{plan.from_level}>L{plan.to_level}"
        text += " top=" + ",".join(str(table.id) for table in plan.top)
        if plan.bottom:
            text += " bottom=" + ",".join(str(table.id) for table in plan.bottom)
        return text

    def do_targets(self, args: dict[str, str], lines: list[str]) -> str:
        lsm = self.lsm
        targets = level_targets(lsm.version, lsm.options)
        shown = [f"base L{targets.base_level}"]
        for item in scores(lsm.version, targets, lsm.in_flight, lsm.options):
            shown.append(
                f"L{item.level} want={targets.level_sizes[item.level] // KIB}K"
                f" table={targets.table_sizes[item.level] // KIB}K"
                f" score={item.score:.2f} adjusted={item.adjusted:.2f}"
            )
        return "\n".join(shown)

    def do_base(self, args: dict[str, str], lines: list[str]) -> str:
        return f"L{level_targets(self.lsm.version, self.lsm.options).base_level}"

    def do_pick(self, args: dict[str, str], lines: list[str]) -> str:
        """Only decide."""
        return self._shown(self._picked(args))

    def do_again(self, args: dict[str, str], lines: list[str]) -> str:
        """When the time alone may make something due, in unix milliseconds."""
        lsm = self.lsm
        at = pick_again_at(
            lsm.version, lsm.options, lsm.in_flight, now=lsm.now_ms / 1000,
            discard_ts=lsm.discard_ts,
        )  # fmt: skip
        return "never" if at is None else str(round(at * 1000))

    def do_ranges(self, args: dict[str, str], lines: list[str]) -> str:
        """The sub-ranges of what would be picked."""
        plan = self._picked(args)
        assert plan is not None
        found = subranges(plan, self.lsm.version, self.lsm.parallel)
        return "\n".join(f"[{start!r}, {stop!r})" for start, stop in found)

    def do_start(self, args: dict[str, str], lines: list[str]) -> str:
        """Decide and claim under a name; `finish` runs it, `release` gives it up."""
        plan = self._picked(args)
        if plan is not None:
            self.running[args["as"]] = (plan, self.lsm.start(plan))
        return self._shown(plan)

    # -- doing -----------------------------------------------------------------------------------

    def do_release(self, args: dict[str, str], lines: list[str]) -> str:
        if args["as"] in self.running:
            self.lsm.in_flight.release(self.running.pop(args["as"])[0])
        return ""

    def do_finish(self, args: dict[str, str], lines: list[str]) -> str:
        self.lsm.finish(*self.running.pop(args["as"]))
        return self.do_levels({}, [])

    def do_run(self, args: dict[str, str], lines: list[str]) -> str:
        """Decide, do and install; `all` repeats until nothing is due."""
        shown = []
        while True:
            plan = self._picked(args)
            shown.append(self._shown(plan))
            if plan is None:
                break
            self.lsm.run(plan)
            if "all" not in args:
                break
        return "\n".join([*shown, self.do_levels({}, [])])

    def do_compact(self, args: dict[str, str], lines: list[str]) -> str:
        """Compact what is told: `compact from=1 to=2 tables=3,4 [target=100]`."""
        from_level, to_level = int(args.pop("from")), int(args.pop("to"))
        ids = [int(word) for word in args.pop("tables").split(",")]
        target = number(args.pop("target", "1M"))
        self._options(args)
        self.lsm.run(self.lsm.plan(from_level, to_level, ids, target))
        return self.do_levels({}, [])

    # -- looking ---------------------------------------------------------------------------------

    def do_levels(self, args: dict[str, str], lines: list[str]) -> str:
        shown = []
        for level, table in self.lsm.version.walk():
            if self.real:
                content = self.tools.show(self.lsm.columns(table))
            else:
                content = f"{table.min_key.decode()}-{table.max_key.decode()}"
            shown.append(f"L{level} {table.id}: {content}")
        return "\n".join(shown) or "empty"

    def do_counters(self, args: dict[str, str], lines: list[str]) -> str:
        """Of the last job."""
        found = self.lsm.results[-1].counters
        return "\n".join(f"{name}={found[name]}" for name in sorted(found) if "bytes" not in name)

    def do_job(self, args: dict[str, str], lines: list[str]) -> str:
        """Some fields of the last jobs."""
        jobs = self.lsm.jobs[-int(args.get("last", "1")) :]
        return "\n".join(
            f"{job.inputs} below={job.below} splits={job.splits} drops={job.drops}" for job in jobs
        )

    def do_spent(self, args: dict[str, str], lines: list[str]) -> str:
        """Drops no table needs any more."""
        return str(spent_drops(self.lsm.version, int(args.get("memory", "1000000"))))


@pytest.mark.parametrize("path", sorted(DATA.glob("*.txt")), ids=lambda path: path.stem)
def test_script(
    path: Path, tools: Any, lsm: Any, check_script: Callable[[Path, Any], None]
) -> None:
    check_script(path, Session(tools, lsm).execute)
