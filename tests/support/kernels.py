"""Both kernels, for suites that hold them to the same results whatever MELES_KERNEL says."""

from __future__ import annotations

from typing import Any

import pytest
from meles.engine.kernel import choose

NATIVE: Any = choose({})  # None where there is no compiled kernel
needs_native = pytest.mark.skipif(NATIVE is None, reason="no compiled kernel was built")
KERNELS = [
    pytest.param(None, id="python"),
    pytest.param(NATIVE, id="native", marks=needs_native),
]
