"""The load: opens a directory and writes and reads it from several threads until it is killed.

    python -m meles.engine.stress.load DIRECTORY LEDGER RUN SEED OPTIONS

A program of its own, so that a test can kill it and everything it started. OPTIONS is a JSON object
for `meles.open`; `"patient": true` among them makes writers try again after a `DiskFullError` or
`WriteStallError`, and wait to be killed after a `StoreFailedError`; `"pace"` is the seconds each
writer waits between two commits. What it does and what it is promised goes to the ledger (see
`ledger.py`). On its standard output it says `opening`, `open`, `closing` and `closed OUTCOME`, one
a line; on its input it takes

    stop        close with the writers at work, then leave
    kill KIND   kill a worker of this kind, busy if one is within a while; says `killed KIND PID
                STATE`, and `replaced KIND` once its successor has ended a job
    hang KIND   the same, but stop it (SIGSTOP)
    workers     says `workers JSON`

and leaves at once at the end of its input, so that it never outlives the test.

Four clients write: transactions over keys that all share, with reads (they may conflict); single
sets and deletes and write batches over keys of their own. Each transaction and batch sets the
client's marker too, so the newest one is always to be seen. A fifth of the writes are deletes.
Values are of 0 to 64 KiB, on both sides of the value threshold.

Runs in: a process of its own, the supervisor of the directory while it lives.
"""

from __future__ import annotations

import faulthandler
import json
import math
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import meles
from meles.engine.stress.ledger import (
    DELETE,
    SET,
    Ledger,
    digest,
    make_value,
    observe,
    txn_of,
    value_fault,
)

CLIENTS: Final = 4
SHARED: Final = [f"s/{n:03d}" for n in range(60)]
OWN: Final = [[f"o/{client}/{n:03d}" for n in range(250)] for client in range(CLIENTS)]
MARKERS: Final = [f"m/{client}" for client in range(CLIENTS)]
KEYS: Final = [*SHARED, *MARKERS, *(key for keys in OWN for key in keys)]
COUNTERS: Final = {"flusher": "flushes", "compactor": "compactions", "value_gc": "gc_runs"}
_AT_WORK: Final = ("idle", "busy")  # one that starts is given longer than a test waits
_BUSY_WAIT: Final = 2.0  # seconds to wait for a worker to be busy before an idle one will do
_OVERDUE: Final = 60.0  # seconds for which a successor may be waited for in silence
_MARKER_BYTES: Final = 40
_LONGEST_VALUE: Final = 64 << 10
_PATIENCE: Final = 0.02  # seconds between tries of a patient writer
_BATCH_VALUE: Final = 9000  # so that a batch never splits: each part would be a commit of its own


def value_length(rng: random.Random) -> int:
    """Mostly small, many around the threshold of 1 KiB, some large."""
    kind = rng.random()
    if kind < 0.05:
        return 0
    if kind < 0.6:
        return rng.randrange(1, 900)
    if kind < 0.8:
        return rng.randrange(1000, 1050)
    if kind < 0.98:
        return rng.randrange(1050, 9000)
    return rng.randrange(9000, _LONGEST_VALUE + 1)


