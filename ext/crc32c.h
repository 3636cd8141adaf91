/*
 * CRC-32C (Castagnoli, reflected), header only, no Python.
 *
 *   uint32_t mars_crc32c(uint32_t crc, const void *data, size_t len)
 *
 * Start with 0, hand the result in again to go on: crc(crc(0, a), b) = crc(0, ab). crc of "123456789" is 0xe3069283.
 *
 * Promises
 *  - Every kernel gives the same bits for every length and alignment. Kernel 0 (scalar, eight tables) is the oracle.
 *  - State is static, so each extension that includes this header has its own; it is made by a constructor when the
 *    library is loaded, before any thread can call, and is a single pointer afterwards, read and written atomically.
 *  - The default is the fastest kernel this processor has (order from bench/bench_sum.py). The environment variable
 *    MARS_CRC_KERNEL=scalar|sse42|avx512 is a demand: mars_crc32c_env() returns -1 when it cannot be met, and the
 *    extension's module code must then refuse to load. Nothing falls back silently.
 *
 * Arithmetic used below: polynomials over GF(2) are kept bit reversed, so bit i of a w-bit value is the coefficient of
 * x^(w-1-i). The carry-less product of two reversed values therefore comes out multiplied by x once more than wanted
 * (64-bit values in 128 bits), which is why the exponents of all folding constants are one less than the distance.
 */
#ifndef MARS_CRC32C_H
#define MARS_CRC32C_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define MARS_CRC32C_X86 1
#endif

enum { MARS_CRC32C_SCALAR = 0, MARS_CRC32C_SSE42 = 1, MARS_CRC32C_AVX512 = 2, MARS_CRC32C_KERNELS = 3 };

#define MARS_CRC32C_POLY 0x82f63b78u    /* x^32 + ... reversed, the x^32 term left out */
#define MARS_CRC32C_LONG 1360           /* bytes of one of three streams: 3 * 1360 + 16 = 4096 */
#define MARS_CRC32C_SHORT 168           /* 3 * 168 + 8 = 512 */

typedef uint32_t (*mars_crc32c_fn)(uint32_t crc, const unsigned char *p, size_t len);

static uint32_t mars_crc32c_table[8][256];
static mars_crc32c_fn mars_crc32c_current;
static int mars_crc32c_env_refused;

static inline uint64_t mars_crc32c_le64(const unsigned char *p)
{
    uint64_t v;

    memcpy(&v, p, sizeof v);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    v = __builtin_bswap64(v);
#endif
    return v;
}

/* Kernels take and give the raw register: no inversion before or after. */
static uint32_t mars_crc32c_scalar(uint32_t crc, const unsigned char *p, size_t len)
{
    const uint32_t (*t)[256] = (const uint32_t (*)[256])mars_crc32c_table;

    for (; len >= 8; p += 8, len -= 8) {
        uint64_t v = mars_crc32c_le64(p) ^ crc;
        crc = t[7][v & 255] ^ t[6][(v >> 8) & 255] ^ t[5][(v >> 16) & 255] ^ t[4][(v >> 24) & 255]
            ^ t[3][(v >> 32) & 255] ^ t[2][(v >> 40) & 255] ^ t[1][(v >> 48) & 255] ^ t[0][v >> 56];
    }
    for (; len; len--)
        crc = t[0][(crc ^ *p++) & 255] ^ (crc >> 8);
    return crc;
}

static void mars_crc32c_make_tables(void)
{
    for (unsigned i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int bit = 0; bit < 8; bit++)
            c = (c >> 1) ^ (c & 1 ? MARS_CRC32C_POLY : 0);
        mars_crc32c_table[0][i] = c;
    }
    for (unsigned i = 0; i < 256; i++)
        for (int k = 1; k < 8; k++) {
            uint32_t c = mars_crc32c_table[k - 1][i];
            mars_crc32c_table[k][i] = mars_crc32c_table[0][c & 255] ^ (c >> 8);
        }
}

#ifdef MARS_CRC32C_X86

/* x^n modulo the polynomial, as a reversed 32-bit value; at start only. */
static uint32_t mars_crc32c_xpow(unsigned n)
{
    uint32_t r = 0x80000000u;

    while (n--)
        r = (r >> 1) ^ (r & 1 ? MARS_CRC32C_POLY : 0);
    return r;
}

/* Moves a register over n bytes: n = LONG, 2 LONG, SHORT, 2 SHORT. */
static uint64_t mars_crc32c_move[4];
/* Folding constants, two 64-bit halves for each distance in bytes: 256, 64, and 48, 32, 16 for the end. */
static uint64_t mars_crc32c_fold256[2], mars_crc32c_fold64[2], mars_crc32c_fold_end[8];

static void mars_crc32c_fold_pair(uint64_t *pair, unsigned bytes)
{
    pair[0] = (uint64_t)mars_crc32c_xpow(8 * bytes + 63) << 32;
    pair[1] = (uint64_t)mars_crc32c_xpow(8 * bytes - 1) << 32;
}

