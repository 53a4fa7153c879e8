/* Handing the interpreter from a committing thread to a background one that waits for it. */

#ifndef MELES_HANDOVER_H
#define MELES_HANDOVER_H

#include <sched.h>
#include <time.h>

#define COME_NS 150000 /* longer than a thread takes to wake, if there is a processor for it */
#define COMMIT_NS 200000 /* a busy writer commits more often */
#define HOLD_NS 400000 /* nearly all steps of background work are shorter */

enum { NOBODY, ASKED, OFFERED, HELD };
static int handover_state; /* of the one request there is; a second one is served by the 5 ms */

static inline int handover_step(int from, int to) {
    return __atomic_compare_exchange_n(&handover_state, &from, to, 0, __ATOMIC_RELAXED,
                                       __ATOMIC_RELAXED);
}
static inline int handover_asked(void) {
    return __atomic_load_n(&handover_state, __ATOMIC_RELAXED) == ASKED;
}
static inline void handover_ask(void) { __atomic_store_n(&handover_state, ASKED, __ATOMIC_RELAXED); }
static inline void handover_taken(void) {
    if (!handover_step(OFFERED, HELD)) handover_step(ASKED, NOBODY);
}
static inline void handover_given_back(void) { handover_step(HELD, NOBODY); }

static inline void handover_nap(double seconds) {
    struct timespec left;
    left.tv_sec = (time_t)seconds;
    left.tv_nsec = (long)((seconds - (double)left.tv_sec) * 1e9);
    nanosleep(&left, NULL);
}

static inline int handover_lasts(int wanted, long most) {
    struct timespec begun, now;
    clock_gettime(CLOCK_MONOTONIC, &begun);
    do {
        sched_yield();
        if (__atomic_load_n(&handover_state, __ATOMIC_RELAXED) != wanted) return 0;
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((now.tv_sec - begun.tv_sec) * 1000000000L + (now.tv_nsec - begun.tv_nsec) < most);
    return 1;
}

/* Without the interpreter, awake: a thread asleep comes 50 to 100 us after it is called. */
static inline void handover_ask_awake(void) {
    handover_ask();
    handover_lasts(ASKED, COMMIT_NS);
}

/* Without the interpreter: until whoever asked had it. One that does not come is not waited for
   again: it has no processor. Awake, as falling asleep and waking takes as long as most steps. */
static inline void handover_offer(void) {
    if (!handover_step(ASKED, OFFERED)) return;
    if (handover_lasts(OFFERED, COME_NS))
        handover_step(OFFERED, NOBODY);
    else
        handover_lasts(HELD, HOLD_NS);
}

#endif
