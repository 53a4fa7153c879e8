"""A bank: money moves between accounts in transactions, and every snapshot holds the same sum.

Runs in: supervisor, on threads of its own.
Owns: keys below `_bank/`.
Invariants checked: (1) the sum of all accounts is what it was made with, in every snapshot; (2) no
account is below zero; (3) scans in both directions and single gets of a snapshot agree.
"""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, field
from typing import Final

import meles

PREFIX: Final = b"_bank/account/"
_OPENING: Final = 100  # on each account at first
_ACCOUNTS: Final = 50  # few, so that transfers meet


@dataclass
class Figures:
    """What happened, over all threads."""

    transfers: int = 0
    conflicts: int = 0
    snapshots: int = 0
    violations: list[str] = field(default_factory=list)


def account(number: int) -> bytes:
    return b"%b%03d" % (PREFIX, number)


class Bank:
    """Runs transfers and audits against one open database."""

    def __init__(self, db: meles.DB, seed: int, accounts: int = _ACCOUNTS) -> None:
        self._db = db
        self._seed = seed
        self._accounts = accounts
        self._lock = threading.Lock()
        self._over = threading.Event()
        self.figures = Figures()
        self.total = self._found_or_made()

    def _found_or_made(self) -> int:
        """The sum; accounts are made if there are none, all in one transaction."""
        found = [int(value) for value in self._db.values(PREFIX)]
        if found:
            return sum(found)
        with self._db.update() as txn:
            for number in range(self._accounts):
                txn[account(number)] = b"%d" % _OPENING
        return self._accounts * _OPENING

    def run(self, seconds: float, writers: int = 4, auditors: int = 2) -> Figures:
        """Transfer and audit for so long; the first violation ends it."""
        threads = [
            threading.Thread(target=self._write, args=(number,), name=f"meles-bank-{number}")
            for number in range(writers)
        ]
        threads += [
            threading.Thread(target=self._audit, name=f"meles-audit-{number}")
            for number in range(auditors)
        ]
        for thread in threads:
            thread.start()
        self._over.wait(seconds)
        self._over.set()
        for thread in threads:
            thread.join()
        self._audited()
        return self.figures

    def _write(self, number: int) -> None:
        rng = random.Random(f"{self._seed}/{number}")
        done = conflicts = 0
        try:
            while not self._over.is_set():
                try:
                    with self._db.update() as txn:
                        transfer(txn, rng, self._accounts)
                    done += 1
                except meles.ConflictError:
                    conflicts += 1
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs in the report
            self._blame(f"a transfer failed: {error!r}")
        with self._lock:
            self.figures.transfers += done
            self.figures.conflicts += conflicts

    def _audit(self) -> None:
        while not self._over.is_set():
            self._audited()

    def _audited(self) -> None:
        try:
            self.audit()
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs in the report
            self._blame(f"an audit failed: {error!r}")

    def audit(self) -> None:
        """Check one snapshot."""
        with self._db.view() as txn:
            forward = dict(txn.items(PREFIX))
            backward = dict(txn.items(PREFIX, reverse=True))
            single = {key: txn.get(key) for key in forward}
            ts = txn.read_ts
        balances = [int(value) for value in forward.values()]
        if forward != backward or forward != single:
            self._blame(f"snapshot {ts}: scans and gets differ")
        elif sum(balances) != self.total:
            self._blame(f"snapshot {ts}: the sum is {sum(balances)}, not {self.total}")
        elif min(balances) < 0:
            self._blame(f"snapshot {ts}: an account holds {min(balances)}")
        with self._lock:
            self.figures.snapshots += 1

    def _blame(self, text: str) -> None:
        with self._lock:
            self.figures.violations.append(text)
        self._over.set()


def transfer(txn: meles.Txn, rng: random.Random, accounts: int) -> None:
    """Move money between two accounts; now and then close one into the other, or open it again."""
    source, target = rng.sample(range(accounts), 2)
    there = int(txn.get(account(source)) or 0)
    amount = there if rng.random() < 0.05 else rng.randint(0, there)
    if amount == there:
        txn.delete(account(source))
    else:
        txn[account(source)] = b"%d" % (there - amount)
    txn[account(target)] = b"%d" % (int(txn.get(account(target)) or 0) + amount)
