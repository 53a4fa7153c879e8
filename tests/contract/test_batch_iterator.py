"""BatchIterator: both twins hand out the same items, and meet the same errors in turn."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meles.engine.txn.batches import KEYS, PAIRS, VALUES, BatchIteratorPy
from twins import NATIVE, needs_native, twins

both = pytest.mark.parametrize("base", twins(BatchIteratorPy, "BatchIterator"))


class Met(Exception):
    """What an error of a value is made into."""


class InUse(Exception):
    """What a second thread meets."""


class Lazily:
    """Values that are made when they are asked for, or raise."""

    def __init__(self, made: list[Any]) -> None:
        self.made = made

    def __len__(self) -> int:
        return len(self.made)

    def __getitem__(self, at: int) -> Any:
        value = self.made[at]
        if callable(value):
            return value()
        if isinstance(value, type):
            raise value
        return value


def over(base: Any, lists: list[Any], shape: int, *, directly: bool = False) -> Any:
    class Batches(base):  # type: ignore[misc]
        def __init__(self) -> None:
            self._shape = shape
            self.coming = iter(lists)

        def __iter__(self) -> Any:
            return self

        def _met(self, error: Exception) -> None:
            if isinstance(error, ZeroDivisionError):
                raise Met from error

        def _in_use(self) -> Exception:
            return InUse()

        def _refill(self) -> bool:
            self._at = self._count = 0
            found = next(self.coming, None)
            if isinstance(found, Exception):
                raise found
            if found is None:
                return False
            self._keys, self._values = found
            self._count = len(self._keys)
            return True

    return (NATIVE.step_directly(Batches) if directly else Batches)()


LISTS = [([b"a", b"b"], [b"1", b"2"]), ([], []), ([b"c"], [b"3"])]


@both
@pytest.mark.parametrize(
    ("shape", "items"),
    [
        (PAIRS, [(b"a", b"1"), (b"b", b"2"), (b"c", b"3")]),
        (KEYS, [b"a", b"b", b"c"]),
        (VALUES, [b"1", b"2", b"3"]),
    ],
)
def test_shapes(base: Any, shape: int, items: list[Any]) -> None:
    iterator = over(base, LISTS, shape)
    assert list(iterator) == items
    assert list(iterator) == []


@both
def test_an_error_comes_in_its_turn(base: Any) -> None:
    iterator = over(base, [LISTS[0], LookupError("damage"), LISTS[2]], KEYS)
    assert [next(iterator), next(iterator)] == [b"a", b"b"]
    with pytest.raises(LookupError):
        next(iterator)
    assert list(iterator) == [b"c"]


@both
@pytest.mark.parametrize("error", [LookupError, ZeroDivisionError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("shape", [PAIRS, VALUES])
def test_a_value_that_fails_is_not_taken(base: Any, shape: int, error: type[BaseException]) -> None:
    def fail() -> Any:
        raise error

    made: list[Any] = [b"1", fail, b"3"]
    iterator = over(base, [([b"a", b"b", b"c"], Lazily(made)), LISTS[2]], shape)
    assert next(iterator) == ((b"a", b"1") if shape == PAIRS else b"1")
    for _ in range(3):
        with pytest.raises(Met if error is ZeroDivisionError else error) as raised:
            next(iterator)
        assert iterator._at == 1
        if error is ZeroDivisionError:
            assert isinstance(raised.value.__cause__, ZeroDivisionError)
    made[1] = b"2"
    rest = [(b"b", b"2"), (b"c", b"3"), (b"c", b"3")]
    assert list(iterator) == (rest if shape == PAIRS else [value for _, value in rest])


@both
def test_values_nobody_asks_for_are_not_made(base: Any) -> None:
    def fail() -> Any:
        raise LookupError

    lists = [([b"a", b"b"], Lazily([fail, fail]))]
    assert list(over(base, lists, KEYS)) == [b"a", b"b"]


@both
@pytest.mark.parametrize("error", [None, LookupError, KeyboardInterrupt])
def test_nobody_else_goes_on_while_a_value_is_read(
    base: Any, error: type[BaseException] | None
) -> None:
    """Or what lies behind it would be given before it turns out to be damaged."""

    def others_ask() -> Any:
        for _ in range(3):
            with pytest.raises(InUse):
                next(iterator)
        if error is not None:
            raise error
        return b"1"

    made = [others_ask, b"2"]
    iterator = over(base, [([b"a", b"b"], Lazily(made)), LISTS[2]], VALUES)
    if error is not None:
        with pytest.raises(error):
            next(iterator)
        made[0] = b"1"
    assert list(iterator) == [b"1", b"2", b"3"]


@both
def test_a_refill_that_advances_the_iterator_itself(base: Any) -> None:
    class Greedy(base):  # type: ignore[misc]
        rounds = 0

        def __iter__(self) -> Any:
            return self

        def _refill(self) -> bool:
            self.rounds += 1
            self._at = self._count = 0
            if self.rounds == 4:
                return False
            self._keys = self._values = [b"%d" % self.rounds, b"x"]
            self._count = 2
            if self.rounds == 1:
                next(self)
            return True

    assert [key for key, _ in Greedy()] == [b"x", b"2", b"x", b"3", b"x"]


@both
@pytest.mark.parametrize(("at", "count"), [(0, 5), (2, 5), (1 << 40, 1 << 50)])
def test_numbers_that_do_not_fit_the_lists(base: Any, at: int, count: int) -> None:
    class Wrong(base):  # type: ignore[misc]
        def _refill(self) -> bool:
            return False

    for shape in (PAIRS, KEYS, VALUES):
        iterator = Wrong()
        iterator._shape = shape
        iterator._keys = iterator._values = [b"a", b"b"]
        iterator._at, iterator._count = max(at, 2), count
        with pytest.raises(IndexError):
            next(iterator)
        iterator._at = 0
        iterator._keys = iterator._values = None
        with pytest.raises(StopIteration):
            next(iterator)


@needs_native
def test_places_before_the_list() -> None:
    iterator = NATIVE.BatchIterator()
    iterator._keys, iterator._at, iterator._count, iterator._shape = [b"a"], -100_000, 1, KEYS
    with pytest.raises(IndexError):
        next(iterator)


@needs_native
@given(st.lists(st.lists(st.tuples(st.binary(), st.binary()), max_size=4)), st.integers(0, 2))
def test_both_hand_out_the_same(batches: list[list[Any]], shape: int) -> None:
    lists = [([key for key, _ in batch], [value for _, value in batch]) for batch in batches]
    python, native = over(BatchIteratorPy, lists, shape), over(NATIVE.BatchIterator, lists, shape)
    items = list(python)
    assert list(native) == items
    direct = over(NATIVE.BatchIterator, lists, shape, directly=True)
    assert [*zip(direct, items, strict=False)] == [*zip(items, items, strict=True)]
    assert list(direct) == []


@needs_native
def test_only_what_steps_as_it_does_may_step_directly() -> None:
    class Other(NATIVE.BatchIterator):  # type: ignore[misc]
        def __next__(self) -> Any:
            raise StopIteration

    for wrong in (Other, BatchIteratorPy, int, type):
        with pytest.raises(TypeError, match="does not step"):
            NATIVE.step_directly(wrong)
    with pytest.raises(TypeError):
        NATIVE.step_directly(Other())
