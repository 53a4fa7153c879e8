"""Forks of the host: the child's handle is dead, and nothing the child does harms the parent's."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import meles
import psutil
import pytest
from waiting import wait_until

DEADLINE = 80.0

# Python warns of forks in a process with threads; that is what is tested here.
PRELUDE = """
import os, signal, sys, threading, time, warnings
import meles
warnings.simplefilter("ignore", DeprecationWarning)
path = sys.argv[1]

def fill(db, first=0):
    for n in range(first, first + 300):
        db.set(b"k%04d" % n, b"%d" % n * 500)

def check(db, count):
    for n in range(count):
        assert db.get(b"k%04d" % n) == b"%d" % n * 500, n

def forked(body):
    pid = os.fork()
    if pid == 0:
        signal.alarm(80)  # a child that hangs dies of it, and the parent says so
        body()
    return pid

def refuses(call):
    try:
        call()
    except meles.ForkedHandleError:
        return True
    return False
"""


@pytest.fixture
def run(program, tmp_path):
    """Runs code of a host in a process of its own."""

    def start(body):
        return program("-c", PRELUDE + body, str(tmp_path / "db"))

    return start


def expect_success(host):
    assert host.wait() == 0, host.errors()
    assert host.errors() == ""


@pytest.mark.parametrize("mode", ["process", "thread", "inline"])
def test_everything_a_child_asks_of_its_handle_is_refused(run, mode):
    host = run(
        f"mode = {mode!r}\n"
        + """
db = meles.open(path, close_timeout=60, workers=mode)
fill(db)
txn, view, cursor, batch = db.update(), db.view(), db.items(), db.write_batch()
txn.set(b"x", b"y")
batch.set(b"x", b"y")
next(cursor)
while any(w.state != "idle" for w in db.workers()): time.sleep(0.01)
before = [w.pid for w in db.workers()]

def child():
    calls = [
        lambda: db.get(b"k0001"), lambda: db[b"k0001"], lambda: b"k0001" in db,
        lambda: db.set(b"a", b"b"), lambda: db.delete(b"a"), lambda: db.get_many([b"a"]),
        db.view, db.update, db.write_batch, db.items, db.iterate, db.flush, db.sync, db.gc,
        db.flatten, db.stats, db.workers, db.verify, db.levels, db.tables, db.size, db.wait_idle,
        db.max_version, lambda: db.sequence(b"s"), lambda: db.drop_prefix(b"k"), db.drop_all,
        lambda: db.subscribe(), lambda: next(cursor), lambda: txn.get(b"k0001"), txn.commit,
        lambda: view.get(b"k0001"), batch.flush, db.__enter__, lambda: db.backup(None),
    ]
    accepted = [n for n, call in enumerate(calls) if not refuses(call)]
    assert not accepted, accepted
    assert not db.close().clean
    assert db.closed and db.health().status == "closed"
    for item in (txn, view, cursor):
        item.discard() if hasattr(item, "discard") else item.close()
    os._exit(7)

assert os.waitstatus_to_exitcode(os.waitpid(forked(child), 0)[1]) == 7
fill(db, 300)
check(db, 600)
assert txn.get(b"k0001") and next(cursor)
txn.discard(), view.discard(), batch.cancel()
assert [w.pid for w in db.workers()] == before
assert db.close().clean
"""
    )
    expect_success(host)


LEAVING = {
    "normally": "sys.exit(0)",
    "by an exception": "os.dup2(os.open(os.devnull, os.O_WRONLY), 2); raise RuntimeError",
    "without goodbye": "os._exit(0)",
    "by a signal": "os.kill(os.getpid(), signal.SIGKILL)",
    "dropping the handle": "global db, txn; del db, txn; import gc; gc.collect(); sys.exit(0)",
}


@pytest.mark.parametrize("way", LEAVING)
def test_a_child_that_leaves_harms_nothing(run, way):
    """It releases no lock, ends no worker, and changes no file."""
    host = run(
        """
db = meles.open(path, close_timeout=60)
fill(db)
while any(w.state != "idle" for w in db.workers()): time.sleep(0.01)
assert db.wait_idle(30)
txn = db.update()
txn.set(b"never", b"committed")

def listing():
    return sorted((e.name, e.stat().st_size, e.stat().st_mtime_ns) for e in os.scandir(path))

def child():
    """
        + LEAVING[way]
        + """

