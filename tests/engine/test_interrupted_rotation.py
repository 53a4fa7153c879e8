"""Ctrl-C between two logs: whatever was half done, nothing acknowledged is lost."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import meles
from fault_fs import MUTATING, FaultDisk, Operation

OPTIONS: dict[str, Any] = {"workers": "thread", "sync": "none", "memtable_size": "64KiB"}
IN_VAIN = 5  # the other thread may be quick to prepare logs, and leave this one nothing to change


class InterruptNth:
    """A signal handler raises at the n-th change the committing thread makes to a log file."""

    def __init__(self, n: int) -> None:
        self._left = n

    def __call__(self, operation: Operation) -> None:
        committing = threading.current_thread() is threading.main_thread()
        if committing and operation.kind in MUTATING and operation.name.endswith(".mem"):
            self._left -= 1
            if not self._left:
                raise KeyboardInterrupt

    @property
    def fired(self) -> bool:
        return self._left <= 0


def test_nothing_is_lost_and_writing_goes_on_or_says_why_not(
    tmp_path: Path, fault_disk: FaultDisk
) -> None:
    refused: list[str] = []
    nth, in_vain = 1, 0
    while in_vain < IN_VAIN:
        path = tmp_path / f"{nth}-{in_vain}"
        acknowledged: dict[bytes, bytes] = {}
        db = meles.open(path, **OPTIONS)
        fault_disk.plan = plan = InterruptNth(nth)
        for number in range(130):
            key, value = b"%04d" % number, b"%d" % number * 300
            try:
                db[key] = value
                acknowledged[key] = value
            except KeyboardInterrupt:
                assert plan.fired
            except meles.StoreFailedError as error:
                refused.append(str(error))
                break
        fault_disk.plan = None
        assert acknowledged.items() <= dict(db.items()).items()
        db.close()
        with meles.open(path, **OPTIONS) as db:
            assert acknowledged.items() <= dict(db.items()).items()
            assert db.verify(values=True).ok
            assert db.stats().recovery.set_aside == []
        nth, in_vain = (nth + 1, 0) if plan.fired else (nth, in_vain + 1)
    assert nth > 2
    assert refused
    assert all("interrupted between two logs" in text for text in refused)