static void mars_crc32c_make_constants(void)
{
    /* register times constant: 63 bits, and the crc instruction adds x^32; together x^33 */
    mars_crc32c_move[0] = mars_crc32c_xpow(8 * MARS_CRC32C_LONG - 33);
    mars_crc32c_move[1] = mars_crc32c_xpow(16 * MARS_CRC32C_LONG - 33);
    mars_crc32c_move[2] = mars_crc32c_xpow(8 * MARS_CRC32C_SHORT - 33);
    mars_crc32c_move[3] = mars_crc32c_xpow(16 * MARS_CRC32C_SHORT - 33);
    mars_crc32c_fold_pair(mars_crc32c_fold256, 256);
    mars_crc32c_fold_pair(mars_crc32c_fold64, 64);
    mars_crc32c_fold_pair(mars_crc32c_fold_end, 48);
    mars_crc32c_fold_pair(mars_crc32c_fold_end + 2, 32);
    mars_crc32c_fold_pair(mars_crc32c_fold_end + 4, 16);
    mars_crc32c_fold_end[6] = mars_crc32c_fold_end[7] = 0;  /* the last lane stays where it is */
}

#define MARS_CRC32C_T42 __attribute__((target("sse4.2,pclmul")))

MARS_CRC32C_T42 static inline uint32_t mars_crc32c_moved(uint32_t crc, uint64_t constant)
{
    __m128i product = _mm_clmulepi64_si128(_mm_cvtsi64_si128(crc), _mm_cvtsi64_si128((long long)constant), 0);

    return (uint32_t)_mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(product));
}

/* Three independent streams of one size, because the crc instruction has latency 3 and throughput 1. */
MARS_CRC32C_T42 static inline uint32_t mars_crc32c_three(uint32_t crc, const unsigned char *p, size_t size,
                                                         const uint64_t *move)
{
    uint64_t a = crc, b = 0, c = 0;

    for (size_t i = 0; i < size; i += 8) {
        a = _mm_crc32_u64(a, mars_crc32c_le64(p + i));
        b = _mm_crc32_u64(b, mars_crc32c_le64(p + size + i));
        c = _mm_crc32_u64(c, mars_crc32c_le64(p + 2 * size + i));
    }
    return mars_crc32c_moved((uint32_t)a, move[1]) ^ mars_crc32c_moved((uint32_t)b, move[0]) ^ (uint32_t)c;
}

MARS_CRC32C_T42 static uint32_t mars_crc32c_sse42(uint32_t crc, const unsigned char *p, size_t len)
{
    uint64_t c;

    for (; len >= 3 * MARS_CRC32C_LONG; p += 3 * MARS_CRC32C_LONG, len -= 3 * MARS_CRC32C_LONG)
        crc = mars_crc32c_three(crc, p, MARS_CRC32C_LONG, mars_crc32c_move);
    for (; len >= 3 * MARS_CRC32C_SHORT; p += 3 * MARS_CRC32C_SHORT, len -= 3 * MARS_CRC32C_SHORT)
        crc = mars_crc32c_three(crc, p, MARS_CRC32C_SHORT, mars_crc32c_move + 2);
    c = crc;
    for (; len >= 8; p += 8, len -= 8)
        c = _mm_crc32_u64(c, mars_crc32c_le64(p));
    crc = (uint32_t)c;
    for (; len; len--)
        crc = _mm_crc32_u8(crc, *p++);
    return crc;
}

#define MARS_CRC32C_T512 __attribute__((target("avx512f,vpclmulqdq,sse4.2,pclmul")))

/* Each 128-bit lane of acc, moved over the constant's distance, plus the data that stand there. */
MARS_CRC32C_T512 static inline __m512i mars_crc32c_fold(__m512i acc, __m512i constant, __m512i data)
{
    return _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(acc, constant, 0x00),
                                     _mm512_clmulepi64_epi128(acc, constant, 0x11), data, 0x96);
}

MARS_CRC32C_T512 static inline __m512i mars_crc32c_both(const uint64_t *pair)
{
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)pair));
}

/* Four lanes into one, and that through the crc instruction. */
MARS_CRC32C_T512 static inline uint32_t mars_crc32c_reduce(__m512i acc)
{
    __m512i constant = _mm512_loadu_si512(mars_crc32c_fold_end);
    __m512i moved = mars_crc32c_fold(acc, constant, _mm512_setzero_si512());
    __m128i x = _mm512_extracti32x4_epi32(acc, 3);
    uint64_t c;

    x = _mm_xor_si128(x, _mm512_castsi512_si128(moved));
    x = _mm_xor_si128(x, _mm512_extracti32x4_epi32(moved, 1));
    x = _mm_xor_si128(x, _mm512_extracti32x4_epi32(moved, 2));
    c = _mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(x));
    return (uint32_t)_mm_crc32_u64(c, (uint64_t)_mm_extract_epi64(x, 1));
}

