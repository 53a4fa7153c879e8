# Background work that a busy interpreter does not keep waiting.
#
# Its twin is `time.sleep`, and `select`: there a thread that comes back waits until the one that runs
# is asked to stop, 5 ms later. Here the next commit that is done hands the interpreter over at once.
# It would have been stopped anyway, only less often: a compaction whose every step waits 5 ms falls
# behind writers. And the 5 ms never come where the one that runs lets go of the interpreter for a
# moment more often, to read from a socket that has something: each time the waiting one is woken,
# comes too late, and begins to wait anew. So commits also let in whoever was not heard of for 8 ms.

cdef extern from "handover.h" nogil:
    void handover_begin()
    void handover_end()
    void handover_give_back()
    void handover_rest()
    void handover_ask()
    void handover_take()
    void handover_nap(double seconds)
    bint handover_is_due()
    void handover_offer()

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
    int poll(pollfd* which, unsigned long count, int milliseconds)
    short POLLIN


def begin_background():
    """From now on commits let this thread in."""
    handover_begin()


def end_background():
    """It is a thread like any other again."""
    handover_end()


def nap(double seconds):
    """Sleep so long, then go on as soon as a commit is done."""
    with nogil:
        handover_give_back()
        handover_nap(seconds)
        handover_ask()
    handover_take()


def rest(int fd, int milliseconds):
    """Until a descriptor can be read, at most so long (-1: for ever), then go on as after `nap`."""
    cdef pollfd which
    which.fd = fd
    which.events = POLLIN
    with nogil:
        handover_rest()
        poll(&which, 1, milliseconds)            # whatever it says, the caller looks
        handover_ask()
    handover_take()


def step_aside():
    """What this thread does next needs no interpreter: a commit need not wait for its end."""
    handover_give_back()


cdef inline uint64_t handed_over(uint64_t ts) noexcept:
    """Called when a commit is done and its lock free; what it was given."""
    if handover_is_due():
        with nogil:
            handover_offer()
    return ts