before, workers = listing(), [w.pid for w in db.workers()]
os.waitpid(forked(child), 0)
assert listing() == before
print("left", flush=True)
sys.stdin.readline()
txn.discard()
fill(db, 300)
db.flush(30)
check(db, 600)
assert [w.pid for w in db.workers()] == workers
assert db.close().clean
with meles.open(path, close_timeout=60, mode="read_only") as db: assert b"never" not in db
"""
    )
    host.expect("left")
    with pytest.raises(meles.LockedError):
        meles.open(Path(host.popen.args[-1]))
    host.say("go on")
    expect_success(host)


def test_a_pool_of_forked_processes_gets_an_error_and_not_the_database(run):
    host = run("""
import multiprocessing

def use(key):
    try:
        return db.get(key)
    except meles.ForkedHandleError as error:
        return str(error)

db = meles.open(path, close_timeout=60)
fill(db)
with multiprocessing.get_context("fork").Pool(2) as pool:
    answers = pool.map(use, [b"k0001"] * 10)
assert all("opened before fork" in answer for answer in answers), answers
check(db, 300)
assert db.close().clean
""")
    expect_success(host)


def test_a_child_that_lives_on_keeps_neither_lock_nor_workers(run, tmp_path):
    host = run("""
db = meles.open(path, close_timeout=60)
fill(db)
while any(w.state != "idle" for w in db.workers()): time.sleep(0.01)
told, tell = os.pipe()

def child():
    os.close(tell)
    print("child", os.getpid(), flush=True)
    os.read(told, 1)  # until the test says so, or nobody is left who could
    os._exit(0)

forked(child)
sys.stdin.readline()
os.kill(os.getpid(), signal.SIGKILL)
""")
    (child,) = host.expect("child")
    workers = [worker.pid for worker in host.workers()]
    assert len(workers) >= 3
    host.popen.kill()
    host.popen.wait()
    try:
        assert psutil.pid_exists(int(child))
        with meles.open(tmp_path / "db", workers="inline", wait=30.0) as db:
            assert db.get(b"k0299") == b"299" * 500
        wait_until(lambda: not any(map(alive, workers)), DEADLINE, "the end of all workers")
    finally:
        os.kill(int(child), signal.SIGKILL)
    host.buried()


def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_children_forked_while_the_database_opens_do_not_keep_the_lock(run, tmp_path):
    host = run("""
children, over = [], threading.Event()

def fork_all_the_time():
    while not over.is_set() and len(children) < 200:
        children.append(forked(lambda: (signal.alarm(100), time.sleep(90), os._exit(0))))

thread = threading.Thread(target=fork_all_the_time)
thread.start()
while len(children) < 3: time.sleep(0.001)
db = meles.open(path, close_timeout=60, workers="thread")
over.set()
thread.join()
fill(db)
print("children", *children, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
""")
    children = [int(word) for word in host.expect("children")]
    host.popen.wait()
    try:
        assert all(map(alive, children))
        with meles.open(tmp_path / "db", workers="inline") as db:
            assert db.get(b"k0299") == b"299" * 500
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
    host.buried()


def test_forks_at_any_moment_under_load_never_hang_a_child(run):
    """Whatever lock a thread held at the fork, the child gets its errors and ends."""
    host = run("""
db = meles.open(path, close_timeout=60, memtable_size=65536, value_log_file_size=1 << 20)
over = threading.Event()
subscription = db.subscribe(b"t", on_overflow="drop")

def write(name):
    n = 0
    while not over.is_set():
        n += 1
        with db.update() as txn:
            txn.get(b"t%d" % n)
            txn.set(b"t%d/%d" % (name, n % 50), bytes(2000))
        for _ in db.items(b"t", limit=5): pass

threads = [threading.Thread(target=write, args=(n,), daemon=True) for n in range(3)]
for thread in threads: thread.start()

def child():
    global db, txn, cursor, subscription
    assert refuses(lambda: db.get(b"t1")) and refuses(lambda: txn.get(b"t1"))
    assert refuses(lambda: next(cursor))
    assert refuses(lambda: subscription.next_change(1))
    txn.discard()
    cursor.close()
    subscription.close()
    db.close()
    del db, txn, cursor, subscription
    sys.exit(0)

for _ in range(25):
    txn, cursor = db.update(), db.items(b"t")
    status = os.waitpid(forked(child), 0)[1]
    assert os.waitstatus_to_exitcode(status) == 0, status
    txn.discard()
    cursor.close()
over.set()
for thread in threads: thread.join()
subscription.close()
assert db.verify(values=True).ok
assert db.close().clean
""")
    expect_success(host)