MARS_CRC32C_T512 static uint32_t mars_crc32c_avx512(uint32_t crc, const unsigned char *p, size_t len)
{
    __m512i constant, a, b, c, d;

    if (len < 512)      /* too short to pay for setting up and folding down */
        return mars_crc32c_sse42(crc, p, len);
    constant = mars_crc32c_both(mars_crc32c_fold256);
    a = _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc)));
    b = _mm512_loadu_si512(p + 64);
    c = _mm512_loadu_si512(p + 128);
    d = _mm512_loadu_si512(p + 192);
    for (p += 256, len -= 256; len >= 256; p += 256, len -= 256) {
        a = mars_crc32c_fold(a, constant, _mm512_loadu_si512(p));
        b = mars_crc32c_fold(b, constant, _mm512_loadu_si512(p + 64));
        c = mars_crc32c_fold(c, constant, _mm512_loadu_si512(p + 128));
        d = mars_crc32c_fold(d, constant, _mm512_loadu_si512(p + 192));
    }
    constant = mars_crc32c_both(mars_crc32c_fold64);
    d = mars_crc32c_fold(mars_crc32c_fold(mars_crc32c_fold(a, constant, b), constant, c), constant, d);
    for (; len >= 64; p += 64, len -= 64)
        d = mars_crc32c_fold(d, constant, _mm512_loadu_si512(p));
    return mars_crc32c_sse42(mars_crc32c_reduce(d), p, len);
}

#endif /* MARS_CRC32C_X86 */

/* The kernel's function, or NULL if the processor cannot run it. */
static mars_crc32c_fn mars_crc32c_kernel_fn(int id)
{
    if (id == MARS_CRC32C_SCALAR)
        return mars_crc32c_scalar;
#ifdef MARS_CRC32C_X86
    int sse42 = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul");
    if (id == MARS_CRC32C_SSE42 && sse42)
        return mars_crc32c_sse42;
    if (id == MARS_CRC32C_AVX512 && sse42 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("vpclmulqdq"))
        return mars_crc32c_avx512;
#endif
    return NULL;
}

__attribute__((unused)) static const char *mars_crc32c_name(int id)
{
    static const char *const names[MARS_CRC32C_KERNELS] = {"scalar", "sse42", "avx512"};

    return id >= 0 && id < MARS_CRC32C_KERNELS ? names[id] : NULL;
}

/* 1 = this processor can run kernel id. */
__attribute__((unused)) static int mars_crc32c_usable(int id)
{
    return mars_crc32c_kernel_fn(id) != NULL;
}

/* From now on kernel id for all callers in this extension; -1 = unknown or not usable here, nothing changed. */
__attribute__((unused)) static int mars_crc32c_select(int id)
{
    mars_crc32c_fn fn = mars_crc32c_kernel_fn(id);

    if (!fn)
        return -1;
    __atomic_store_n(&mars_crc32c_current, fn, __ATOMIC_RELAXED);
    return 0;
}

/* The kernel in use. */
__attribute__((unused)) static int mars_crc32c_selected(void)
{
    mars_crc32c_fn fn = __atomic_load_n(&mars_crc32c_current, __ATOMIC_RELAXED);
    int id = MARS_CRC32C_KERNELS - 1;

    while (id > 0 && mars_crc32c_kernel_fn(id) != fn)
        id--;
    return id;
}

/* 0 = MARS_CRC_KERNEL is not set or is obeyed; -1 = it demands what is not here: refuse to load. */
__attribute__((unused)) static int mars_crc32c_env(void)
{
    return mars_crc32c_env_refused ? -1 : 0;
}

__attribute__((constructor)) static void mars_crc32c_start(void)
{
    const char *demand = getenv("MARS_CRC_KERNEL");
    int id = MARS_CRC32C_KERNELS - 1;

    mars_crc32c_make_tables();
#ifdef MARS_CRC32C_X86
    __builtin_cpu_init();
    mars_crc32c_make_constants();
#endif
    while (mars_crc32c_select(id) < 0)      /* the faster the higher; 0 is always there */
        id--;
    if (!demand || !*demand)
        return;
    for (id = 0; id < MARS_CRC32C_KERNELS; id++)
        if (!strcmp(demand, mars_crc32c_name(id)) && mars_crc32c_select(id) == 0)
            return;
    mars_crc32c_env_refused = 1;
}

__attribute__((unused)) static inline uint32_t mars_crc32c(uint32_t crc, const void *data, size_t len)
{
    mars_crc32c_fn fn = __atomic_load_n(&mars_crc32c_current, __ATOMIC_RELAXED);

    return ~fn(~crc, (const unsigned char *)data, len);
}

#endif /* MARS_CRC32C_H */
