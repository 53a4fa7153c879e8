"""How long nobody has written, as of the last look."""

from __future__ import annotations

from meles.engine.background.stillness import QUIET_SECONDS, Stillness


def test_it_is_quiet_when_the_count_has_stood_for_a_while() -> None:
    written, now = 7, 100.0
    stillness = Stillness(lambda: written, lambda: now)
    assert (stillness.seconds(), stillness.quiet) == (0.0, False)
    now += QUIET_SECONDS - 0.5
    assert not stillness.quiet
    written = 8
    assert stillness.seconds() == 0.0
    now += QUIET_SECONDS - 0.5
    assert not stillness.quiet
    now += 0.5
    assert stillness.quiet
    written = 9
    assert not stillness.quiet
