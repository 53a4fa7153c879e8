"""Entry point of a worker: `python -P -m meles.workers.child.main ROLE NAME PARENT FDS`.

Runs in: worker.
ROLE is a job kind, NAME is for process lists, PARENT the process id of the supervisor, FDS the five
inherited descriptors `jobs,answers,log,tables,values`.
Owns: those descriptors.
Invariants: (1) no path, key or value ever stands on the command line; (2) standard output and error
are the log pipe, the protocol has pipes of its own; (3) the process is tied to its parent before
anything that takes time is imported.
Fails with: the exit codes in `wire/exit_codes.py`; the reason is the last thing on the log pipe.
"""

from __future__ import annotations

import faulthandler
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

from meles.workers.child.guard import check_descriptors, ignore_signals, leave, tie_to_parent
from meles.workers.wire.exit_codes import EXIT_BOOT, EXIT_INTERNAL

if TYPE_CHECKING:
    from meles.workers.child.boot import MakeRun


def main(argv: Sequence[str], make: MakeRun | None = None) -> None:
    """Be a worker until told to leave; does not return. `make` replaces what runs the jobs."""
    code = EXIT_BOOT
    try:
        ignore_signals()
        role, _name, parent, descriptors = argv
        tie_to_parent(int(parent))
        faulthandler.enable()
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        fds = [int(part) for part in descriptors.split(",")]
        check_descriptors(pipes=fds[:3], directories=fds[3:])

        from meles.workers.child.boot import boot, make_run
        from meles.workers.child.loop import do_jobs

        pilot, channel, run = boot(role, int(parent), fds, make or make_run)
        code = EXIT_INTERNAL
        code = do_jobs(pilot, channel, run)
    except BaseException:  # noqa: BLE001 - the reason goes to the log, the exit code tells the rest
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    leave(code)


if __name__ == "__main__":
    main(sys.argv[1:])
