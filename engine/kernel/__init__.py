"""The few hot loops, with a readable Python reference.

Runs in: supervisor and workers.
Invariants: (1) kernel functions are imported from here, never from `reference`, so that a compiled
twin replaces all uses at once; (2) `MELES_KERNEL` is read once, at import.
Fails with: `ConfigError` when MELES_KERNEL names a kernel that is not there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

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
    "bloom_build",
    "bloom_prober",
    "choose",
    "find_part",
    "key_order",
    "offsets",
    "split",
]


def choose(environ: Mapping[str, str]) -> str:
    """The kernel MELES_KERNEL asks for: `auto` (default) takes the fastest there is."""
    asked = environ.get("MELES_KERNEL", "auto")
    if asked == "native":
        raise ConfigError(
            "option MELES_KERNEL='native' (from environment): this build has no compiled kernel",
            hint="use MELES_KERNEL=auto or python",
        )
    if asked not in ("auto", "python"):
        raise ConfigError(
            f"option MELES_KERNEL={asked!r} (from environment): "
            "allowed is one of 'auto', 'python', 'native'"
        )
    return "python"


KIND: Final = choose(os.environ)