class Load:
    """One run over one directory."""

    def __init__(
        self,
        directory: str,
        ledger: Ledger,
        run: int,
        seed: int,
        *,
        patient: bool = False,
        pace: float = 0.0,
    ) -> None:
        self.patient = patient
        self.pace = pace
        self.directory = directory
        self.ledger = ledger
        self.run = run
        self.rng = random.Random(seed)
        self.stopping = threading.Event()
        self.conflicts = 0
        self.refused = 0
        self.db: meles.DB

    def guarded(self, work: Callable[[], None]) -> threading.Thread:
        """A thread; what goes wrong in it ends the process and stands in the ledger."""

        def body() -> None:
            try:
                work()
            except meles.ClosedError:
                if not self.stopping.is_set():
                    self.give_up()
            except meles.CorruptionError as error:
                if self.patient and isinstance(error.__cause__, OSError):  # the disk is gone
                    self.stopping.wait()
                else:
                    self.give_up()
            except BaseException:  # noqa: BLE001 - whatever it is, the test must hear of it
                self.give_up()

        thread = threading.Thread(target=body, daemon=True)
        thread.start()
        return thread

    def give_up(self) -> None:
        self.ledger.note("X", traceback.format_exc())
        traceback.print_exc()
        os._exit(70)

    # -- clients ---------------------------------------------------------------------------------

    def client(self, number: int) -> Callable[[], None]:
        rng = random.Random(self.rng.random())

        def work() -> None:
            seq = 0
            while not self.stopping.is_set():
                seq += 1
                txn = (self.run * 10 + number) * 10_000_000 + seq
                self.step(rng, number, seq, txn)
                if self.pace:
                    self.stopping.wait(self.pace)

        return work

    def step(self, rng: random.Random, client: int, seq: int, txn: int) -> None:
        """One commit, with its lines in the ledger."""
        kind = rng.random()
        own = OWN[client]
        if kind < 0.55:
            keys = rng.sample(SHARED, rng.randint(1, 4)) + rng.sample(own, rng.randint(0, 2))
        elif kind < 0.7:
            keys = rng.sample(own, rng.randint(1, 6))
        else:
            keys = [rng.choice(own)]
        longest = _BATCH_VALUE if 0.55 <= kind < 0.7 else _LONGEST_VALUE
        lengths = {key: min(value_length(rng), longest) for key in keys if rng.random() >= 0.2}
        if kind < 0.7:
            keys.append(MARKERS[client])
            lengths[MARKERS[client]] = _MARKER_BYTES
        values = {
            key: make_value(txn, seq, client, index, lengths[key]) if key in lengths else None
            for index, key in enumerate(keys)
        }
        writes = [
            (key, DELETE, "") if value is None else (key, SET, digest(value))
            for key, value in values.items()
        ]
        commit = self.transaction if kind < 0.55 else self.batch if kind < 0.7 else self.single
        prepared = commit(rng, values)
        self.ledger.begin(txn, client, seq, writes)
        try:
            ts = prepared()
        except meles.ConflictError as error:
            self.ledger.refused(txn, error)
            self.conflicts += 1
        except (meles.WriteStallError, meles.DiskFullError) as error:
            self.ledger.refused(txn, error)
            if not self.patient:
                raise
            self.refused += 1
            self.stopping.wait(_PATIENCE)
        except meles.ClosedError as error:
            self.ledger.refused(txn, error)
            raise
        except meles.StoreFailedError:  # whether it happened, the next opening tells
            if not self.patient:
                raise
            self.stopping.wait()
        else:
            self.ledger.acked(txn, ts)

    def transaction(
        self, rng: random.Random, values: dict[str, bytes | None]
    ) -> Callable[[], int | None]:
        txn = self.db.update()
        for key in rng.sample(SHARED, 2):
            txn.get(key.encode())
        for key, value in values.items():
            if value is None:
                txn.delete(key.encode())
            else:
                txn.set(key.encode(), value)
        return txn.commit

    def batch(
        self, _rng: random.Random, values: dict[str, bytes | None]
    ) -> Callable[[], int | None]:
        batch = self.db.write_batch()
        for key, value in values.items():
            if value is None:
                batch.delete(key.encode())
            else:
                batch.set(key.encode(), value)
        if batch.committed:
            raise AssertionError("a batch split itself")
        return batch.flush

    def single(
        self, _rng: random.Random, values: dict[str, bytes | None]
    ) -> Callable[[], int | None]:
        ((key, value),) = values.items()
        if value is None:
            return lambda: self.db.delete(key.encode())
        return lambda: self.db.set(key.encode(), value)

    def reader(self) -> None:
        """Looks at one snapshot after the other."""
        rng = random.Random(self.rng.random())
        while not self.stopping.wait(0.005):
            self.look(rng)

    def look(self, rng: random.Random) -> None:
        """One snapshot in several ways; tells the ledger what it saw there."""
        with self.db.view() as txn:
            prefix = rng.choice(["s/", "m/", f"o/{rng.randrange(CLIENTS)}/"]).encode()
            items = [(item.key, item.value, item.version) for item in txn.iterate(prefix)]
            back = list(txn.items(prefix, reverse=True))
            if [(key, value) for key, value, _ in reversed(items)] != back:
                raise AssertionError(f"{prefix!r} reads differently backwards")
            key = rng.choice(KEYS).encode()
            if key.startswith(prefix) and txn.get(key) != dict(back).get(key):
                raise AssertionError(f"{key!r}: get and scan of one snapshot differ")
        for key, value, _ in items:
            if fault := value_fault(value):
                raise AssertionError(f"{key!r}: {fault}")
        if items:
            _, value, version = rng.choice(items)
            if (seen := txn_of(value)) is not None:
                self.ledger.note("W", seen, version)

    # -- figures and workers ---------------------------------------------------------------------

    def counters(self) -> dict[str, int]:
        stats = self.db.stats()
        return {
            "flushes": stats.flushes,
            "compactions": stats.compactions,
            "gc_runs": stats.gc_runs,
            "relocated": stats.value_log.gc_relocated_files,
            "dropped": stats.value_log.gc_dropped_files,
            "deep": sum(level.tables for level in stats.levels[1:]),
            "levels": sum(1 for level in stats.levels[1:] if level.tables),
            "conflicts": self.conflicts,
            "refused": self.refused,
        }

    def count(self) -> None:
        while not self.stopping.wait(0.05):
            self.ledger.note("G", self.counters())

    def kill_worker(self, kind: str, how: int = signal.SIGKILL) -> None:
        """Kill or stop one, and wait for a job of its kind to be done by its successor."""
        delay = self.rng.uniform(0, 0.004)
        until = time.monotonic() + _BUSY_WAIT
        while True:
            found = [w for w in self.db.workers() if w.kind == kind and w.state in _AT_WORK]
            busy = [worker for worker in found if worker.state == "busy"]
            if busy or (found and time.monotonic() > until):
                break
            self.stopping.wait(0.001)
        victim = (busy or found)[0]
        self.stopping.wait(delay)
        os.kill(victim.pid or 0, how)
        before = getattr(self.db.stats(), COUNTERS[kind])
        say("killed", kind, victim.pid, victim.state)
        overdue = time.monotonic() + _OVERDUE
        while not self.stopping.wait(0.005):
            workers = {w.name: w for w in self.db.workers()}
            back = workers[victim.name].pid not in (None, victim.pid)
            if back and getattr(self.db.stats(), COUNTERS[kind]) > before + 1:
                say("replaced", kind)
                return
            if time.monotonic() > overdue:
                overdue = math.inf
                state = f"{kind} is not replaced: {workers}, {self.counters()}\n"
                os.write(2, state.encode())
                faulthandler.dump_traceback(all_threads=True)

    # -- the run ---------------------------------------------------------------------------------

    def obey(self) -> None:
        """What the test says on standard input, until it says stop or nothing any more."""
        for line in sys.stdin:
            command, *words = line.split()
            if command == "stop":
                return
            if command == "kill":
                self.guarded(partial(self.kill_worker, words[0]))
            elif command == "hang":
                self.guarded(partial(self.kill_worker, words[0], signal.SIGSTOP))
            elif command == "workers":
                rows = [(w.name, w.kind, w.pid, w.state) for w in self.db.workers()]
                say("workers", json.dumps([rows, self.db.health().status]))
        os._exit(71)

    def go(self, options: dict[str, Any]) -> None:
        self.ledger.note("O", self.run)
        say("opening")
        self.db = meles.open(self.directory, wait=30.0, **options)
        self.ledger.found(observe(self.db, KEYS))
        say("open")
        works = [self.client(number) for number in range(CLIENTS)]
        threads = [self.guarded(work) for work in (*works, self.reader, self.count)]
        self.obey()
        self.ledger.note("G", self.counters())
        self.stopping.set()
        say("closing")
        report = self.db.close()
        for thread in threads:
            thread.join()
        say("closed", "clean" if report.clean else f"unclean {report.stages}")


def say(*words: object) -> None:
    """One write, for several threads speak."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def main() -> None:
    directory, ledger, run, seed, options = sys.argv[1:]
    chosen = json.loads(options)
    how = {"patient": chosen.pop("patient", False), "pace": chosen.pop("pace", 0.0)}
    Load(directory, Ledger(ledger), int(run), int(seed), **how).go(chosen)


if __name__ == "__main__":
    main()
