"""A host process with a pool of scripted workers, driven line by line.

Arguments: the directory, the script of the workers, seconds of the hang timeout, and where answers
go. Lines on standard input: `job ACT ARGUMENT`, `infos`, `fork`, `close`; each is answered by a
line of JSON.
"""

import json
import os
import queue
import sys

from meles.engine.jobs import BuildOptions, FlushJob
from meles.workers.parent.pool import ProcessPool
from meles.workers.parent.protocol import PoolDirs

directory, script, hang_timeout, output = sys.argv[1:]
answers = queue.Queue()


def open_fds():
    names = os.listdir("/proc/self/fd")
    return {name for name in names if os.path.exists(f"/proc/self/fd/{name}")}


before = open_fds()
fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
pool = ProcessPool(
    {"flusher": 2},
    PoolDirs(fd, fd),
    heartbeat=0.1,
    hang_timeout=float(hang_timeout),
    memory_limit=None,
    on_result=lambda _job_id, result: answers.put(result.counters),
    on_failure=lambda _job_id, error, _poisoned: answers.put(str(error)),
    command=None if script == "real" else [sys.executable, "-P", script],
)
pool.start()


def fork():
    """What a forked child still holds of the pool after it was told to forget it."""
    pid = os.fork()
    if pid == 0:
        pool.forget()
        held = open_fds() - before
        os._exit(len(held - {str(fd)}))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def obey(words):
    if words[0] == "job":
        pool.submit(next(numbers), FlushJob(int(words[1]), int(words[2]), 5, BuildOptions(), 0))
        return None if words[-1] == "leave" else answers.get(timeout=40)
    if words[0] == "infos":
        return [[info.pid, info.state, info.restarts] for info in pool.infos()]
    if words[0] == "fork":
        return fork()
    pool.close(20)
    return sorted(open_fds() - before - {str(fd)})


numbers = iter(range(1, 1000))
with open(output, "w", buffering=1) as replies:
    before.add(str(replies.fileno()))
    for line in sys.stdin:
        replies.write(json.dumps(obey(line.split())) + "\n")
