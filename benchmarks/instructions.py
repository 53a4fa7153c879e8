"""Instructions that a call takes, counted by callgrind: the same figure on a busy machine.

    python benchmarks/instructions.py [set] [write_batch] [get] [items] [transaction]
    python benchmarks/instructions.py growth        # of a get, from 10 k to 1 M entries

Each runs once with few calls and once with many, in processes of their own; the difference, over
that of the calls, is what one costs: with the loop around it and what closing does with it (ours
flushes), without the interpreter's start. Ours is `workers="inline"`. Waiting for memory, the
larger part of a point read of much data, counts nothing here. Needs valgrind, in which the map of
64 GiB that LMDB is given has no room.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engines import ENGINES, installed, make_values
from points import random_keys, sample_of, size_name

COUNTED = ("meles", "plyvel", "rocksdict")
FEW, MANY = 2_000, 12_000
GROWTH = (10_000, 100_000, 1_000_000)
VALUE_BYTES = 100


def _on_keys(name: str) -> Callable[[Any, list[bytes], int], None]:
    def call(engine: Any, keys: list[bytes], times: int) -> None:
        getattr(engine, name)(keys[:times], make_values(VALUE_BYTES))

    return call


def _get(engine: Any, keys: list[bytes], times: int) -> None:
    _stored(engine, keys)
    engine.get_all(keys[:times])


def _items(engine: Any, keys: list[bytes], times: int) -> None:
    _stored(engine, keys[:FEW])
    for _ in range(times // FEW):
        engine.scan()


def _stored(engine: Any, keys: list[bytes]) -> None:
    engine.batch_all(keys, make_values(VALUE_BYTES))
    engine.settle()


CALLS = {
    "set": _on_keys("set_all"),
    "write_batch": _on_keys("batch_all"),
    "get": _get,
    "items": _items,
    "transaction": _on_keys("txn_all"),
}


def _open(engine: str, home: str) -> Any:
    options = {"workers": "inline"} if engine == "meles" else {}
    return ENGINES[engine](Path(home) / "db", **options)


def run(engine: str, call: str, times: int, home: str) -> None:
    """What callgrind counts."""
    keys = random_keys(MANY, 7)
    store = _open(engine, home)
    CALLS[call](store, keys, times)
    store.close()


def look_up(engine: str, entries: int, times: int, home: str) -> None:
    """What callgrind counts of a store that is filled already."""
    lookups = sample_of(random_keys(entries, 7), MANY - FEW)
    store = _open(engine, home)
    for _ in range(times):
        store.get_all(lookups)
    store.close()


def _counted(*what: object) -> int:
    with tempfile.TemporaryDirectory(prefix="meles-bench-") as home:
        return _counted_in(home, "run", *what)


def _counted_in(home: str, function: str, *what: object) -> int:
    script = f"import instructions; instructions.{function}(*{(*what, home)!r})"
    done = subprocess.run(
        ["valgrind", "--tool=callgrind", f"--callgrind-out-file={home}/calls",
         sys.executable, "-c", script],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent,
    )  # fmt: skip
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or found is None:
        raise RuntimeError(f"{what}: {done.stderr[-2000:]}")
    return int(found[1])


def _per_call(engine: str, call: str) -> str:
    if call == "transaction" and not hasattr(ENGINES[engine], "txn_all"):
        return "-"
    more = _counted(engine, call, MANY) - _counted(engine, call, FEW)
    return f"{more / (MANY - FEW):,.0f}"


def _growth(engine: str, entries: int) -> str:
    with tempfile.TemporaryDirectory(prefix="meles-bench-") as home:
        store = ENGINES[engine](Path(home) / "db")
        _stored(store, random_keys(entries, 7))
        store.close()
        once, thrice = (_counted_in(home, "look_up", engine, entries, n) for n in (1, 3))
    return f"{(thrice - once) / 2 / (MANY - FEW):,.0f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("calls", nargs="*", choices=[[], *CALLS, "growth"], default=[])
    calls = parser.parse_args().calls or CALLS
    if shutil.which("valgrind") is None:
        print("valgrind is not there: nothing counted", file=sys.stderr)
        return 1
    engines = [name for name in installed() if name in COUNTED]
    print(f"instructions per call, values of {VALUE_BYTES} B")
    print(f"{'':<12}" + "".join(f"{engine:>12}" for engine in engines))
    for call in calls:
        if call == "growth":
            for entries in GROWTH:
                cells = "".join(f"{_growth(e, entries):>12}" for e in engines)
                print(f"get, {size_name(entries):<7}{cells}", flush=True)
            continue
        print(f"{call:<12}" + "".join(f"{_per_call(e, call):>12}" for e in engines), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
