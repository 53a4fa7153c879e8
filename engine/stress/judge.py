"""Judges a ledger: does the database keep what it promised, over all its crashes?

Reads the events of `ledger.py` as a stream; each observation is judged against all before it:
D1  what was acknowledged, or seen by a reader, is there with its exact value
A   a transaction is there whole or not at all
P   what is there is a prefix of commit order: no number below the newest is missing
R   nothing that was deleted, overwritten, refused, lost or never written appears
M   timestamps of new commits are above all there ever were
W   a read gives the right answer whichever way it is asked

A transaction begun and not acknowledged may be there or not; the first observation settles which.
Commits are numbered without gaps, so counting numbers finds a hole even where its keys have been
written since. A key that is written by commits without a known ts must have one writer only.

Runs in: whoever judges. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from meles.engine.stress.ledger import DELETE, SET, Observation


@dataclass(frozen=True)
class Violation:
    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.text}"


@dataclass
class _Begun:
    txn: int
    client: int
    writes: dict[str, tuple[str, str]]  # key: op, digest
    ts: int | None = None

    def newest_of(self, key: str) -> _Newest:
        return _Newest(self.txn, self.client, self.ts, *self.writes[key])


@dataclass(frozen=True)
class _Newest:
    """The newest write of a key that is known to have been committed."""

    txn: int
    client: int
    ts: int | None
    op: str
    digest: str

    def before(self, ts: int | None) -> bool:
        """Whether a commit at `ts` comes later; those without a ts come in the ledger's order."""
        return self.ts is None or ts is None or ts > self.ts


Shown = dict[str, tuple[int, str]]  # key: version, digest


