/* Bytes in C: unaligned little-endian access, CRC-32C, XXH64, and the hash of the memtable's keys.

   Little-endian machines only; `_native.pyx` refuses others when it is imported. Everything here is
   checked against the crc32c and xxhash libraries by tests/engine/kernel/test_bytes.py. */

#ifndef MELES_BYTES_H
#define MELES_BYTES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#if defined(__x86_64__)
#include <nmmintrin.h>
#elif defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#endif

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
    __builtin_prefetch(at + size - 1, 0, 2);
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

/* -- CRC-32C (Castagnoli), chained as zlib.crc32 chains: crc32c_extend(b, crc32c_extend(a, 0)) --- */

#define CRC_AHEAD 3072 /* bytes that are asked for ahead, where so many are to come */
#define CRC_SHIFT 256 /* bytes of each of the three strands that run side by side */

static uint32_t crc_bytes[8][256]; /* slicing by 8, for machines without the instruction */
static uint32_t crc_shift[4][256]; /* a register moved over CRC_SHIFT zero bytes, byte by byte */
static int crc_hardware;

static void crc32c_prepare(void) {
    for (uint32_t n = 0; n < 256; n++) {
        uint32_t crc = n;
        for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ (crc & 1 ? 0x82F63B78u : 0);
        crc_bytes[0][n] = crc;
    }
    for (uint32_t n = 0; n < 256; n++)
        for (int k = 1; k < 8; k++)
            crc_bytes[k][n] = (crc_bytes[k - 1][n] >> 8) ^ crc_bytes[0][crc_bytes[k - 1][n] & 255];
    uint32_t moved[32];
    for (int bit = 0; bit < 32; bit++) {
        uint32_t crc = 1u << bit;
        for (int n = 0; n < CRC_SHIFT; n++) crc = (crc >> 8) ^ crc_bytes[0][crc & 255];
        moved[bit] = crc;
    }
    for (int k = 0; k < 4; k++)
        for (uint32_t n = 0; n < 256; n++) {
            uint32_t crc = 0;
            for (int bit = 0; bit < 8; bit++)
                if (n >> bit & 1) crc ^= moved[8 * k + bit];
            crc_shift[k][n] = crc;
        }
#if defined(__x86_64__)
    __builtin_cpu_init();
    crc_hardware = __builtin_cpu_supports("sse4.2");
#elif defined(__ARM_FEATURE_CRC32)
    crc_hardware = 1;
#endif
}

static uint32_t crc_by_table(const uint8_t *at, size_t size, uint32_t crc) {
    for (; size >= 8; at += 8, size -= 8) {
        uint64_t word = load64(at) ^ crc;
        crc = crc_bytes[7][word & 255] ^ crc_bytes[6][word >> 8 & 255] ^
              crc_bytes[5][word >> 16 & 255] ^ crc_bytes[4][word >> 24 & 255] ^
              crc_bytes[3][word >> 32 & 255] ^ crc_bytes[2][word >> 40 & 255] ^
              crc_bytes[1][word >> 48 & 255] ^ crc_bytes[0][word >> 56];
    }
    for (; size; at++, size--) crc = (crc >> 8) ^ crc_bytes[0][(crc ^ *at) & 255];
    return crc;
}

#if defined(__x86_64__)
#define CRC_TARGET __attribute__((target("sse4.2")))
#define CRC_WORD(crc, word) _mm_crc32_u64(crc, word)
#define CRC_BYTE(crc, byte) _mm_crc32_u8((uint32_t)(crc), byte)
#elif defined(__ARM_FEATURE_CRC32)
#define CRC_TARGET
#define CRC_WORD(crc, word) __crc32cd((uint32_t)(crc), word)
#define CRC_BYTE(crc, byte) __crc32cb((uint32_t)(crc), byte)
#endif

#ifdef CRC_TARGET
static inline uint32_t crc_moved(uint32_t crc) {
    return crc_shift[0][crc & 255] ^ crc_shift[1][crc >> 8 & 255] ^
           crc_shift[2][crc >> 16 & 255] ^ crc_shift[3][crc >> 24];
}

CRC_TARGET static uint32_t crc_by_instruction(const uint8_t *at, size_t size, uint32_t start) {
    uint64_t crc = start;
    /* The instruction takes three cycles and one can start in each: three strands side by side. */
    while (size >= 3 * CRC_SHIFT) {
        uint64_t second = 0, third = 0;
        if (size >= CRC_AHEAD + 3 * CRC_SHIFT) /* three strands are too much for its own guess */
            for (int n = 0; n < 3 * CRC_SHIFT; n += 64) __builtin_prefetch(at + CRC_AHEAD + n);
        for (int n = 0; n < CRC_SHIFT; n += 8) {
            crc = CRC_WORD(crc, load64(at + n));
            second = CRC_WORD(second, load64(at + CRC_SHIFT + n));
            third = CRC_WORD(third, load64(at + 2 * CRC_SHIFT + n));
        }
        crc = crc_moved(crc_moved((uint32_t)crc) ^ (uint32_t)second) ^ (uint32_t)third;
        at += 3 * CRC_SHIFT;
        size -= 3 * CRC_SHIFT;
    }
    for (; size >= 8; at += 8, size -= 8) crc = CRC_WORD(crc, load64(at));
    for (; size; at++, size--) crc = CRC_BYTE(crc, *at);
    return (uint32_t)crc;
}
#endif

static uint32_t crc32c_extend(const uint8_t *at, size_t size, uint32_t crc) {
    crc = ~crc;
#ifdef CRC_TARGET
    if (crc_hardware) return ~crc_by_instruction(at, size, crc);
#endif
    return ~crc_by_table(at, size, crc);
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
