/*
 * XXH3 with the level chosen at run time; header only besides xxh3_sse2.c, xxh3_avx2.c and xxh3_avx512.c, no Python.
 *
 *   void mars_xxh3_128(const void *data, size_t len, uint8_t out[16])     canonical (big endian) byte order
 *   uint64_t mars_xxh3_64(const void *data, size_t len)
 *
 * An extension that includes this header compiles the three .c files into itself.
 *
 * Promises: all levels give the same bits. State is static in each extension, made by a constructor before any thread
 * can call, and one atomic index afterwards. The default is the fastest level this processor has (order from
 * bench/bench_sum.py). MARS_XXH3_KERNEL=sse2|avx2|avx512 is a demand: mars_xxh3_env() returns -1 when it cannot be
 * met, and the extension's module code must then refuse to load.
 */
#ifndef MARS_XXH3_H
#define MARS_XXH3_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { MARS_XXH3_SSE2 = 0, MARS_XXH3_AVX2 = 1, MARS_XXH3_AVX512 = 2, MARS_XXH3_KERNELS = 3 };

#define MARS_XXH3_HIDDEN __attribute__((visibility("hidden")))

MARS_XXH3_HIDDEN void mars_xxh3_128_sse2(const void *data, size_t len, uint8_t out[16]);
MARS_XXH3_HIDDEN uint64_t mars_xxh3_64_sse2(const void *data, size_t len);
#if defined(__x86_64__)
MARS_XXH3_HIDDEN void mars_xxh3_128_avx2(const void *data, size_t len, uint8_t out[16]);
MARS_XXH3_HIDDEN uint64_t mars_xxh3_64_avx2(const void *data, size_t len);
MARS_XXH3_HIDDEN void mars_xxh3_128_avx512(const void *data, size_t len, uint8_t out[16]);
MARS_XXH3_HIDDEN uint64_t mars_xxh3_64_avx512(const void *data, size_t len);
#endif

typedef struct {
    const char *name;
    void (*hash128)(const void *data, size_t len, uint8_t out[16]);
    uint64_t (*hash64)(const void *data, size_t len);
} mars_xxh3_kernel;

static const mars_xxh3_kernel mars_xxh3_table[MARS_XXH3_KERNELS] = {
    {"sse2", mars_xxh3_128_sse2, mars_xxh3_64_sse2},
#if defined(__x86_64__)
    {"avx2", mars_xxh3_128_avx2, mars_xxh3_64_avx2},
    {"avx512", mars_xxh3_128_avx512, mars_xxh3_64_avx512},
#else
    {"avx2", NULL, NULL},
    {"avx512", NULL, NULL},
#endif
};

static int mars_xxh3_current;
static int mars_xxh3_env_refused;

__attribute__((unused)) static const char *mars_xxh3_name(int id)
{
    return id >= 0 && id < MARS_XXH3_KERNELS ? mars_xxh3_table[id].name : NULL;
}

/* 1 = this processor can run level id. */
__attribute__((unused)) static int mars_xxh3_usable(int id)
{
#if defined(__x86_64__)
    if (id == MARS_XXH3_AVX2)
        return !!__builtin_cpu_supports("avx2");
    if (id == MARS_XXH3_AVX512)
        return !!__builtin_cpu_supports("avx512f");
#endif
    return id == MARS_XXH3_SSE2;
}

/* From now on level id for all callers in this extension; -1 = unknown or not usable here, nothing changed. */
__attribute__((unused)) static int mars_xxh3_select(int id)
{
    if (!mars_xxh3_usable(id))
        return -1;
    __atomic_store_n(&mars_xxh3_current, id, __ATOMIC_RELAXED);
    return 0;
}

/* The level in use. */
__attribute__((unused)) static int mars_xxh3_selected(void)
{
    return __atomic_load_n(&mars_xxh3_current, __ATOMIC_RELAXED);
}

/* 0 = MARS_XXH3_KERNEL is not set or is obeyed; -1 = it demands what is not here: refuse to load. */
__attribute__((unused)) static int mars_xxh3_env(void)
{
    return mars_xxh3_env_refused ? -1 : 0;
}

/* The first processors with AVX-512 lower their clock for it: there AVX2 is the better default. */
static int mars_xxh3_default(void)
{
#if defined(__x86_64__)
    if (mars_xxh3_usable(MARS_XXH3_AVX512) && __builtin_cpu_supports("avx512vbmi2"))
        return MARS_XXH3_AVX512;
#endif
    return mars_xxh3_usable(MARS_XXH3_AVX2) ? MARS_XXH3_AVX2 : MARS_XXH3_SSE2;
}

__attribute__((constructor)) static void mars_xxh3_start(void)
{
    const char *demand = getenv("MARS_XXH3_KERNEL");

#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
    mars_xxh3_select(mars_xxh3_default());
    if (!demand || !*demand)
        return;
    for (int id = 0; id < MARS_XXH3_KERNELS; id++)
        if (!strcmp(demand, mars_xxh3_table[id].name) && mars_xxh3_select(id) == 0)
            return;
    mars_xxh3_env_refused = 1;
}

__attribute__((unused)) static inline void mars_xxh3_128(const void *data, size_t len, uint8_t out[16])
{
    mars_xxh3_table[__atomic_load_n(&mars_xxh3_current, __ATOMIC_RELAXED)].hash128(data, len, out);
}

__attribute__((unused)) static inline uint64_t mars_xxh3_64(const void *data, size_t len)
{
    return mars_xxh3_table[__atomic_load_n(&mars_xxh3_current, __ATOMIC_RELAXED)].hash64(data, len);
}

#endif /* MARS_XXH3_H */
