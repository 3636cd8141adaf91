"""Declarations of ext/format.h for Cython; extern only, no run-time dependency."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "format.h" nogil:
    enum:
        MARS_BLOCK
        MARS_PAYLOAD_ALIGN
        MARS_FORMAT_VERSION
        MARS_TABLE_OFFSET
        MARS_MAX_RECORDS
        MARS_MAX_PAYLOAD
        MARS_MAX_GROUP
        MARS_CODEC_NONE
        MARS_RECORD_MUST

    enum:
        MARS_WRITE
        MARS_DISCARD
        MARS_ZERO
        MARS_MARK
        MARS_RESIZE
        MARS_BARRIER
        MARS_OLD_DATA

    enum:
        MARS_SCAN_OK
        MARS_SCAN_ZERO
        MARS_SCAN_SHORT
        MARS_SCAN_MAGIC
        MARS_SCAN_CRC
        MARS_SCAN_FOREIGN
        MARS_SCAN_VERSION
        MARS_SCAN_CHAIN
        MARS_SCAN_LENGTH
        MARS_SCAN_TABLE
        MARS_SCAN_RANGE
        MARS_SCAN_DURABLE
        MARS_SCAN_UNKNOWN
        MARS_SCAN_PAYLOAD
        MARS_SCAN_PADDING
        MARS_SCAN_FEATURE
        MARS_SCAN_FIELD

    struct mars_file_header:
        uint8_t magic[8]
        uint16_t version
        uint16_t header_blocks
        uint32_t crc
        uint32_t compat
        uint32_t incompat
        uint64_t log_nr
        uint8_t log_id[16]
        uint64_t device_size
        uint64_t lamport_ns
        uint64_t real_ns
        uint32_t block_size
        uint64_t pred_nr
        uint64_t pred_end
        uint8_t pred_digest[16]
        uint8_t gap_id[16]
        char producer[64]
        char pred_producer[64]
        char resource[64]
        char uuid[128]

    struct mars_group_header:
        uint8_t magic[8]
        uint16_t version
        uint16_t header_blocks
        uint32_t crc
        uint8_t log_id[16]
        uint64_t log_nr
        uint64_t group_nr
        uint64_t pos
        uint64_t length
        uint8_t digest_before[16]
        uint64_t durable
        uint64_t lamport_ns
        uint64_t real_ns
        uint64_t first_record
        uint32_t n_records
        uint32_t flags

    struct mars_record:
        uint8_t type
        uint8_t flags
        uint16_t codec
        uint32_t crc
        uint64_t offset
        uint64_t length
        uint64_t unique
        uint32_t stored
        uint32_t reserved

    struct mars_expect:
        uint8_t log_id[16]
        uint64_t log_nr
        uint64_t pos
        uint64_t group_nr
        uint8_t digest[16]
        uint64_t device_size
        uint64_t next_record

    struct mars_group_info:
        uint64_t length
        uint64_t durable
        uint64_t lamport_ns
        uint64_t real_ns
        uint64_t device_size
        uint32_t n_records
        uint32_t bad_record
        uint8_t digest_after[16]

    const mars_record *mars_group_table(const uint8_t *block)
    size_t mars_payload_span(const mars_record *r)
    uint64_t mars_group_length(const mars_record *table, uint32_t n)
    bint mars_is_zero(const uint8_t *p, size_t n)
    bint mars_inside(uint64_t offset, uint64_t length, uint64_t device_size)
    void mars_file_digest0(const uint8_t *block, uint8_t *digest)
    void mars_file_header_seal(uint8_t *block, uint8_t *digest0)
    int mars_file_header_check(const uint8_t *block)
    void mars_expect_start(mars_expect *e, const uint8_t *block)
    void mars_group_seal(uint8_t *block, uint8_t *digest_after)
    int mars_record_check(const mars_record *r, uint64_t *device_size, uint32_t *changes)
    bint mars_group_is_ours(const uint8_t *block, const uint8_t *log_id, uint64_t log_nr, uint64_t pos)
    int mars_group_check_header(const uint8_t *block, const mars_expect *e, mars_group_info *out)
    int mars_group_check_payloads(const uint8_t *group, uint64_t available, mars_group_info *info)
    void mars_group_advance(mars_expect *e, const mars_group_info *info)
