# Background work that a busy interpreter does not keep waiting.
#
# Its twin is `time.sleep`: there a thread that comes back waits until the one that runs is asked to
# stop, 5 ms later. Here the next commit that is done hands the interpreter over at once. It would have
# been stopped anyway, only less often: a compaction whose every step waits 5 ms falls behind writers.

cdef extern from "handover.h" nogil:
    bint handover_asked()
    void handover_ask_awake()
    void handover_taken()
    void handover_given_back()
    void handover_nap(double seconds)
    void handover_offer()


def nap(double seconds):
    """Sleep so long, then go on as soon as a commit is done."""
    with nogil:
        handover_given_back()
        handover_nap(seconds)
        handover_ask_awake()
    handover_taken()


def step_aside():
    """What this thread does next needs no interpreter: a commit need not wait for its end."""
    handover_given_back()


cdef inline uint64_t handed_over(uint64_t ts) noexcept:
    """Called when a commit is done and its lock free; what it was given."""
    if handover_asked():
        with nogil:
            handover_offer()
    return ts
