/*
 * Layout of a transaction log, and the rules by which a reader believes it.
 *
 * The full description is the docstring of marsx/log/record.py; this header is its machine form: the structs, their
 * sizes, and the checks. Plain C, no Python.h, no allocation, no I/O. Every byte handed to a check is hostile: sums
 * are done so that they cannot wrap, and nothing outside the buffer named by the caller is read.
 *
 * A writer fills header and table into a zeroed block and calls mars_group_seal(). A reader keeps a mars_expect and
 * calls mars_group_check_header(), mars_group_check_payloads(), mars_group_advance(). An extension that includes this
 * also compiles ext/xxh3_*.c.
 */
#ifndef MARS_FORMAT_H
#define MARS_FORMAT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "crc32c.h"
#include "xxh3.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the log is little endian and is used in place: this machine is not supported"
#endif

#define MARS_BLOCK 4096u                    /* alignment of groups, size of both kinds of header block */
#define MARS_PAYLOAD_ALIGN 512u             /* alignment of payloads inside a group */
#define MARS_FORMAT_VERSION 1u
#define MARS_FILE_MAGIC "MARSXLOG"
#define MARS_GROUP_MAGIC "MARSXGRP"
#define MARS_TABLE_OFFSET 192u
#define MARS_MAX_RECORDS 97u                /* (4096 - 192) / 40, rounded down */
#define MARS_MAX_PAYLOAD (64u << 20)        /* payload area of one group, padding included */
#define MARS_MAX_GROUP (MARS_BLOCK + MARS_MAX_PAYLOAD)
#define MARS_INCOMPAT_KNOWN 0u              /* incompatible feature bits this reader understands */
#define MARS_CODEC_NONE 0u

enum mars_record_type {
    MARS_WRITE = 1,                         /* payload = new bytes of the range */
    MARS_DISCARD = 2,                       /* range reads as zeros (rule 10) */
    MARS_ZERO = 3,                          /* range reads as zeros and stays allocated */
    MARS_MARK = 4,                          /* payload = text; no range */
    MARS_RESIZE = 5,                        /* device length = new size of the device; offset 0 */
    MARS_BARRIER = 6,                       /* a completed FLUSH; no range, no payload */
    MARS_OLD_DATA = 7,                      /* payload = bytes before a write; local undo files only */
};
#define MARS_RECORD_MUST 0x01u              /* record flag: a reader that does not know the type stops */

enum mars_scan_code {                       /* why a block or a group is not accepted */
    MARS_SCAN_OK = 0,
    MARS_SCAN_ZERO = 1,                     /* a block of zeros */
    MARS_SCAN_SHORT = 2,                    /* fewer bytes than the group needs */
    MARS_SCAN_MAGIC = 3,                    /* no magic */
    MARS_SCAN_CRC = 4,                      /* header block CRC does not hold */
    MARS_SCAN_FOREIGN = 5,                  /* sound header of another log id */
    MARS_SCAN_VERSION = 6,                  /* sound header, format version or header length not known */
    MARS_SCAN_CHAIN = 7,                    /* sound header of this log, but not the successor of what was read */
    MARS_SCAN_LENGTH = 8,                   /* sound header, length out of bounds or not what the table needs */
    MARS_SCAN_TABLE = 9,                    /* sound header, record table contradicts itself */
    MARS_SCAN_RANGE = 10,                   /* sound header, record outside the device */
    MARS_SCAN_DURABLE = 11,                 /* sound header, durable position behind the group's start */
    MARS_SCAN_UNKNOWN = 12,                 /* sound header; a type, codec or flag is not understood */
    MARS_SCAN_PAYLOAD = 13,                 /* payload CRC does not hold */
    MARS_SCAN_PADDING = 14,                 /* padding is not zero */
    MARS_SCAN_FEATURE = 15,                 /* file header: unknown incompatible feature */
    MARS_SCAN_FIELD = 16,                   /* file header: a field has an impossible value */
};

