"""How a worker process ends.

Runs in: supervisor and workers. Codes not listed are the interpreter's; negative ones are signals.
"""

from __future__ import annotations

import signal
from typing import Final

EXIT_OK: Final = 0  # told to
EXIT_BOOT: Final = 3  # could not import or set up what it needs
EXIT_PARENT_GONE: Final = 4  # the job pipe ended, or the supervisor was dead already
EXIT_PROTOCOL: Final = 5  # the supervisor sent nonsense
EXIT_INTERNAL: Final = 6  # a contradiction in the worker's own code

_MEANINGS: Final = {
    EXIT_OK: "left",
    EXIT_BOOT: "could not start",
    EXIT_PARENT_GONE: "found its job pipe closed",
    EXIT_PROTOCOL: "was sent what it did not understand",
    EXIT_INTERNAL: "met a defect of its own",
}


def describe_exit(code: int) -> str:
    """`could not start (exit code 3)`, `was killed by SIGKILL`."""
    if code >= 0:
        return f"{_MEANINGS.get(code, 'ended')} (exit code {code})"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}"
