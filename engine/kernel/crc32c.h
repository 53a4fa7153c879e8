/* CRC-32C (Castagnoli), chained as zlib.crc32 chains: crc32c_extend(b, crc32c_extend(a, 0)).

   Three ways to the same sum, from the one any machine has to the fastest: tables, the instruction,
   and folding, where a register of 64 bytes is multiplied by what moves it over those in between
   (V. Gopal et al., "Fast CRC computation for generic polynomials using PCLMULQDQ", Intel 2009). All
   are checked against the crc32c library by tests/engine/kernel/test_bytes.py. */

#ifndef MELES_CRC32C_H
#define MELES_CRC32C_H

#include "bytes.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#endif

#define CRC_AHEAD 3072 /* bytes that are asked for ahead, where so many are to come */
#define CRC_SHIFT 256 /* bytes of each of the three strands that run side by side */

static uint32_t crc_bytes[8][256]; /* slicing by 8, for machines without the instruction */
static uint32_t crc_shift[4][256]; /* a register moved over CRC_SHIFT zero bytes, byte by byte */
enum { CRC_BY_TABLE, CRC_BY_INSTRUCTION, CRC_BY_FOLDING };
static int crc_way; /* the best this machine has */

/* Whether somebody left the upper halves of vector registers in use, which slows down all that
   follows. Only where `crc_way` is CRC_BY_FOLDING. */
static int upper_halves_in_use(void) {
#if defined(__x86_64__)
    uint32_t low, high, count, other;
    __cpuid_count(13, 1, low, high, count, other);
    if (!(low & 1 << 2)) return 0; /* it does not tell */
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(1));
    return (low & (1 << 2 | 1 << 6)) != 0; /* those of 32 and of 64 bytes, registers 0 to 15 */
#else
    return 0;
#endif
}

/* Modulo the polynomial; as in all of these, the lowest power is in the highest bit. */
static inline uint32_t crc_times_x(uint32_t crc) {
    return (crc >> 1) ^ (crc & 1 ? 0x82F63B78u : 0);
}

#if defined(__x86_64__)
/* Folding: what moves 16 bytes over so many, the first half and the second. Each is a bit less, as a
   product of two reflected numbers is reflected with one bit of room. */
static const unsigned crc_distance[5] = {256, 64, 48, 32, 16};
static uint64_t crc_folds[5][2];
#define CRC_FOLDED 256 /* bytes from which on it is faster: 7 ns against 15, of 1 KiB 22 against 55 */

/* x to the power n, modulo the polynomial. */
static uint32_t crc_power(unsigned n) {
    uint32_t power = 1u << 31;
    while (n--) power = crc_times_x(power);
    return power;
}
#endif

static void crc32c_prepare(void) {
    for (uint32_t n = 0; n < 256; n++) {
        uint32_t crc = n;
        for (int bit = 0; bit < 8; bit++) crc = crc_times_x(crc);
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
    if (__builtin_cpu_supports("sse4.2")) crc_way = CRC_BY_INSTRUCTION;
    if (crc_way && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("vpclmulqdq"))
        crc_way = CRC_BY_FOLDING;
    for (int n = 0; n < 5; n++) {
        unsigned bits = 8 * crc_distance[n];
        crc_folds[n][0] = (uint64_t)crc_power(bits + 63) << 32;
        crc_folds[n][1] = (uint64_t)crc_power(bits - 1) << 32;
    }
#elif defined(__ARM_FEATURE_CRC32)
    crc_way = CRC_BY_INSTRUCTION;
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

#if defined(__x86_64__)
#define CRC_FOLD(x, by)                                      \
    _mm512_xor_si512(_mm512_clmulepi64_epi128(x, by, 0x00), \
                     _mm512_clmulepi64_epi128(x, by, 0x11))

static inline __attribute__((target("avx512f"))) __m512i crc_fold_by(int n) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)crc_folds[n]));
}

#define CRC_FOLDING_TARGET target("avx512f,vpclmulqdq,sse4.2")

/* 64 bytes, copied on the way if `copies`. */
static inline __attribute__((always_inline, CRC_FOLDING_TARGET)) __m512i crc_next(
    int copies, uint8_t *to, const uint8_t *at, size_t offset) {
    __m512i next = _mm512_loadu_si512(at + offset);
    if (copies) _mm512_storeu_si512(to + offset, next);
    return next;
}