struct mars_file_header {
    uint8_t magic[8];
    uint16_t version;
    uint16_t header_blocks;
    uint32_t crc;
    uint32_t compat;
    uint32_t incompat;
    uint64_t log_nr;
    uint8_t log_id[16];
    uint64_t device_size;
    uint64_t lamport_ns;
    uint64_t real_ns;
    uint32_t block_size;
    uint32_t reserved;
    uint64_t pred_nr;
    uint64_t pred_end;
    uint8_t pred_digest[16];
    uint8_t gap_id[16];
    char producer[64];
    char pred_producer[64];
    char resource[64];
    char uuid[128];
    uint8_t zero[MARS_BLOCK - 448];
} __attribute__((packed));

struct mars_group_header {
    uint8_t magic[8];
    uint16_t version;
    uint16_t header_blocks;
    uint32_t crc;
    uint8_t log_id[16];
    uint64_t log_nr;
    uint64_t group_nr;
    uint64_t pos;
    uint64_t length;
    uint8_t digest_before[16];
    uint64_t durable;
    uint64_t lamport_ns;
    uint64_t real_ns;
    uint64_t first_record;
    uint32_t n_records;
    uint32_t flags;
    uint8_t zero[MARS_TABLE_OFFSET - 120];
} __attribute__((packed));

struct mars_record {
    uint8_t type;
    uint8_t flags;
    uint16_t codec;
    uint32_t crc;
    uint64_t offset;
    uint64_t length;
    uint64_t unique;
    uint32_t stored;
    uint32_t reserved;
} __attribute__((packed));

#define MARS_AT(type, field, off) _Static_assert(offsetof(struct type, field) == (off), #type "." #field)
_Static_assert(sizeof(struct mars_file_header) == MARS_BLOCK, "file header size");
_Static_assert(sizeof(struct mars_group_header) == MARS_TABLE_OFFSET, "group header size");
_Static_assert(sizeof(struct mars_record) == 40, "record size");
_Static_assert(MARS_TABLE_OFFSET + MARS_MAX_RECORDS * sizeof(struct mars_record) <= MARS_BLOCK, "record table fits");
MARS_AT(mars_file_header, crc, 12);
MARS_AT(mars_file_header, log_nr, 24);
MARS_AT(mars_file_header, log_id, 32);
MARS_AT(mars_file_header, device_size, 48);
MARS_AT(mars_file_header, block_size, 72);
MARS_AT(mars_file_header, pred_nr, 80);
MARS_AT(mars_file_header, pred_digest, 96);
MARS_AT(mars_file_header, gap_id, 112);
MARS_AT(mars_file_header, producer, 128);
MARS_AT(mars_file_header, pred_producer, 192);
MARS_AT(mars_file_header, resource, 256);
MARS_AT(mars_file_header, uuid, 320);
MARS_AT(mars_group_header, crc, 12);
MARS_AT(mars_group_header, log_id, 16);
MARS_AT(mars_group_header, log_nr, 32);
MARS_AT(mars_group_header, group_nr, 40);
MARS_AT(mars_group_header, pos, 48);
MARS_AT(mars_group_header, length, 56);
MARS_AT(mars_group_header, digest_before, 64);
MARS_AT(mars_group_header, durable, 80);
MARS_AT(mars_group_header, lamport_ns, 88);
MARS_AT(mars_group_header, real_ns, 96);
MARS_AT(mars_group_header, first_record, 104);
MARS_AT(mars_group_header, n_records, 112);
MARS_AT(mars_group_header, flags, 116);
MARS_AT(mars_record, crc, 4);
MARS_AT(mars_record, offset, 8);
MARS_AT(mars_record, length, 16);
MARS_AT(mars_record, unique, 24);
MARS_AT(mars_record, stored, 32);

/* What the next group has to be. mars_group_advance() moves it behind a group that was accepted. */
struct mars_expect {
    uint8_t log_id[16];
    uint64_t log_nr;
    uint64_t pos;
    uint64_t group_nr;
    uint8_t digest[16];
    uint64_t device_size;                   /* in force before the group */
    uint64_t next_record;
};

/* What an accepted header says. */
struct mars_group_info {
    uint64_t length;
    uint64_t durable;
    uint64_t lamport_ns;
    uint64_t real_ns;
    uint64_t device_size;                   /* in force behind the group */
    uint32_t n_records;
    uint32_t bad_record;                    /* index of the record that a non-zero code speaks of */
    uint8_t digest_after[16];
};

