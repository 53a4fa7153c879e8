"""An iterator over lists that come batch by batch.

Runs in: supervisor, on the thread that iterates.
Invariants: (1) what was taken is `_keys[:_at]`; (2) `_refill` is asked only when nothing is left.
Fails with: what `_refill` raises.

`BatchIteratorPy` is the readable definition, the compiled twin is engine/kernel/scan.pxi: its
`__next__` runs once an item of every scan.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

from meles.engine.kernel import NATIVE

C = TypeVar("C", bound="BatchIteratorPy")
PAIRS: Final = 0
KEYS: Final = 1
VALUES: Final = 2


class BatchIteratorPy:
    """Subclasses give `_refill`, which puts the next lists in place and says whether there are any.

    `_shape` is what an item is made of: a key and a value, a key, or a value.
    """

    _keys: list[bytes] | None = None
    _values: list[Any] | None = None
    _at: int = 0
    _count: int = 0
    _shape: int = PAIRS

    def _refill(self) -> bool:
        raise NotImplementedError

    def __next__(self) -> Any:
        while True:
            at = self._at
            if at < self._count:
                keys, values = self._keys, self._values
                if (self._shape == VALUES or keys is not None) and (
                    self._shape == KEYS or values is not None
                ):
                    self._at = at + 1
                    if self._shape == PAIRS:
                        return keys[at], values[at]  # type: ignore[index]
                    return keys[at] if self._shape == KEYS else values[at]  # type: ignore[index]
                self._count = 0  # another thread ended it meanwhile
            if not self._refill():
                raise StopIteration


def step_directly_py(cls: type[C]) -> type[C]:
    """A decorator for classes that keep `__next__`: the compiled one spares a look-up an item."""
    return cls


if TYPE_CHECKING or NATIVE is None:
    BatchIterator = BatchIteratorPy
    step_directly = step_directly_py
else:
    BatchIterator = NATIVE.BatchIterator
    step_directly = NATIVE.step_directly