class Checker:
    """Holds the model; feed it events, read `violations` and `totals`."""

    def __init__(self, *, gaps: bool = False) -> None:
        """`gaps`: numbers may be left out, as after a power cut: the MANIFEST may have told of one
        whose commit was not durable yet, and none is given twice.
        """
        self._gaps = gaps
        self.violations: list[Violation] = []
        self.totals: dict[str, int] = {}  # counters over all runs
        self.acked = 0
        self.survived = 0  # begun, not acknowledged, and there all the same
        self.observations = 0
        self._counters: dict[str, int] = {}  # of the run at hand
        self._newest: dict[str, _Newest] = {}
        self._pending: dict[int, _Begun] = {}
        self._fates: dict[int, str] = {}
        self._writers: dict[tuple[str, str], int] = {}  # key, digest: the last that wrote it
        self._floor = 0  # newest timestamp at the last observation
        self._times: dict[int, int] = {}  # timestamps known since then, and whose they are
        self._untimed = 0  # commits since then that were acknowledged without one
        self._witnessed: dict[int, int] = {}

    def feed(self, events: Iterable[Sequence[Any]]) -> None:
        for event in events:
            getattr(self, f"_on_{event[0].lower()}")(*event[1:])

    def finish(self) -> dict[str, int]:
        """Counters over all runs, the last one included."""
        self._on_o(0)
        return self.totals

    @property
    def current(self) -> dict[str, int]:
        """Counters of the run at hand."""
        return self._counters

    def _fault(self, rule: str, text: str) -> None:
        self.violations.append(Violation(rule, text))

    # -- events ----------------------------------------------------------------------------------

    def _on_o(self, _run: int) -> None:
        for name, value in self._counters.items():
            self.totals[name] = self.totals.get(name, 0) + value
        self._counters = {}

    def _on_g(self, counters: dict[str, int]) -> None:
        self._counters = counters

    def _on_x(self, text: str) -> None:
        self._fault("W", text)

    def _on_b(self, txn: int, client: int, _seq: int, writes: list[list[str]]) -> None:
        begun = _Begun(txn, client, {key: (op, written) for key, op, written in writes})
        self._pending[txn] = begun
        for key, (op, written) in begun.writes.items():
            if op == SET:
                self._writers[key, written] = txn

    def _on_n(self, txn: int, _error: str) -> None:
        self._pending.pop(txn)
        self._fates[txn] = "refused"

    def _on_k(self, txn: int, ts: int | None) -> None:
        begun = self._pending.pop(txn)
        self.acked += 1
        begun.ts = ts
        if ts is None:
            self._untimed += 1
        else:
            self._note_time(txn, ts)
        self._settle(begun, "acknowledged")

    def _on_w(self, txn: int, version: int) -> None:
        fate = self._fates.get(txn)
        if fate in ("refused", "lost"):
            self._fault("R", f"a reader saw txn {txn}, which was {fate}")
        elif fate is None and txn not in self._pending:
            self._fault("R", f"a reader saw txn {txn}, which never began")
        elif fate is None:
            self._witnessed[txn] = version
        elif self._times.get(version, txn) != txn:
            self._fault("W", f"a reader saw txn {txn} at {version}, the ts of another")

    def _note_time(self, txn: int, ts: int) -> None:
        if ts <= self._floor:
            self._fault("M", f"txn {txn} got ts {ts}, but {self._floor} was there before it")
        other = self._times.setdefault(ts, txn)
        if other != txn:
            self._fault("M", f"txns {other} and {txn} have the same ts {ts}")

    def _settle(self, begun: _Begun, fate: str) -> None:
        """It is committed, now and for good."""
        self._fates[begun.txn] = fate
        for key in begun.writes:
            known = self._newest.get(key)
            if known is None or known.before(begun.ts):
                self._newest[key] = begun.newest_of(key)

    # -- an observation --------------------------------------------------------------------------

    def _on_f(self, plain: dict[str, Any]) -> None:
        self.observe(Observation.from_plain(plain))

    def observe(self, seen: Observation) -> None:
        """Judge what a database shows against all that was fed, and settle what was open."""
        self.observations += 1
        self._check_ways(seen)
        actual: Shown = {key: (version, written) for key, version, written in seen.forward}
        odd = self._differences(actual)
        there = self._evidence(odd, actual)
        for begun in there.values():
            self._check_whole(begun, actual, there)
        lost = [self._explain(key, actual.get(key), there) for key in odd]
        self._check_prefix([ts for ts in lost if ts], actual)
        self._check_numbers(seen.max_version, there, actual)
        self._fix(there, actual)
        self._floor = max(self._floor, seen.max_version)

    def _check_ways(self, seen: Observation) -> None:
        """Scans and gets agree, whatever it is they say."""
        for fault in seen.faults:
            self._fault("W", fault)
        keys = [key for key, _, _ in seen.forward]
        if keys != sorted(set(keys)):
            self._fault("W", "a scan is out of order, or gave a key twice")
        forward = [(key, written) for key, _, written in seen.forward]
        if seen.reverse != forward[::-1]:
            odd = sorted(set(forward) ^ set(seen.reverse))
            self._fault("W", f"scans differ in {len(odd)} places: {odd[:4]}")
        scanned = dict(forward)
        for key, got in seen.gets.items():
            if scanned.get(key) != got:
                self._fault("W", f"{key}: get says {got}, a scan {scanned.get(key)}")

    def _differences(self, actual: Shown) -> list[str]:
        """Keys that do not show the newest write known to be committed."""
        odd = []
        for key in {**self._newest, **actual}:
            known, shown = self._newest.get(key), actual.get(key)
            if shown is None:
                same = known is None or known.op == DELETE
            else:
                same = (
                    known is not None
                    and (known.op, known.digest) == (SET, shown[1])
                    and known.ts in (None, shown[0])
                )
            if not same:
                odd.append(key)
        return odd

    def _evidence(self, odd: list[str], actual: Shown) -> dict[int, _Begun]:
        """The unacknowledged transactions of which something is to be seen, or was by a reader."""
        there: dict[int, _Begun] = {}
        for txn, version in self._witnessed.items():
            if txn in self._pending:
                there[txn] = self._pending[txn]
                there[txn].ts = version
        matches = [
            (actual[key][0], [b for b in self._pending.values() if b.writes.get(key) == wanted])
            for key in odd
            if key in actual and (wanted := (SET, actual[key][1]))
        ]
        # Values of a few bytes look alike: those that only one can have written come first.
        for version, writers in sorted(matches, key=lambda match: len(match[1])):
            if not writers or any(begun.ts == version for begun in writers):
                continue
            begun = next((b for b in writers if b.ts is None), writers[0])
            if begun.ts is not None:
                self._fault("A", f"txn {begun.txn} is there at {begun.ts} and at {version}")
            begun.ts = version
            there[begun.txn] = begun
        for key in odd:
            if key not in actual and not any(key in begun.writes for begun in there.values()):
                deleters = [b for b in self._pending.values() if b.writes.get(key) == (DELETE, "")]
                there.update((begun.txn, begun) for begun in deleters[:1])
        return there

    def _check_whole(self, begun: _Begun, actual: Shown, there: dict[int, _Begun]) -> None:
        """Each write of a transaction of which something is there is in effect or overwritten."""
        for key, (op, written) in begun.writes.items():
            shown = actual.get(key)
            if shown is None if op == DELETE else shown is not None and shown[1] == written:
                continue
            later = [self._newest[key]] if key in self._newest else []
            later += [other.newest_of(key) for other in there.values() if key in other.writes]
            if begun.ts is None or not any(other.ts and other.ts > begun.ts for other in later):
                what = "set" if op == SET else "delete"
                self._fault(
                    "A",
                    f"txn {begun.txn} (ts {begun.ts}) is there in part: not its {what} of {key}",
                )

    def _explain(
        self, key: str, shown: tuple[int, str] | None, there: dict[int, _Begun]
    ) -> int | None:
        """Say what is wrong with a key that does not show what was committed, unless a transaction
        that is there explains it. Returns the ts of a commit that is lost."""
        known = self._newest.get(key)
        wanted = (DELETE, "") if shown is None else (SET, shown[1])
        for begun in there.values():
            if begun.writes.get(key) == wanted and (known is None or known.before(begun.ts)):
                return None
        newest = "nothing" if known is None else f"txn {known.txn} at ts {known.ts}"
        if shown is not None:
            version, written = shown
            writer = self._writers.get((key, written))
            if writer is None:
                text = f"what nobody ever wrote ({written} at {version})"
            else:
                text = f"txn {writer} ({self._fates.get(writer, 'open')}) at {version}"
            what = "deleted by" if known is not None and known.op == DELETE else "newest is"
            self._fault("R", f"{key}: shows {text}, {what} {newest}")
        if known is None or (shown is not None and known.digest == shown[1]):
            return None
        self._fault("D1", f"{key}: {newest} is lost ({self._fates[known.txn]})")
        return known.ts

    def _check_prefix(self, lost: list[int], actual: Shown) -> None:
        above = [v for v, _ in actual.values() if lost and v > min(lost)]
        if above:
            text = f"ts {min(lost)} is lost, and {len(above)} keys are newer, up to {max(above)}"
            self._fault("P", f"a hole: {text}")

    # -- numbers ---------------------------------------------------------------------------------

    def _check_numbers(self, newest: int, there: dict[int, _Begun], actual: Shown) -> None:
        """Every number up to the newest belongs to a commit, and every commit has one."""
        if newest < self._floor:
            self._fault("M", f"the newest ts is {newest}, it was {self._floor}")
        for begun in there.values():
            if begun.ts is not None:
                self._note_time(begun.txn, begun.ts)
        if self._times and max(self._times) > newest:
            self._fault("D1", f"ts {max(self._times)} is known, the newest is {newest}")
        highest = max((version for version, _ in actual.values()), default=0)
        if highest > newest:
            self._fault("M", f"{highest} is visible, the newest ts is {newest}")
        unnumbered = newest - self._floor - len(self._times)
        least = self._untimed + sum(begun.ts is None for begun in there.values())
        most = least + sum(self._hideable(b, there) for b in self._pending.values())
        if unnumbered < least:
            text = f"up to {newest} there are {least - unnumbered} numbers less than commits"
            self._fault("D1", text)
        elif unnumbered > most and not self._gaps:
            text = f"{unnumbered - most} of the numbers up to {newest} belong to nothing"
            self._fault("P", f"a hole: {text}")

    def _hideable(self, begun: _Begun, there: dict[int, _Begun]) -> bool:
        """Whether it may have been committed although nothing of it is to be seen. A client begins
        one commit after the other, so only another one can have overwritten its last."""
        if begun.txn in there:
            return False
        for key, (op, _) in begun.writes.items():
            known = self._newest.get(key)
            if op == DELETE and (known is None or known.op == DELETE):
                continue
            others = [known] if known is not None and known.client != begun.client else []
            if not others and not any(key in other.writes for other in there.values()):
                return False
        return True

    def _fix(self, there: dict[int, _Begun], actual: Shown) -> None:
        """What was found is how it is from now on."""
        self.survived += len(there)
        for begun in sorted(there.values(), key=lambda begun: begun.ts or 0):
            self._settle(begun, "there")
        self._fates.update((txn, "lost") for txn in self._pending.keys() - there.keys())
        for key, (version, written) in actual.items():
            known = self._newest.get(key)
            if known is not None and known.ts is None and known.digest == written:
                self._newest[key] = replace(known, ts=version)
        self._pending, self._witnessed, self._times, self._untimed = {}, {}, {}, 0
