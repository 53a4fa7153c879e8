"""The campaign: every fault at its full count, in parts that end within half an hour each.

    python tests/campaign.py              all parts that are not done yet, then the table
    python tests/campaign.py kills flips  those groups only; `make campaign-kills` is this
    python tests/campaign.py --table      only the table of what is done
    python tests/campaign.py --fresh ...  forget what these groups have done, and begin anew
    python tests/campaign.py --record     write what is done to tests/campaign.json

What a part did stands in `.campaign/PART.json`, so an interrupted campaign goes on where it was. A
part that failed is run again. The record is for other machines, where `.campaign` is not: its parts
are done as well, for as long as what they tested is what is there. Exit code 1 if anything failed
or was not reached. JOBS in the environment, default 2, is how many parts run at a time: two keep
two cores busy, and with four each takes twice as long.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from tally import Row, table  # noqa: E402 - from the folder named above

DONE = Path(os.environ.get("MELES_CAMPAIGN", ROOT / ".campaign"))
RECORD = ROOT / "tests" / "campaign.json"
JOBS = int(os.environ.get("JOBS", "2"))
PROCESS, FAULTS = "tests/process", "tests/faults"


class Part(NamedTuple):
    """One run of pytest, and what is set in its environment."""

    args: tuple[str, ...]
    environ: dict[str, str]


def parts(count: int, *args: str, **environ: object) -> list[Part]:
    """The same `count` times over; each is told which it is."""
    common = {name: str(value) for name, value in environ.items()}
    return [
        Part(args, {**common, "MELES_PART": str(n), "MELES_PARTS": str(count)})
        for n in range(count)
    ]


LONG = ("-m", "long")
GROUPS: dict[str, list[Part]] = {
    # F1, F26: 70 directories, each with fifty kills and those in opening; over 3,000 that count
    "kills": parts(
        70, f"{PROCESS}/test_kill.py::test_everything_acknowledged_survives_kills", MELES_KILLS=50
    ),
    # F3: 500 of each kind of worker
    "workers": parts(
        10, f"{PROCESS}/test_worker_kill.py::test_the_deaths_of_many_workers_cost_nothing",
        MELES_KILLS=50,
    ),
    # F5: 100 of each kind
    "hangs": parts(
        5, f"{PROCESS}/test_worker_kill.py::test_many_workers_that_hang_cost_nothing",
        f"{PROCESS}/test_hung_worker.py", MELES_KILLS=40,
    ),
    # F2: every call that changes files, before it and after a third of a write
    "syscalls": [
        *parts(4, *LONG, f"{PROCESS}/test_killed_at_each_call.py"),
        *parts(1, *LONG, f"{PROCESS}/test_restore_killed.py"),
    ],
    # F9, F10
    "calls": parts(1, *LONG, f"{FAULTS}/test_every_call.py"),
    # F8c: 10,000 images of the load, and as many of recovery
    "images": parts(1, *LONG, f"{FAULTS}/test_crash_images.py", MELES_IMAGES=13000),
    # F7, F13, F14: over 65,536 flips
    "flips": parts(1, f"{FAULTS}/test_damage.py"),
    # F8a: ext4 shut down under load
    "cuts": parts(10, *LONG, f"{PROCESS}/test_power_cut.py", MELES_CUTS=100),
    # F11
    "full": parts(2, *LONG, f"{PROCESS}/test_full_disk.py", MELES_FULL=25),
    # F23: each signal, target, kind of host and moment, by stage
    "signals": [
        Part((*LONG, f"{PROCESS}/test_closing_signals.py", "-k", stage), {})
        for stage in (
            "refuse_writes", "stop_value_gc", "drain_writer", "flush_memtables", "stop_flusher",
            "compact_level_zero", "stop_compactors", "seal_value_log", "close_logs", "stop_pool",
            "close_tables", "stop_oracle", "close_manifest", "sync_directories", "release_locks",
        )
    ],
    # C1 - C9: a million transactions under thirteen option sets
    "isolation": [
        *parts(4, *LONG, "tests/isolation/test_option_sets.py", MELES_TRANSACTIONS=250_000),
        Part((*LONG, "tests/isolation", "--deselect", "tests/isolation/test_option_sets.py"), {}),
    ],
    # C8
    "model": parts(2, *LONG, "tests/model"),
    # S1 - S16, and F6 and F13 by fuzzing
    "security": parts(1, "tests/security", "tests/workers/wire", MELES_TEST_PROFILE="long"),
    # random options and faults over one directory
    "stress": parts(3, *LONG, f"{PROCESS}/test_stress.py", MELES_STRESS_MINUTES=20),
    # F12, F20, F22, F27
    "hardship": parts(
        1, *LONG, f"{PROCESS}/test_bad_disk.py", f"{PROCESS}/test_clock.py",
        f"{PROCESS}/test_worker_memory.py", f"{PROCESS}/test_descriptors.py",
    ),
    # figures: opening after a kill, replacing who hangs, nothing that grows
    "limits": parts(1, *LONG, f"{PROCESS}/test_limits.py"),
    # F33: two hours
    "soak": parts(5, *LONG, f"{PROCESS}/test_soak.py", MELES_SOAK_MINUTES=25),
    # everything else there is of these folders
    "rest": parts(1, "-m", "not long", FAULTS, PROCESS),
}  # fmt: skip


TESTED = ("__init__.py", "configs", "engine", "workers", "supervisor.py")


def commit() -> str:
    """Of what is tested: the last that changed it."""
    found = subprocess.run(
        ["git", "log", "-1", "--abbrev=7", "--format=%h", "--", *TESTED], cwd=ROOT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return found.stdout.strip() or "unknown"


def done_parts() -> dict[str, Any]:
    """By name: those of the record that still hold, and over them those of this machine."""
    done = {}
    if RECORD.exists():
        now = commit()
        recorded = json.loads(RECORD.read_text())
        done = {name: found for name, found in recorded.items() if found["commit"] == now}
    done.update((path.stem, json.loads(path.read_text())) for path in DONE.glob("*.json"))
    return dict(sorted(done.items()))


def write_record(done: dict[str, Any]) -> None:
    """One line a part, so that a later campaign shows what it changed."""
    lines = [f"{json.dumps(name)}: {json.dumps(found)}" for name, found in done.items()]
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def run(name: str, part: Part) -> bool:
    """Run a part; True when it is done."""
    path = DONE / f"{name}.json"
    print(f"{time.strftime('%H:%M:%S')} {name}: {' '.join(part.args)}", flush=True)
    home = tempfile.mkdtemp(prefix=f"meles-{name}-")  # its own, and kept when it failed
    log, note, began = DONE / f"{name}.log", DONE / f"{name}.rows", time.monotonic()
    environ = {**os.environ, **part.environ, "MELES_TALLY": str(note)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "1"]
    command += ["--timeout", "3000", "--basetemp", f"{home}/tests", *part.args]
    with log.open("wb") as out:
        code = subprocess.run(
            command, cwd=ROOT, env=environ, stdout=out, stderr=subprocess.STDOUT, check=False,
        ).returncode  # fmt: skip
    rows = json.loads(note.read_text()) if note.exists() else {"rows": {}, "skipped": []}
    note.unlink(missing_ok=True)
    done = {"commit": commit(), "seconds": round(time.monotonic() - began), "failed": code, **rows}
    path.write_text(json.dumps(done, indent=1))
    if code:
        print(f"{name} FAILED, see {log} and {home}", flush=True)
    else:
        shutil.rmtree(home, ignore_errors=True)
    return code == 0


def print_table(done: dict[str, Any]) -> bool:
    """What is done, added up; False if something failed."""
    sums: dict[str, Row] = {}
    skipped: list[str] = []
    failed, commits = 0, set()
    for found in done.values():
        commits.add(found["commit"])
        failed += bool(found["failed"])
        skipped += found["skipped"]
        for fault, (injected, reached, violations) in found["rows"].items():
            row = sums.setdefault(fault, Row())
            row.injected += injected
            row.reached += reached
            row.violations += violations
    for line in table(sums, skipped, failed):
        print(line)
    total = sum(map(len, GROUPS.values()))
    print(f"{len(done)} of {total} parts done, at {', '.join(sorted(commits)) or 'none'}")
    return not failed and not any(row.violations for row in sums.values())


def main(words: list[str]) -> int:
    DONE.mkdir(exist_ok=True)
    chosen = [word for word in words if not word.startswith("-")] or list(GROUPS)
    unknown = set(chosen) - GROUPS.keys()
    if unknown:
        print(f"no group {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
        return 2
    named = [(f"{group}-{n:02d}", part) for group in chosen for n, part in enumerate(GROUPS[group])]
    if "--fresh" in words:
        for name, _ in named:
            (DONE / f"{name}.json").unlink(missing_ok=True)
    done = done_parts()
    if "--record" in words:
        write_record(done)
    if {"--table", "--record"} & set(words):
        return 0 if print_table(done) else 1
    if "--fresh" not in words:
        named = [each for each in named if each[0] not in done or done[each[0]]["failed"]]
    with ThreadPoolExecutor(JOBS) as pool:
        well = all(list(pool.map(lambda each: run(*each), named)))
    return 0 if print_table(done_parts()) and well else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
