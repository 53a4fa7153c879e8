"""The loop of a service: inputs in, transactions out, until stopped.

Runs in: supervisor, in the foreground of `meles serve`.
Owns: the records read but not yet committed.
Invariants: (1) a record is acknowledged when its transaction is committed, and each transaction
holds the position of its inputs too, so a restart goes on exactly after the last acknowledged
record; (2) a commit waits at most `commit_every` seconds for more records; (3) while the database
cannot take writes nothing more is read, so memory stays bounded and the producer feels it.
Fails with: errors of the database other than a stall or a full disk, `OSError` of an input.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TextIO

import meles
from meles.engine.cli.ingest import REFUSALS
from meles.engine.cli.intake import Intake, Unit
from meles.engine.cli.position import DEFAULT_PREFIX, Position, position_key
from meles.engine.cli.progress import PlainProgress, Tally
from meles.engine.cli.records import BadRecord, Chunk
from meles.engine.cli.sources import SourceFormat
from meles.engine.cli.stop import StopSource

COMMIT_BYTES: Final = 1 << 20  # one transaction: larger ones hold other writers up
POLL_SECONDS: Final = 0.1  # between looks at a file that had nothing new
RETRY_SECONDS: Final = 0.25  # between tries while the database cannot take writes


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """How to serve; times in seconds. `status_every` 0 = no figures while running."""

    format: SourceFormat
    skip: bool = True
    position_prefix: bytes = DEFAULT_PREFIX
    commit_every: float = 0.1
    status_every: float = 10.0
    acknowledge: bool = False


@dataclass(slots=True)
class ServeReport:
    """What a service did. `torn` are the bytes of unfinished last lines, by source."""

    tally: Tally = field(default_factory=Tally)
    pending: int = 0
    torn: dict[str, int] = field(default_factory=dict)
    stopped_at: BadRecord | None = None


class Service:
    """The loop between opening and closing. One thread."""

    def __init__(
        self,
        db: meles.DB,
        intakes: Sequence[Intake],
        settings: ServeSettings,
        *,
        stop: StopSource,
        log: PlainProgress,
        output: TextIO,
    ) -> None:
        self.report = ServeReport()
        self._db = db
        self._intakes = list(intakes)
        self._settings = settings
        self._stop = stop
        self._log = log
        self._output = output
        self._budget = commit_budget(db, len(self._intakes))
        self._pending: deque[Unit] = deque()
        self._cost = 0
        self._oldest = 0.0  # when the first pending unit came
        self._retry_at = 0.0
        self._stalled = False

    def run(self) -> ServeReport:
        """Serve until stopped, or until every input has ended."""
        tally = self.report.tally
        while self._stop.count == 0 and self.report.stopped_at is None:
            live = [intake for intake in self._intakes if not intake.source.finished]
            if self._intakes and not live:
                break
            self._read(live)
            self._commit_if_due()
            self._log.update(tally)
        self._finish()
        return self.report

    # -- reading ---------------------------------------------------------------------------------

    def _read(self, live: list[Intake]) -> None:
        """Wait for input, a stop request or the next thing due; take what there is."""
        now = time.monotonic()
        full = self._cost >= self._budget or self._stalled
        waits = [self._settings.status_every] if self._settings.status_every else []
        if self._pending:
            due = self._oldest + self._settings.commit_every
            waits.append((self._retry_at if self._stalled else due) - now)
        fds = [] if full else [i.source.fd for i in live if i.source.fd is not None]
        files = [] if full else [i for i in live if i.source.fd is None]
        took = [intake for intake in files if self._take(intake)]
        if files:
            waits.append(0.0 if took else POLL_SECONDS)
        ready = self._stop.wait(fds, min(waits, default=None))
        for intake in live:
            if intake.source.fd in ready:
                self._take(intake)

    def _take(self, intake: Intake) -> bool:
        units = intake.take()
        if units and not self._pending:
            self._oldest = time.monotonic()
        self._pending += units or []
        self._cost += sum(unit.cost for unit in units or [])
        return units is not None

    # -- committing ------------------------------------------------------------------------------

    def _commit_if_due(self) -> None:
        now = time.monotonic()
        if not self._pending or (self._stalled and now < self._retry_at):
            return
        if self._cost >= self._budget or now >= self._oldest + self._settings.commit_every:
            self._commit_pending()

    def _commit_pending(self) -> None:
        """Commit all that is pending, or as much as the database takes now."""
        while self._pending and self.report.stopped_at is None:
            group, cost = [self._pending[0]], self._pending[0].cost
            for unit in list(self._pending)[1:]:
                if cost + unit.cost > self._budget:
                    break
                group.append(unit)
                cost += unit.cost
            try:
                self._commit(group)
            except (meles.WriteStallError, meles.DiskFullError) as error:
                if not self._stalled:
                    self._log.note(f"waiting: {error}")
                self._stalled = True
                self._retry_at = time.monotonic() + RETRY_SECONDS
                return
            if self._stalled:
                self._log.note("writing again")
            self._stalled = False
            self._cost -= cost
            for _ in group:
                self._pending.popleft()
            self._oldest = time.monotonic()

    def _commit(self, group: list[Unit]) -> None:
        """One transaction: the records of the units and the positions after them."""
        records, size = 0, 0
        bad: list[BadRecord] = []
        after: dict[Intake, Position] = {}
        with self._db.update() as txn:
            for unit in group:
                for chunk in unit.chunks:
                    count, refused = self._put(txn, unit.intake, chunk)
                    records += count
                    size += chunk.size
                    bad += refused
                    if bad and not self._settings.skip:
                        break
                if bad and not self._settings.skip:
                    # The position stays before this unit: a restart sets its records again, with
                    # the same keys and values.
                    break
                after[unit.intake] = unit.position
            for intake, position in after.items():
                key = position_key(self._settings.position_prefix, intake.source.name)
                txn.set(key, position.encode())
        tally = self.report.tally
        tally.records += records
        tally.committed += records
        tally.size += size
        tally.bad += len(bad)
        if bad and not self._settings.skip:
            self.report.stopped_at = bad[0]
        for record in bad:
            self._log.note(f"bad record: {record}")
        if self._settings.acknowledge:
            for intake, position in after.items():
                print(f"ack {intake.source.name} {position.line}", file=self._output)
            self._output.flush()

    def _put(self, txn: meles.Txn, intake: Intake, chunk: Chunk) -> tuple[int, list[BadRecord]]:
        """Set a chunk's records; returns how many, and those refused, the chunk's bad one last."""
        refused = []
        for at, key in enumerate(chunk.keys):
            try:
                txn.set(key, chunk.values[at])
            except REFUSALS as error:
                too_big = isinstance(error, meles.TransactionTooBigError)
                if too_big and self._fits(key, chunk.values[at]):
                    raise
                refused.append(BadRecord(intake.source.name, chunk.lines[at], str(error)))
                if not self._settings.skip:
                    return at, refused
        count = len(chunk.keys) - len(refused)
        return count, refused if chunk.bad is None else [*refused, chunk.bad]

    def _fits(self, key: bytes, value: bytes) -> bool:
        """Whether the record alone would be no too big transaction."""
        probe = self._db.update()
        try:
            probe.set(key, value)
        except meles.TransactionTooBigError:
            return False
        finally:
            probe.discard()
        return True

    # -- stopping --------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Commit what was read; a database that cannot take it gets until the close deadline."""
        deadline = time.monotonic() + self._db.options.close_timeout
        while self._pending and self.report.stopped_at is None:
            self._commit_pending()
            if self._stop.count > 1 or time.monotonic() >= deadline:
                break
            if self._stalled:
                self._stop.wait([], RETRY_SECONDS)
        self.report.pending = sum(
            len(chunk.keys) for unit in self._pending for chunk in unit.chunks
        )
        self.report.torn = {
            intake.source.name: intake.torn for intake in self._intakes if intake.torn
        }


def commit_budget(db: meles.DB, sources: int) -> int:
    """Bytes of records in one transaction: half its limit, for keys may double what lines take."""
    positions = sources * 1024
    return max(512, min(COMMIT_BYTES, (db.options.txn_limit - positions) // 2))