static inline const struct mars_record *mars_group_table(const uint8_t *block)
{
    return (const struct mars_record *)(block + MARS_TABLE_OFFSET);
}

/* Bytes of a payload inside the group: stored length rounded up to 512. */
static inline size_t mars_payload_span(const struct mars_record *r)
{
    return ((size_t)r->stored + (MARS_PAYLOAD_ALIGN - 1)) & ~(size_t)(MARS_PAYLOAD_ALIGN - 1);
}

/* Length of a group with these records (n <= MARS_MAX_RECORDS); cannot wrap: 97 * 2^32 fits. */
static inline uint64_t mars_group_length(const struct mars_record *table, uint32_t n)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < n; i++)
        sum += mars_payload_span(&table[i]);
    return MARS_BLOCK + ((sum + (MARS_BLOCK - 1)) & ~(uint64_t)(MARS_BLOCK - 1));
}

static inline int mars_is_zero(const uint8_t *p, size_t n)
{
    return n == 0 || (p[0] == 0 && (n == 1 || memcmp(p, p + 1, n - 1) == 0));
}

/* CRC of a header block with the four bytes at 12 as zero: the same rule for both kinds of header. */
static inline uint32_t mars_block_crc(const uint8_t *block)
{
    static const uint8_t zero[4] = {0, 0, 0, 0};
    uint32_t crc = mars_crc32c(0, block, 12);

    crc = mars_crc32c(crc, zero, 4);
    return mars_crc32c(crc, block + 16, MARS_BLOCK - 16);
}

static inline void mars_block_seal(uint8_t *block)
{
    uint32_t crc = mars_block_crc(block);

    memcpy(block + 12, &crc, 4);
}

static inline int mars_block_sound(const uint8_t *block)
{
    uint32_t crc;

    memcpy(&crc, block + 12, 4);
    return crc == mars_block_crc(block);
}

/* ---- file header ---- */

/* Digest at POS 0: the chain is seeded by all that the file header says, the log id included (rule 6). */
static inline void mars_file_digest0(const uint8_t *block, uint8_t digest[16])
{
    mars_xxh3_128(block, MARS_BLOCK, digest);
}

/* Fields are filled in, the rest of the block is zero: sets magic, version, header length and CRC. */
static inline void mars_file_header_seal(uint8_t *block, uint8_t digest0[16])
{
    struct mars_file_header *h = (struct mars_file_header *)block;

    memcpy(h->magic, MARS_FILE_MAGIC, 8);
    h->version = MARS_FORMAT_VERSION;
    h->header_blocks = 1;
    mars_block_seal(block);
    mars_file_digest0(block, digest0);
}

static inline int mars_text_sound(const char *p, size_t n, int may_be_empty)
{
    const char *end = (const char *)memchr(p, 0, n);

    if (!end || (end == p && !may_be_empty))
        return 0;
    return mars_is_zero((const uint8_t *)end, n - (size_t)(end - p));
}

/* 0, or why this block is no file header we may follow. Whose log it is (uuid, resource) is the caller's question. */
static inline int mars_file_header_check(const uint8_t *block)
{
    const struct mars_file_header *h = (const struct mars_file_header *)block;

    if (memcmp(h->magic, MARS_FILE_MAGIC, 8) != 0)
        return mars_is_zero(block, MARS_BLOCK) ? MARS_SCAN_ZERO : MARS_SCAN_MAGIC;
    if (!mars_block_sound(block))
        return MARS_SCAN_CRC;
    if (h->version != MARS_FORMAT_VERSION || h->header_blocks != 1)
        return MARS_SCAN_VERSION;
    if (h->incompat & ~MARS_INCOMPAT_KNOWN)
        return MARS_SCAN_FEATURE;
    if (h->log_nr == 0 || h->pred_nr >= h->log_nr || h->pred_end % MARS_BLOCK != 0 || h->device_size == 0)
        return MARS_SCAN_FIELD;
    if (h->block_size < 512 || h->block_size > MARS_BLOCK || (h->block_size & (h->block_size - 1)) != 0)
        return MARS_SCAN_FIELD;
    if (!mars_text_sound(h->producer, sizeof(h->producer), 0)
        || !mars_text_sound(h->resource, sizeof(h->resource), 0)
        || !mars_text_sound(h->uuid, sizeof(h->uuid), 0)
        || !mars_text_sound(h->pred_producer, sizeof(h->pred_producer), h->pred_nr == 0))
        return MARS_SCAN_FIELD;
    if (h->pred_nr == 0 && (h->pred_end != 0 || h->pred_producer[0] != 0 || !mars_is_zero(h->pred_digest, 16)))
        return MARS_SCAN_FIELD;
    return mars_is_zero(h->log_id, 16) ? MARS_SCAN_FIELD : MARS_SCAN_OK;
}

