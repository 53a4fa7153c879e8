"""The hot paths: plain functions in Python, and the compiled twins of whole paths.

`NATIVE` is the compiled module, or None where it was not built or not wanted. A layer with a
compiled twin of a class names the readable one with `Py` at the end and chooses once, where it
defines it.

Runs in: supervisor and workers.
Invariants: (1) `MELES_KERNEL` is read once, at import; (2) both kernels make the same bytes and
give the same answers, which the suites in tests/contract hold them to.
Fails with: `ConfigError` when MELES_KERNEL names a kernel that is not there.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Final

from meles.engine.errors import ConfigError
from meles.engine.kernel.reference import (
    LINE_BITS,
    LINE_BYTES,
    bloom_build,
    bloom_prober,
    find_part,
    key_order,
    offsets,
    split,
)

__all__ = [
    "KIND",
    "LINE_BITS",
    "LINE_BYTES",
    "NATIVE",
    "bloom_build",
    "bloom_prober",
    "choose",
    "find_part",
    "key_order",
    "offsets",
    "split",
]


def _compiled() -> ModuleType | None:
    try:
        return importlib.import_module("meles.engine.kernel._native")
    except ImportError:
        return None


def choose(environ: Mapping[str, str]) -> ModuleType | None:
    """The compiled kernel, or None to run in plain Python: what MELES_KERNEL asks for.

    `auto` (default) takes the fastest there is, `python` the reference, `native` insists.
    """
    asked = environ.get("MELES_KERNEL", "auto")
    if asked not in ("auto", "python", "native"):
        raise ConfigError(
            f"option MELES_KERNEL={asked!r} (from environment): "
            "allowed is one of 'auto', 'python', 'native'"
        )
    found = None if asked == "python" else _compiled()
    if asked == "native" and found is None:
        raise ConfigError(
            "option MELES_KERNEL='native' (from environment): this build has no compiled kernel",
            hint="install meles where there is a C compiler, or use MELES_KERNEL=auto or python",
        )
    return found


NATIVE: Final[Any] = choose(os.environ)  # Any: its classes are described where they are chosen
KIND: Final = "python" if NATIVE is None else "native"
