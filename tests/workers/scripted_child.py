"""A worker that does what a test's job says, instead of real work.

Started in place of `meles.workers.child.main`, whose `main` it calls: handshake, threads,
protection and wire are the real ones. The act is a FlushJob's `mem_id`, its argument the job's
`end`.
"""

import logging
import os
import signal
import sys
import time

from meles.engine.errors import CorruptionError, DiskFullError
from meles.engine.jobs import JobResult, NewFile
from meles.workers.child.main import main

# What a job may ask for.
ECHO, WAIT, EXIT, FREEZE, LOG, CORRUPT, BUG, MEMORY = range(1, 9)
SPIN, PRINT, FULL, FDS, GARBAGE, STALE, FUTURE, GROW = range(9, 17)


def act(job, context, answers_fd):
    what, argument = job.mem_id, job.end
    if what == WAIT:
        while True:
            time.sleep(0.002)
            context.progress(1)
    elif what == EXIT:
        os._exit(argument)
    elif what == FREEZE:
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == LOG:
        log = logging.getLogger("meles.engine.somewhere")
        for number in range(argument):
            log.info("line %d", number)
    elif what == CORRUPT:
        raise CorruptionError("bad sum", path="tables/000007.sst", offset=12, kind="block")
    elif what == BUG:
        raise ZeroDivisionError("a defect")
    elif what == MEMORY:
        bytearray(argument)
    elif what == SPIN:
        print("spins", flush=True)
        time.sleep(3600)
    elif what == PRINT:
        print("printed by a job")
        print("printed on stderr", file=sys.stderr)
    elif what == FULL:
        raise DiskFullError("no space to write 000007.sst")
    elif what == FDS:
        open_fds = sorted(int(name) for name in os.listdir("/proc/self/fd"))
        return JobResult((), {f"fd{fd}": 1 for fd in open_fds})
    elif what == GARBAGE:
        os.write(answers_fd, os.urandom(argument))
        time.sleep(3600)
    elif what in (STALE, FUTURE):
        from meles.workers.wire.messages import JobDone, encode

        request = context.request
        generation = request.generation + (1 if what == FUTURE else -1)
        wrong = JobDone(request.job_id, generation, JobResult((), {"wrong": 1}))
        os.write(answers_fd, encode(wrong))
    elif what == GROW:
        return JobResult(tuple(NewFile(i, i, i) for i in range(1, argument + 1)), {})
    return JobResult((NewFile(job.table_id, argument, 7),), {"read_bytes": argument})


def scripted(argv):
    answers_fd = int(argv[3].split(",")[1])

    def make(tables_fd, values_fd, setup):
        return lambda job, context, _keys: act(job, context, answers_fd)

    main(argv, make)


if __name__ == "__main__":
    scripted(sys.argv[1:])
