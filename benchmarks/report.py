"""What a benchmark says in the end: targets with their ratio, and figures beside their conditions.

Runs in: the process that measures.
Owns: benchmarks/results/, which git ignores.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from engines import versions

RESULTS = Path(__file__).parent / "results"
MIB = 1 << 20


@dataclass(frozen=True)
class Target:
    """A figure and what is wanted of it. `found` and the bounds have one unit; `aim` may be None.

    `upwards`: more is better.
    """

    name: str
    found: float
    least: float
    aim: float | None
    unit: str
    upwards: bool = True

    def reaches(self, bound: float) -> bool:
        return self.found >= bound if self.upwards else self.found <= bound

    @property
    def met(self) -> bool:
        return self.reaches(self.least)

    def line(self) -> str:
        verdict = "met" if self.met else "NOT MET"
        if self.met and self.aim is not None and self.reaches(self.aim):
            verdict = "met, and the aim"
        word = "at least" if self.upwards else "at most"
        aim = "" if self.aim is None else f", aim {self.aim:g}"
        return (
            f"{self.name:<58}{self.found:>9.2f} {self.unit:<12}"
            f"{f'{word} {self.least:g}{aim}':<26}{verdict}"
        )


class Report:
    """Collects targets and figures while the parts run, and prints each as it comes."""

    def __init__(self) -> None:
        self.targets: list[Target] = []
        self.figures: dict[str, Any] = {}

    def say(self, text: str) -> None:
        print(text, flush=True)

    def want(
        self,
        name: str,
        found: float,
        least: float,
        aim: float | None = None,
        *,
        unit: str = "x",
        upwards: bool = True,
    ) -> None:
        target = Target(name, found, least, aim, unit, upwards)
        self.targets.append(target)
        self.say(f"  target {target.line()}")

    def aim(self, what: str, reached: bool) -> None:
        """A figure that is hoped for, and no target."""
        self.say(f"  aim {what}, {'reached' if reached else 'not reached'}")

    def keep(self, name: str, data: Any) -> Path:
        """Write figures as JSON; the path without a suffix, for a plot beside it.

        What stands before a colon in `name` says how it is drawn.
        """
        self.figures[name] = data
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / name.replace(":", "-")
        path.with_suffix(".json").write_text(
            json.dumps({"conditions": conditions(), "figures": data}, indent=1) + "\n"
        )
        return path

    def finish(self) -> int:
        """Print every target; the exit code."""
        self.say("-- targets")
        for target in self.targets:
            self.say(target.line())
        missed = sum(not target.met for target in self.targets)
        self.say(f"{len(self.targets) - missed} of {len(self.targets)} targets met")
        self.keep("targets", [asdict(target) | {"met": target.met} for target in self.targets])
        return 1 if missed else 0


def conditions() -> dict[str, Any]:
    """Machine, versions and command: a figure without them says nothing."""
    from meles.engine.kernel import KIND

    return {
        "machine": f"{_processor()}, {os.cpu_count()} processors",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "kernel": KIND,
        "versions": versions(),
        "command": " ".join(["python", "benchmarks/" + Path(sys.argv[0]).name, *sys.argv[1:]]),
        "load": round(os.getloadavg()[0], 1),
        "when": time.strftime("%Y-%m-%d %H:%M"),
    }


def caption() -> str:
    found = conditions()
    names = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return (
        f"{found['machine']}, {found['system']}, Python {found['python']}, {found['kernel']} "
        f"kernel, load {found['load']}, {found['when']}\n{names}\n{found['command']}"
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def ratio(rates: dict[str, list[float]], ours: str, peer: str) -> float:
    """Median over rounds of our rate to the peer's in the same round."""
    return median(a / b for a, b in zip(rates[ours], rates[peer], strict=True))


@contextmanager
def home() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="meles-bench-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def bytes_in(directory: Path) -> int:
    """File sizes below a directory; files may come and go meanwhile."""
    total = 0
    for entry in os.scandir(directory):
        try:
            total += entry.stat().st_size
        except FileNotFoundError:
            continue
    return total


def wait_for(reached: Callable[[], bool], seconds: float) -> float | None:
    """Seconds until `reached()`, None when it never was."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if reached():
            return time.monotonic() - began
        time.sleep(0.05)
    return None


def percentiles(latencies: list[float]) -> dict[str, float]:
    """In microseconds."""
    ordered = sorted(latencies)
    points = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
    return {name: ordered[int(len(ordered) * p)] * 1e6 for name, p in points.items()}
