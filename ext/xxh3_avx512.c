/*
 * XXH3, for processors with AVX-512F.
 *
 * One level per file, because the target must be set before the library's header is read. Which level runs is decided
 * in xxh3.h; these functions are hidden in the extension that they are compiled into.
 */
#if defined(__x86_64__)
/* Unrolled, the accumulators stay in registers. */
#pragma GCC optimize("no-tree-vectorize", "unroll-loops")
#pragma GCC target("avx512f")
#define XXH_INLINE_ALL
#define XXH_VECTOR XXH_AVX512
#include <xxhash.h>
#include <stddef.h>
#include <stdint.h>

#define MARS_HIDDEN __attribute__((visibility("hidden")))

MARS_HIDDEN void mars_xxh3_128_avx512(const void *data, size_t len, uint8_t out[16]);
MARS_HIDDEN uint64_t mars_xxh3_64_avx512(const void *data, size_t len);

void mars_xxh3_128_avx512(const void *data, size_t len, uint8_t out[16])
{
    XXH128_canonical_t canonical;

    XXH128_canonicalFromHash(&canonical, XXH3_128bits(data, len));
    __builtin_memcpy(out, canonical.digest, 16);
}

uint64_t mars_xxh3_64_avx512(const void *data, size_t len)
{
    return XXH3_64bits(data, len);
}
#endif
