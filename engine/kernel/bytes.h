/* Bytes in C: unaligned little-endian access, XXH64, and the hash of the memtable's keys.

   Little-endian machines only; `_native.pyx` refuses others when it is imported. Everything here is
   checked against the crc32c and xxhash libraries by tests/engine/kernel/test_bytes.py. */

#ifndef MELES_BYTES_H
#define MELES_BYTES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

static inline uint16_t load16(const uint8_t *at) { uint16_t v; memcpy(&v, at, 2); return v; }
static inline uint32_t load32(const uint8_t *at) { uint32_t v; memcpy(&v, at, 4); return v; }
static inline uint64_t load64(const uint8_t *at) { uint64_t v; memcpy(&v, at, 8); return v; }
static inline void store16(uint8_t *at, uint16_t v) { memcpy(at, &v, 2); }
static inline void store32(uint8_t *at, uint32_t v) { memcpy(at, &v, 4); }
static inline void store64(uint8_t *at, uint64_t v) { memcpy(at, &v, 8); }
/* Have the processor fetch what will be read soon; any address is allowed. The empty statement keeps
   a function that does nothing else: to the compiler fetching has no effect. */
static inline void prefetch(const void *at) {
    __builtin_prefetch(at);
    __asm__ volatile("");
}
/* For later: as near as the second cache, which takes more at once. */
static inline void prefetch_soon(const uint8_t *at, size_t size) {
    for (size_t line = 0; line < size; line += 64) {
        __builtin_prefetch(at + line, 0, 2);
        __asm__ volatile("");
    }
}
static inline void prefetch_all(const uint8_t *at, size_t size) {
    for (size_t line = 0; line < size; line += 64) prefetch(at + line);
    prefetch(at + size - 1);
}
static inline uint64_t swapped64(uint64_t v) { return __builtin_bswap64(v); }

/* One aligned store that a follower of a mapped file sees whole, after everything before it. */
static inline void publish64(uint8_t *at, uint64_t v) {
    __atomic_store_n((uint64_t *)(void *)at, v, __ATOMIC_RELEASE);
}

static inline int little_endian(void) { uint16_t one = 1; uint8_t low; memcpy(&low, &one, 1); return low; }

/* Minutes or so: how long a block that was checked counts as checked. Never 0. */
static inline uint8_t check_epoch(void) {
    struct timespec now;
#ifdef CLOCK_MONOTONIC_COARSE
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
#else
    clock_gettime(CLOCK_MONOTONIC, &now);
#endif
    return (uint8_t)(1 + (now.tv_sec >> 6) % 255);
}

/* Seconds, as time.monotonic. */
static inline double monotonic_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* -- XXH64 with seed 0, as its specification has it: the hash of the tables' filters ------------- */

#define XX1 0x9E3779B185EBCA87ull
#define XX2 0xC2B2AE3D27D4EB4Full
#define XX3 0x165667B19E3779F9ull
#define XX4 0x85EBCA77C2B2AE63ull
#define XX5 0x27D4EB2F165667C5ull

static inline uint64_t rotated(uint64_t v, int by) { return v << by | v >> (64 - by); }
static inline uint64_t xx_round(uint64_t lane, uint64_t word) {
    return rotated(lane + word * XX2, 31) * XX1;
}
static inline uint64_t xx_merge(uint64_t hash, uint64_t lane) {
    return (hash ^ xx_round(0, lane)) * XX1 + XX4;
}

static uint64_t xxh64(const uint8_t *at, size_t size) {
    const uint8_t *end = at + size;
    uint64_t hash = XX5;
    if (size >= 32) {
        uint64_t a = XX1 + XX2, b = XX2, c = 0, d = 0 - XX1;
        for (; end - at >= 32; at += 32) {
            a = xx_round(a, load64(at));
            b = xx_round(b, load64(at + 8));
            c = xx_round(c, load64(at + 16));
            d = xx_round(d, load64(at + 24));
        }
        hash = rotated(a, 1) + rotated(b, 7) + rotated(c, 12) + rotated(d, 18);
        hash = xx_merge(xx_merge(xx_merge(xx_merge(hash, a), b), c), d);
    }
    hash += size;
    for (; end - at >= 8; at += 8) hash = rotated(hash ^ xx_round(0, load64(at)), 27) * XX1 + XX4;
    if (end - at >= 4) {
        hash = rotated(hash ^ load32(at) * XX1, 23) * XX2 + XX3;
        at += 4;
    }
    for (; at < end; at++) hash = rotated(hash ^ *at * XX5, 11) * XX1;
    hash = (hash ^ hash >> 33) * XX2;
    hash = (hash ^ hash >> 29) * XX3;
    return hash ^ hash >> 32;
}

/* -- the memtable's hash: seeded per process, so that nobody can choose keys that collide -------- */

static inline uint64_t folded_product(uint64_t a, uint64_t b) {
    __uint128_t product = (__uint128_t)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint32_t key_tag(const uint8_t *at, size_t size, uint64_t seed) {
    uint64_t hash = seed ^ size * XX1;
    for (; size >= 16; at += 16, size -= 16)
        hash = folded_product(load64(at) ^ XX2 ^ hash, load64(at + 8) ^ XX3 ^ seed);
    if (size >= 8) {
        hash = folded_product(load64(at) ^ XX4, hash ^ XX5);
        at += 8;
        size -= 8;
    }
    uint64_t rest = 0;
    memcpy(&rest, at, size);
    return (uint32_t)folded_product(rest ^ XX2 ^ seed, hash ^ XX1);
}

/* Order of two keys as bytes.__lt__ has it: negative, 0 or positive. */
static inline int key_compare(const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size) {
    int order = memcmp(a, b, a_size < b_size ? a_size : b_size);
    return order ? order : (a_size > b_size) - (a_size < b_size);
}

#endif
