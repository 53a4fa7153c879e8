"""When something that failed is tried again."""

from __future__ import annotations

import pytest
from meles.engine.background.retry import WORKER_OUTPUT, Retry
from meles.engine.errors import CorruptionError, WorkerFailedError


def damage(kind: str) -> CorruptionError:
    return CorruptionError("bad", path="f", offset=0, kind=kind)


def test_each_failure_waits_longer_up_to_a_minute() -> None:
    retry, delays = Retry(), []
    for _ in range(10):
        retry.failed(OSError("busy"), 100.0, poisoned=False)
        delays.append(retry.delay(100.0))
        assert not retry.may_run(100.0)
        assert retry.may_run(100.0 + delays[-1])
    assert delays == [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert retry.delay(1e9) == 0
    retry.succeeded()
    assert retry == Retry()
    assert retry.may_run(0.0)


@pytest.mark.parametrize(
    ("error", "poisoned", "parked"),
    [
        (OSError("x"), False, False), (WorkerFailedError("x", kind="flusher"), True, True),
        (damage("table block"), False, True), (damage(WORKER_OUTPUT), False, False),
    ],
)  # fmt: skip
def test_damage_and_poison_are_not_tried_again(
    error: Exception, poisoned: bool, parked: bool
) -> None:
    retry = Retry()
    retry.failed(error, 0.0, poisoned=poisoned)
    assert bool(retry.parked) is parked
    assert retry.may_run(1e9) is not parked
    assert type(error).__name__ in retry.last
