/* Where a key falls among sorted ones, found in eight bytes of each.

   What all of them begin with is left out; of the rest the first eight bytes stand in a row as numbers,
   sixteen to a group, so that a search reads lines that are full of them, and keys only where numbers
   are equal. Above the groups stands the last number of each: of 500 keys that is 256 bytes, which are
   asked for at once. So a search waits for memory twice, where halving 500 keys does nine times. (A
   B+tree with nodes of truncated keys: R. Bayer, K. Unterauer, "Prefix B-trees", TODS 1977.) */

#ifndef MELES_KEY_HEADS_H
#define MELES_KEY_HEADS_H

#include <stdlib.h>

#include "bytes.h"

#define HEADS_GROUP 16
#define HEADS_ALIGNED 64
#define HEADS_ASKED 32 /* lines at most */

typedef struct {
    uint64_t heads[HEADS_GROUP]; /* and the highest number there is, behind the last key's */
    uint32_t places[HEADS_GROUP], sizes[HEADS_GROUP]; /* of what the keys lead to */
} HeadGroup;

typedef struct {
    uint64_t *tops; /* the last head of each group; what is allocated */
    HeadGroup *groups;
    size_t count, group_count;
    size_t bytes;          /* that are allocated */
    const uint8_t *shared; /* lent */
    size_t shared_size;
} KeyHeads;

/* The first eight bytes as a number that is ordered as they are; zeros where there are fewer. A number
   that is smaller belongs to a smaller key, equal ones to any two. */
static inline uint64_t head_of(const uint8_t *at, size_t size) {
    uint64_t head = 0;
    if (size >= 8) head = load64(at);
    else memcpy(&head, at, size);
    return swapped64(head);
}

/* Room for `count` keys, at least one, between `first` and `last`, which are lent; 0 without memory. */
static inline int heads_begin(KeyHeads *it, size_t count, const uint8_t *first, size_t first_size,
                              const uint8_t *last, size_t last_size) {
    size_t most = first_size < last_size ? first_size : last_size, tops;
    it->count = count;
    it->group_count = (count + HEADS_GROUP - 1) / HEADS_GROUP;
    it->shared = first;
    for (it->shared_size = 0; it->shared_size < most; it->shared_size++)
        if (first[it->shared_size] != last[it->shared_size]) break;
    tops = (it->group_count * 8 + HEADS_ALIGNED - 1) / HEADS_ALIGNED * HEADS_ALIGNED;
    it->bytes = tops + it->group_count * sizeof(HeadGroup);
    it->tops = aligned_alloc(HEADS_ALIGNED, it->bytes);
    if (!it->tops) return 0;
    it->groups = (HeadGroup *)((uint8_t *)it->tops + tops);
    memset(it->tops, 0xFF, it->bytes);
    return 1;
}

/* The keys are given in order, with where what they lead to lies. */
static inline void heads_set(KeyHeads *it, size_t nth, const uint8_t *key, size_t size,
                             uint32_t place, uint32_t length) {
    HeadGroup *group = it->groups + nth / HEADS_GROUP;
    size_t left = size > it->shared_size ? size - it->shared_size : 0;
    uint64_t head = head_of(key + (size - left), left);
    group->heads[nth % HEADS_GROUP] = head;
    group->places[nth % HEADS_GROUP] = place;
    group->sizes[nth % HEADS_GROUP] = length;
    it->tops[nth / HEADS_GROUP] = head;
}

static inline void heads_free(KeyHeads *it) { free(it->tops); }

static inline uint32_t heads_place(const KeyHeads *it, size_t nth) {
    return it->groups[nth / HEADS_GROUP].places[nth % HEADS_GROUP];
}

static inline uint32_t heads_size(const KeyHeads *it, size_t nth) {
    return it->groups[nth / HEADS_GROUP].sizes[nth % HEADS_GROUP];
}

/* Have the processor fetch what a search reads first: all tops of a small table, of a large one those
   that the first halvings look at. */
static inline void heads_ask(const KeyHeads *it) {
    size_t step = it->group_count <= HEADS_ASKED * 8 ? 8 : it->group_count / HEADS_ASKED;
    for (size_t n = step == 8 ? 0 : step - 1; n < it->group_count; n += step)
        prefetch(it->tops + n);
}

/* How many of `count` numbers, which are in order, are less. No branch depends on them. */
static inline size_t heads_less(const uint64_t *heads, size_t count, uint64_t head) {
    const uint64_t *from = heads;
    for (; count > 1; count -= count / 2) from += from[count / 2 - 1] < head ? count / 2 : 0;
    return (size_t)(from - heads) + (*from < head);
}

static inline size_t heads_from(const KeyHeads *it, uint64_t head) {
    size_t nth = heads_less(it->tops, it->group_count, head);
    if (nth == it->group_count) return it->count;
    prefetch_all((const uint8_t *)(it->groups + nth), sizeof(HeadGroup));
    return nth * HEADS_GROUP + heads_less(it->groups[nth].heads, HEADS_GROUP, head);
}

/* The first key that may be >= `key`. All before `end` may be, from there on all are greater. */
static inline size_t heads_find(const KeyHeads *it, const uint8_t *key, size_t size, size_t *end) {
    size_t most = size < it->shared_size ? size : it->shared_size, first;
    int order = memcmp(key, it->shared, most);
    uint64_t head;
    if (order || size < it->shared_size) return *end = order > 0 ? it->count : 0;
    head = head_of(key + most, size - most);
    first = *end = heads_from(it, head);
    if (first < it->count && it->groups[first / HEADS_GROUP].heads[first % HEADS_GROUP] == head)
        *end = head == UINT64_MAX ? it->count : heads_from(it, head + 1);
    return first;
}

#endif
