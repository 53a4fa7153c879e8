"""Random use of the whole public API against a dict of version lists."""

from __future__ import annotations

import pytest
from checkers.machine import DatabaseMachine
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test


class InProcesses(DatabaseMachine):
    workers = "process"


class Encrypted(DatabaseMachine):
    always = {"encryption_key": bytes(range(32))}  # noqa: RUF012


@pytest.mark.timeout(600)  # to shrink what fails
@pytest.mark.parametrize(
    ("machine", "examples"),
    [(DatabaseMachine, 150), (InProcesses, 12), (Encrypted, 25)],
    ids=["inline", "process", "encrypted"],
)
def test_answers_as_the_model(machine: type[DatabaseMachine], examples: int) -> None:
    run_state_machine_as_test(
        machine, settings=settings(max_examples=examples, stateful_step_count=40)
    )


@pytest.mark.long
@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize(
    "machine", [DatabaseMachine, InProcesses, Encrypted], ids=["inline", "process", "encrypted"]
)
def test_answers_as_the_model_for_long(machine: type[DatabaseMachine]) -> None:
    long = settings.get_profile("long")
    run_state_machine_as_test(
        machine, settings=settings(long, max_examples=1000, stateful_step_count=50)
    )
