"""An iterator over what comes batch by batch, and values that are read when their turn comes.

Runs in: supervisor, on the thread that iterates.
Invariants: (1) what was taken is `_keys[:_at]`; (2) `_refill` is asked only when nothing is left;
(3) a value that could not be read was not taken.
Fails with: what `_refill` raises, and what `_met` makes of the error of a value.

`BatchIteratorPy` is the readable definition, the compiled twin is engine/kernel/scan.pxi: its
`__next__` runs once an item of every scan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from meles.engine.codec.columns import Columns
from meles.engine.codec.entry import META_POINTER
from meles.engine.kernel import NATIVE

C = TypeVar("C", bound="BatchIteratorPy")
PAIRS: Final = 0
KEYS: Final = 1
VALUES: Final = 2


class LazyValuesPy:
    """A batch's values. Those of the value log are read when they are asked for: each is made where
    the one before it was, in memory that is near, and what nobody asks for is not read.
    """

    def __init__(self, batch: Columns, read: Callable[[bytes, int], bytes]) -> None:
        """`read(pointer, version)` reads one of the value log."""
        self._batch = batch
        self._read = read

    def __len__(self) -> int:
        return len(self._batch.values)

    def __getitem__(self, at: int) -> bytes:
        batch = self._batch
        value: bytes = batch.values[at]
        return self._read(value, batch.versions[at]) if batch.metas[at] & META_POINTER else value


Values: TypeAlias = list[Any] | LazyValuesPy


class BatchIteratorPy:
    """Subclasses give `_refill`, which puts the next lists in place and says whether there are any;
    `_met`, which is told the error of a value before it goes on and may raise another; `_in_use`,
    the error for a second thread that asks for an item while a value is read.

    `_shape` is what an item is made of: a key and a value, a key, or a value.
    """

    _keys: list[bytes] | None = None
    _values: Values | None = None
    _at: int = 0
    _count: int = 0
    _shape: int = PAIRS
    _reading: bool = False

    def _refill(self) -> bool:
        raise NotImplementedError

    def _met(self, error: Exception) -> None:
        raise NotImplementedError

    def _in_use(self) -> Exception:
        raise NotImplementedError

    def __next__(self) -> Any:
        if self._reading:
            raise self._in_use()
        while True:
            at = self._at
            if at < self._count:
                keys, values = self._keys, self._values
                if (self._shape == VALUES or keys is not None) and (
                    self._shape == KEYS or values is not None
                ):
                    self._at = at + 1
                    if self._shape == KEYS:
                        return keys[at]  # type: ignore[index]
                    value = values[at] if type(values) is list else self._lazy(values, at)
                    return value if self._shape == VALUES else (keys[at], value)  # type: ignore[index]
                self._count = 0  # another thread ended it meanwhile
            if not self._refill():
                raise StopIteration

    def _lazy(self, values: Any, at: int) -> Any:
        self._reading = True
        try:
            return values[at]
        except Exception as error:
            self._untaken(values, at)
            self._met(error)
            raise
        except BaseException:
            self._untaken(values, at)
            raise
        finally:
            self._reading = False

    def _untaken(self, values: Any, at: int) -> None:
        if self._values is values:  # another thread may have ended it meanwhile
            self._at = at


def step_directly_py(cls: type[C]) -> type[C]:
    """A decorator for classes that keep `__next__`: the compiled one spares a look-up an item."""
    return cls


if TYPE_CHECKING or NATIVE is None:
    BatchIterator = BatchIteratorPy
    step_directly = step_directly_py
else:
    BatchIterator = NATIVE.BatchIterator
    step_directly = NATIVE.step_directly
