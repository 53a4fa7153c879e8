"""The compiled module whatever MELES_KERNEL says, and marks for tests that need it."""

from __future__ import annotations

from typing import Any, Final

import meles.engine.kernel as kernel
import pytest

NATIVE: Final[Any] = kernel.choose({})  # None where it was not built

needs_native = pytest.mark.skipif(NATIVE is None, reason="the compiled kernel is not built here")
needs_native_run = pytest.mark.skipif(
    kernel.NATIVE is None, reason="this run has no compiled kernel (not built, or not wanted)"
)
KERNELS = [
    pytest.param(None, id="python"),
    pytest.param(NATIVE, id="native", marks=needs_native),
]


def twins(python: type, name: str) -> list[Any]:
    """Parameters: the readable class, and the compiled one called `name` where there is one."""
    compiled = None if NATIVE is None else getattr(NATIVE, name)
    return [
        pytest.param(python, id="python"),
        pytest.param(compiled, id="native", marks=needs_native),
    ]