/* `size` is at least 256. `copies` is a constant, and `to` nothing where it is 0. */
static inline __attribute__((always_inline, CRC_FOLDING_TARGET)) uint32_t crc_fold(
    int copies, uint8_t *to, const uint8_t *at, size_t size, uint32_t crc) {
#define NEXT(offset) crc_next(copies, to, at, offset)
    __m512i a = NEXT(0), b = NEXT(64), c = NEXT(128), d = NEXT(192);
    __m512i by = crc_fold_by(0);
    __m512i start = _mm512_inserti32x4(_mm512_setzero_si512(), _mm_cvtsi32_si128((int)crc), 0);
    size_t n = 256;
    a = _mm512_xor_si512(a, start);
    for (; size - n >= 256; n += 256) {
        a = _mm512_xor_si512(CRC_FOLD(a, by), NEXT(n));
        b = _mm512_xor_si512(CRC_FOLD(b, by), NEXT(n + 64));
        c = _mm512_xor_si512(CRC_FOLD(c, by), NEXT(n + 128));
        d = _mm512_xor_si512(CRC_FOLD(d, by), NEXT(n + 192));
    }
    by = crc_fold_by(1);
    b = _mm512_xor_si512(CRC_FOLD(a, by), b);
    c = _mm512_xor_si512(CRC_FOLD(b, by), c);
    d = _mm512_xor_si512(CRC_FOLD(c, by), d);
    for (; size - n >= 64; n += 64) d = _mm512_xor_si512(CRC_FOLD(d, by), NEXT(n));
    /* the first three quarters over what is behind each of them */
    a = CRC_FOLD(d, _mm512_maskz_loadu_epi64(0x3F, crc_folds[2]));
    __m128i left = _mm_xor_si128(
        _mm_xor_si128(_mm512_extracti32x4_epi32(a, 0), _mm512_extracti32x4_epi32(a, 1)),
        _mm_xor_si128(_mm512_extracti32x4_epi32(a, 2), _mm512_extracti32x4_epi32(d, 3)));
    uint64_t rest = CRC_WORD(CRC_WORD(0, (uint64_t)_mm_extract_epi64(left, 0)),
                             (uint64_t)_mm_extract_epi64(left, 1));
    /* Said by hand: GCC leaves it out before a tail call, and then each SSE instruction that comes
       waits until the upper halves are put away, 60 to 80 ns a time. */
    _mm256_zeroupper();
    if (copies) at = memcpy(to + n, at + n, size - n); /* what is summed is the copy */
    else at += n;
    return crc_by_instruction(at, size - n, (uint32_t)rest);
#undef NEXT
}

__attribute__((CRC_FOLDING_TARGET)) static uint32_t crc_by_folding(
    const uint8_t *at, size_t size, uint32_t crc) {
    return crc_fold(0, NULL, at, size, crc);
}

__attribute__((CRC_FOLDING_TARGET)) static uint32_t crc_copied_by_folding(
    uint8_t *to, const uint8_t *at, size_t size, uint32_t crc) {
    return crc_fold(1, to, at, size, crc);
}
#endif

static uint32_t crc_by(int way, const uint8_t *at, size_t size, uint32_t crc) {
#if defined(__x86_64__)
    if (way >= CRC_BY_FOLDING && size >= CRC_FOLDED) return crc_by_folding(at, size, crc);
#endif
#ifdef CRC_TARGET
    if (way >= CRC_BY_INSTRUCTION) return crc_by_instruction(at, size, crc);
#endif
    (void)way;
    return crc_by_table(at, size, crc);
}

static uint32_t crc_copied_by(int way, uint8_t *to, const uint8_t *at, size_t size, uint32_t crc) {
#if defined(__x86_64__)
    if (way >= CRC_BY_FOLDING && size >= CRC_FOLDED)
        return crc_copied_by_folding(to, at, size, crc);
#endif
    return crc_by(way, memcpy(to, at, size), size, crc);
}

static uint32_t crc32c_extend(const uint8_t *at, size_t size, uint32_t crc) {
    return ~crc_by(crc_way, at, size, ~crc);
}

/* As `crc32c_extend`, copied to `to` on the way. Each byte is loaded from `at` once: what is summed is
   the copy, whatever becomes of the file meanwhile. */
static uint32_t crc32c_extend_copied(uint8_t *to, const uint8_t *at, size_t size, uint32_t crc) {
    return ~crc_copied_by(crc_way, to, at, size, ~crc);
}

#endif
