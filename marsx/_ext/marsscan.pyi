"""Typed face of ext/marsscan.pyx. Its one importer is marsx/log/reader.py, which says what the numbers mean."""
from mmap import mmap

Buffer = bytes | bytearray | memoryview | mmap

CODES: tuple[str, ...]
"""Names of enum mars_scan_code in ext/format.h, by value."""
REASONS: tuple[str, ...]
"""Why a scan ended: end, torn, foreign, corrupt, gap, limit, unknown."""

ScanTuple = tuple[int, bytes, int, int, int, int, str, str, int, int | None, int, int, int, int, bytes]
CheckTuple = tuple[int, int, bytes, int, int, str, str, int, int, int, int, int, int, int]

def scan(
    fd: int,
    header: Buffer,
    start_pos: int = 0,
    start_digest: bytes = b"",
    start_group: int | None = 0,
    start_record: int = 0,
    limit_pos: int | None = None,
    collect: int = 0,
    known_durable: int = 0,
    device_size: int = 0,
    look: int | None = None,
) -> ScanTuple:
    """Walk from start_pos to the first group that does not hold, or to limit_pos.

    header: the 4096 bytes of the file header; ValueError when it is not sound. start_digest may be empty at POS 0 only.
    start_group None: group and record number are taken from the first header (the digest before it commits to them).
    collect: 0 nothing, 1 uniques other than 0 (u64 each), 2 (u64 POS of the payload, 40-byte record) of every record.
    known_durable: POS known durable from elsewhere. device_size: size in force at start_pos, 0 = that of the header.
    look: bytes to search behind a bad group for proof of durability (rule 5); None = to the end of the file.

    Returns (end POS, digest, next group number, next record number, groups, records, reason, code, index of the bad
    record, POS of the later sound header that proves durability or None, largest durable POS seen, Lamport ns and real
    ns of the last group, device size in force at the end, collected bytes). With reason "limit" the end lies before
    limit_pos when a group reaches over it. OSError when a block cannot be read, with `row`
    (what would have been returned: up to where the log is sound) and `byte` (where the block begins in the file); an
    unreadable byte is never taken for a tail.
    """

def check_buffer(
    data: Buffer,
    header: Buffer,
    pos: int,
    digest: bytes,
    group: int,
    record: int,
    device_size: int = 0,
) -> CheckTuple:
    """Accept as many whole groups of `data` (the bytes from `pos` on) as hold.

    Returns (bytes accepted, POS, digest, next group number, next record number, "more" = all well, the rest is the
    beginning of a group, or "bad", code, index of the bad record, bytes that the next group needs as far as known,
    groups, records, largest durable POS stated, Lamport ns of the last group, device size in force).
    """
