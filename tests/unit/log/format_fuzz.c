/*
 * Throws damaged and lying groups and headers at ext/format.h; built by test_format_h.py with the address and the
 * undefined behaviour sanitizer. Each group lies in memory of its own exact size, so that a read outside of it is seen.
 *
 *   format_fuzz SEED ROUNDS    prints "accepted A refused R"; a sanitizer's report or abort() when a check lies
 */
#include <stdio.h>
#include <stdlib.h>

#include "format.h"

static uint64_t state;

static uint64_t draw(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static uint64_t below(uint64_t n)
{
    return draw() % n;
}

/* A number that is near a border more often than not. */
static uint64_t nasty(void)
{
    static const uint64_t border[] = {0, 1, 511, 512, 4095, 4096, 8192, 1u << 26, UINT32_MAX, 1ull << 32,
                                      1ull << 62, 1ull << 63, UINT64_MAX - 4096, UINT64_MAX};

    return below(4) ? border[below(14)] + below(3) - 1 : draw();
}

static const uint8_t log_id[16] = {1, 2, 3};

/* A sound group for the expectation, in memory of just its size. */
static uint8_t *make_group(const struct mars_expect *e, uint64_t *length)
{
    uint8_t head[MARS_BLOCK] = {0}, digest[16], *group;
    struct mars_group_header *g = (struct mars_group_header *)head;
    struct mars_record *r = (struct mars_record *)(head + MARS_TABLE_OFFSET);
    uint64_t at = MARS_BLOCK;

    g->n_records = 1 + (uint32_t)below(MARS_MAX_RECORDS);
    for (uint32_t i = 0; i < g->n_records; i++) {
        r[i].type = below(3) ? MARS_WRITE : MARS_DISCARD;
        r[i].length = 1 + below(2000);
        r[i].offset = below(e->device_size - r[i].length);
        r[i].stored = r[i].type == MARS_WRITE ? (uint32_t)r[i].length : 0;
    }
    *length = mars_group_length(r, g->n_records);
    group = calloc(1, *length);
    for (uint32_t i = 0; i < g->n_records; i++) {
        for (uint32_t k = 0; k < r[i].stored; k++)
            group[at + k] = (uint8_t)draw();
        r[i].crc = r[i].stored ? mars_crc32c(0, group + at, r[i].stored) : 0;
        at += mars_payload_span(&r[i]);
    }
    memcpy(g->log_id, e->log_id, 16);
    g->log_nr = e->log_nr;
    g->group_nr = e->group_nr;
    g->pos = e->pos;
    g->length = *length;
    g->first_record = e->next_record;
    memcpy(g->digest_before, e->digest, 16);
    mars_group_seal(head, digest);
    memcpy(group, head, MARS_BLOCK);
    return group;
}

/* Put nasty numbers into header and table; with seal the CRC is right again, so that the later checks are reached. */
static void lie(uint8_t *block, int seal)
{
    static const uint16_t field[] = {8, 16, 32, 40, 48, 56, 64, 80, 104, 112, 116};
    uint64_t n = 1 + below(3), value;

    while (n--) {
        size_t at = below(2) ? field[below(11)] : MARS_TABLE_OFFSET + 40 * below(97) + 4 * below(10);

        value = nasty();
        memcpy(block + at, &value, below(2) ? 8 : 1);
    }
    if (seal) {
        uint32_t crc = mars_block_crc(block);

        memcpy(block + 12, &crc, 4);
    }
}

/* Accepted means: everything the reader will rely on lies inside. */
static void check_accepted(const uint8_t *group, uint64_t length, const struct mars_expect *e,
                           const struct mars_group_info *info)
{
    const struct mars_record *r = mars_group_table(group);
    uint64_t at = MARS_BLOCK;

    if (info->length > length || info->n_records > MARS_MAX_RECORDS || info->durable > e->pos)
        abort();
    for (uint32_t i = 0; i < info->n_records; i++) {
        if (r[i].type <= MARS_ZERO && (r[i].length > e->device_size || r[i].offset > e->device_size - r[i].length))
            abort();
        at += mars_payload_span(&r[i]);
    }
    if (at > info->length)
        abort();
}

static int one_round(void)
{
    struct mars_expect e = {.log_nr = 1 + below(5), .pos = below(1000) * MARS_BLOCK, .group_nr = below(100),
                            .device_size = 4096 + below(1 << 20), .next_record = below(1000)};
    struct mars_group_info info;
    uint64_t length, rest;
    uint8_t *group;
    int code, kind = (int)below(4);

    memcpy(e.log_id, log_id, 16);
    group = make_group(&e, &length);
    rest = length;
    if (kind == 1 || kind == 2)
        lie(group, kind == 2);
    if (kind == 3) {
        rest = below(length + 1);
        group = realloc(group, rest ? rest : 1);
    }
    code = rest < MARS_BLOCK ? MARS_SCAN_SHORT : mars_group_check_header(group, &e, &info);
    if (code == MARS_SCAN_OK)
        code = mars_group_check_payloads(group, rest, &info);
    if (kind == 0 && code != MARS_SCAN_OK)
        abort();
    if (kind == 3 && rest < length && code != MARS_SCAN_SHORT)
        abort();
    if (code == MARS_SCAN_OK)
        check_accepted(group, rest, &e, &info);
    if (rest >= MARS_BLOCK)
        (void)mars_group_is_ours(group, log_id, 1, nasty());
    free(group);
    return code == MARS_SCAN_OK;
}

/* The same for the header block of a file. */
static void one_file_header(void)
{
    uint8_t *block = calloc(1, MARS_BLOCK), digest[16];
    struct mars_file_header *h = (struct mars_file_header *)block;

    h->log_nr = 1;
    h->device_size = 4096;
    h->block_size = 512;
    memcpy(h->log_id, log_id, 16);
    h->producer[0] = h->resource[0] = h->uuid[0] = 'x';
    mars_file_header_seal(block, digest);
    if (mars_file_header_check(block) != MARS_SCAN_OK)
        abort();
    for (uint64_t n = below(4); n--;)
        memset(block + below(448), (int)below(256), 64);
    if (below(2))
        mars_file_header_seal(block, digest);
    if (mars_file_header_check(block) == MARS_SCAN_OK
        && (!memchr(h->producer, 0, 64) || !memchr(h->uuid, 0, 128) || h->pred_nr >= h->log_nr))
        abort();
    free(block);
}

int main(int argc, char **argv)
{
    long accepted = 0, rounds = argc > 2 ? atol(argv[2]) : 0;

    state = (uint64_t)(argc > 1 ? atol(argv[1]) : 1) * 0x9e3779b97f4a7c15ull + 1;
    for (long i = 0; i < rounds; i++) {
        accepted += one_round();
        one_file_header();
    }
    printf("accepted %ld refused %ld\n", accepted, rounds - accepted);
    return 0;
}