/* Expectation at POS 0 of a log whose header block passed mars_file_header_check(). */
static inline void mars_expect_start(struct mars_expect *e, const uint8_t *block)
{
    const struct mars_file_header *h = (const struct mars_file_header *)block;

    memset(e, 0, sizeof(*e));
    memcpy(e->log_id, h->log_id, 16);
    e->log_nr = h->log_nr;
    e->device_size = h->device_size;
    mars_file_digest0(block, e->digest);
}

/* ---- groups ---- */

/* Header and table are filled in (log id, numbers, pos, length, digest before, durable, stamps, records with their
 * CRCs), the rest of the block is zero: sets magic, version, header length and CRC, gives the digest behind it. */
static inline void mars_group_seal(uint8_t *block, uint8_t digest_after[16])
{
    struct mars_group_header *g = (struct mars_group_header *)block;

    memcpy(g->magic, MARS_GROUP_MAGIC, 8);
    g->version = MARS_FORMAT_VERSION;
    g->header_blocks = 1;
    mars_block_seal(block);
    mars_xxh3_128(block, MARS_BLOCK, digest_after);
}

/* Does the range lie inside the device?  Offset and length may be anything up to 2^64 - 1. */
static inline int mars_inside(uint64_t offset, uint64_t length, uint64_t device_size)
{
    return length <= device_size && offset <= device_size - length;
}

/* One record against the device size in force, which a resize moves. *changes counts records that are history of
 * their own. */
static inline int mars_record_check(const struct mars_record *r, uint64_t *device_size, uint32_t *changes)
{
    int known = r->type >= MARS_WRITE && r->type <= MARS_OLD_DATA;

    if (r->type == 0 || (r->stored == 0 && r->crc != 0))
        return MARS_SCAN_TABLE;
    if (!known) {
        *changes += 1;
        return (r->flags & MARS_RECORD_MUST) ? MARS_SCAN_UNKNOWN : MARS_SCAN_OK;
    }
    if (r->codec != MARS_CODEC_NONE)
        return MARS_SCAN_UNKNOWN;
    switch (r->type) {
    case MARS_MARK:
    case MARS_BARRIER:
        if (r->offset != 0 || r->length != 0 || (r->type == MARS_BARRIER && r->stored != 0))
            return MARS_SCAN_TABLE;
        return MARS_SCAN_OK;
    case MARS_RESIZE:
        if (r->offset != 0 || r->stored != 0 || r->length == 0)
            return MARS_SCAN_TABLE;
        *device_size = r->length;
        *changes += 1;
        return MARS_SCAN_OK;
    case MARS_WRITE:
    case MARS_OLD_DATA:
        if (r->stored != r->length)
            return MARS_SCAN_TABLE;
        break;
    default:                                /* discard, zero */
        if (r->stored != 0)
            return MARS_SCAN_TABLE;
    }
    if (r->length == 0)
        return MARS_SCAN_TABLE;
    *changes += 1;
    return mars_inside(r->offset, r->length, *device_size) ? MARS_SCAN_OK : MARS_SCAN_RANGE;
}

/* Is this block, which the file has at POS pos, a sound group header of the log? No chain, no table: enough for the
 * look beyond a bad group (rule 5). The log id is random and secret, so device contents cannot forge one. */
