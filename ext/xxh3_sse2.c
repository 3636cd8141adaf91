/*
 * XXH3, the level every x86-64 processor has (elsewhere: what the compiler's target has).
 *
 * One level per file, because the target must be set before the library's header is read. Which level runs is decided
 * in xxh3.h; these functions are hidden in the extension that they are compiled into.
 */
/* gcc 12 would vectorise the SSE2 loop once more and make it several times slower; unrolled, it stays in registers. */
#pragma GCC optimize("no-tree-vectorize", "unroll-loops")
#define XXH_INLINE_ALL
#include <xxhash.h>
#include <stddef.h>
#include <stdint.h>

#define MARS_HIDDEN __attribute__((visibility("hidden")))

MARS_HIDDEN void mars_xxh3_128_sse2(const void *data, size_t len, uint8_t out[16]);
MARS_HIDDEN uint64_t mars_xxh3_64_sse2(const void *data, size_t len);

void mars_xxh3_128_sse2(const void *data, size_t len, uint8_t out[16])
{
    XXH128_canonical_t canonical;

    XXH128_canonicalFromHash(&canonical, XXH3_128bits(data, len));
    __builtin_memcpy(out, canonical.digest, 16);
}

uint64_t mars_xxh3_64_sse2(const void *data, size_t len)
{
    return XXH3_64bits(data, len);
}
