/* Handing the interpreter from a committing thread to a background one that waits for it. */

#ifndef MELES_HANDOVER_H
#define MELES_HANDOVER_H

#include <sched.h>
#include <time.h>

#define COME_NS 150000      /* longer than a thread takes to wake, if there is a processor for it */
#define COMMIT_NS 200000    /* a busy writer commits more often */
#define HOLD_NS 400000      /* nearly all steps of background work are shorter */
#define AGAIN_NS 1000000    /* who asked and did not come had no processor, and may have one soon */
#define PATIENCE_NS 8000000 /* after 5 ms the interpreter itself lets a thread in, if it does */
#define LONGEST_NS 64000000 /* in a call that lasts it misses each offer: they become fewer */

enum { NEVER, AT_ONCE }; /* else a time */
static long handover_due;     /* when a commit is to offer the interpreter */
static long handover_patience;

enum { NOBODY, OFFERED, HELD };
static int handover_state; /* of the one offer there is */

static __thread int handover_background; /* whether this thread is one that commits let in */

static inline long handover_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000L + now.tv_nsec;
}
static inline void handover_set_due(long when) {
    __atomic_store_n(&handover_due, when, __ATOMIC_RELAXED);
}
static inline void handover_be_patient(long patience) {
    __atomic_store_n(&handover_patience, patience, __ATOMIC_RELAXED);
    handover_set_due(handover_now() + patience);
}
static inline int handover_step(int from, int to) {
    return __atomic_compare_exchange_n(&handover_state, &from, to, 0, __ATOMIC_RELAXED,
                                       __ATOMIC_RELAXED);
}
static inline int handover_lasts(int state, long most) {
    long begun = handover_now();
    do {
        sched_yield();
        if (__atomic_load_n(&handover_state, __ATOMIC_RELAXED) != state) return 0;
    } while (handover_now() - begun < most);
    return 1;
}

/* -- a background thread; on any other these do nothing ---------------------------------------- */

/* It has the interpreter, and if that is taken from it, nobody will know that it waits. */
static inline void handover_take(void) {
    if (!handover_background) return;
    handover_be_patient(PATIENCE_NS);
    handover_step(OFFERED, HELD);
}
static inline void handover_begin(void) {
    handover_background = 1;
    handover_take();
}
/* It does without the interpreter for a while. Nobody knows when it is back, but for an `ask`. */
static inline void handover_give_back(void) {
    if (!handover_background) return;
    handover_be_patient(PATIENCE_NS);
    handover_step(HELD, NOBODY);
}
/* It has nothing to do. */
static inline void handover_rest(void) {
    if (!handover_background) return;
    handover_set_due(NEVER);
    handover_step(HELD, NOBODY);
}
static inline void handover_end(void) {
    handover_rest();
    handover_background = 0;
}
/* Without the interpreter, awake: a thread asleep comes 50 to 100 us after it is called. */
static inline void handover_ask(void) {
    if (!handover_background) return;
    handover_set_due(AT_ONCE);
    handover_lasts(NOBODY, COMMIT_NS);
}
static inline void handover_nap(double seconds) {
    struct timespec left;
    left.tv_sec = (time_t)seconds;
    left.tv_nsec = (long)((seconds - (double)left.tv_sec) * 1e9);
    nanosleep(&left, NULL);
}

/* -- a committing thread ----------------------------------------------------------------------- */

static inline int handover_is_due(void) {
    long due = __atomic_load_n(&handover_due, __ATOMIC_RELAXED);
    return due != NEVER && (due == AT_ONCE || handover_now() >= due);
}

static inline long handover_longer(void) {
    long patience = 2 * __atomic_load_n(&handover_patience, __ATOMIC_RELAXED);
    return patience < LONGEST_NS ? patience : LONGEST_NS;
}

/* Without the interpreter: until a background thread had it, or does not come. Awake, as falling
   asleep and waking takes as long as most steps. */
static inline void handover_offer(void) {
    long asked = __atomic_load_n(&handover_due, __ATOMIC_RELAXED) == AT_ONCE;
    if (!handover_step(NOBODY, OFFERED)) return;
    if (asked)
        handover_set_due(handover_now() + AGAIN_NS);
    else
        handover_be_patient(handover_longer());
    if (handover_lasts(OFFERED, COME_NS))
        handover_step(OFFERED, NOBODY);
    else
        handover_lasts(HELD, HOLD_NS);
}

#endif