static inline int mars_group_is_ours(const uint8_t *block, const uint8_t log_id[16], uint64_t log_nr, uint64_t pos)
{
    const struct mars_group_header *g = (const struct mars_group_header *)block;

    return memcmp(g->magic, MARS_GROUP_MAGIC, 8) == 0 && memcmp(g->log_id, log_id, 16) == 0 && g->log_nr == log_nr
           && g->pos == pos && g->durable <= pos && mars_block_sound(block);
}

/* Header block and record table against what is expected; payloads are not looked at. out is filled as far as it is
 * known; on a code that speaks of one record, out->bad_record is its index. */
static inline int mars_group_check_header(const uint8_t *block, const struct mars_expect *e,
                                          struct mars_group_info *out)
{
    const struct mars_group_header *g = (const struct mars_group_header *)block;
    const struct mars_record *table = mars_group_table(block);
    uint32_t changes = 0;

    memset(out, 0, sizeof(*out));
    if (memcmp(g->magic, MARS_GROUP_MAGIC, 8) != 0)
        return mars_is_zero(block, MARS_BLOCK) ? MARS_SCAN_ZERO : MARS_SCAN_MAGIC;
    if (!mars_block_sound(block))
        return MARS_SCAN_CRC;
    if (memcmp(g->log_id, e->log_id, 16) != 0)
        return MARS_SCAN_FOREIGN;
    if (g->version != MARS_FORMAT_VERSION || g->header_blocks != 1)
        return MARS_SCAN_VERSION;
    if (g->log_nr != e->log_nr || g->pos != e->pos || g->group_nr != e->group_nr
        || g->first_record != e->next_record || memcmp(g->digest_before, e->digest, 16) != 0)
        return MARS_SCAN_CHAIN;
    if (g->flags != 0)
        return MARS_SCAN_UNKNOWN;
    if (g->durable > g->pos)
        return MARS_SCAN_DURABLE;
    if (g->n_records == 0 || g->n_records > MARS_MAX_RECORDS || g->first_record > UINT64_MAX - g->n_records)
        return MARS_SCAN_TABLE;
    if (g->length > MARS_MAX_GROUP || g->length != mars_group_length(table, g->n_records)
        || g->pos > UINT64_MAX - g->length)
        return MARS_SCAN_LENGTH;
    out->length = g->length;
    out->durable = g->durable;
    out->lamport_ns = g->lamport_ns;
    out->real_ns = g->real_ns;
    out->n_records = g->n_records;
    out->device_size = e->device_size;
    for (uint32_t i = 0; i < g->n_records; i++) {
        int code = mars_record_check(&table[i], &out->device_size, &changes);

        out->bad_record = i;
        if (code != MARS_SCAN_OK)
            return code;
    }
    out->bad_record = 0;
    if (changes == 0)                       /* marks and barriers never make a group of their own (rule 7) */
        return MARS_SCAN_TABLE;
    mars_xxh3_128(block, MARS_BLOCK, out->digest_after);
    return MARS_SCAN_OK;
}

/* Payload CRCs and zero padding of a group in memory whose header passed mars_group_check_header(). */
static inline int mars_group_check_payloads(const uint8_t *group, uint64_t available, struct mars_group_info *info)
{
    const struct mars_record *table = mars_group_table(group);
    uint64_t at = MARS_BLOCK;

    if (available < info->length)
        return MARS_SCAN_SHORT;
    for (uint32_t i = 0; i < info->n_records; i++) {
        uint64_t stored = table[i].stored, span = mars_payload_span(&table[i]);

        info->bad_record = i;
        if (stored != 0 && mars_crc32c(0, group + at, stored) != table[i].crc)
            return MARS_SCAN_PAYLOAD;
        if (!mars_is_zero(group + at + stored, span - stored))
            return MARS_SCAN_PADDING;
        at += span;
    }
    info->bad_record = 0;
    return mars_is_zero(group + at, info->length - at) ? MARS_SCAN_OK : MARS_SCAN_PADDING;
}

/* The expectation behind an accepted group. */
static inline void mars_group_advance(struct mars_expect *e, const struct mars_group_info *info)
{
    e->pos += info->length;
    e->group_nr += 1;
    e->next_record += info->n_records;
    e->device_size = info->device_size;
    memcpy(e->digest, info->digest_after, 16);
}

#endif
