"""The format page on top of marsx/log/record.py is true: its tables are read and compared with structs, C and twin."""
from __future__ import annotations

import ast
import re
import struct
from pathlib import Path

import pytest

from marsx._ext import marsscan
from marsx.log import reader, record
from tests.ref import log_reader as ref

TOP = Path(__file__).resolve().parents[3]
PAGE = record.__doc__ or ""
ROW = re.compile(r"^  ([0-9]+) +(u8|u16|u32|u64|[0-9]+s) +(.+)$")
SIZES = {"u8": 1, "u16": 2, "u32": 4, "u64": 8}


def tables() -> list[list[tuple[int, str, str]]]:
    """The tables of fields: (offset, type, meaning); a new one begins at offset 0."""
    found: list[list[tuple[int, str, str]]] = []
    for line in PAGE.splitlines():
        match = ROW.match(line)
        if match:
            row = (int(match[1]), match[2], match[3])
            if row[0] == 0:
                found.append([])
            found[-1].append(row)
    return found


def size_of(kind: str) -> int:
    return SIZES.get(kind) or int(kind[:-1])


def test_tables_have_no_holes() -> None:
    """Every byte up to the end of a structure is named."""
    ends = []
    for table in tables():
        at = 0
        for offset, kind, _ in table:
            assert offset == at, f"a hole before {offset}"
            at += size_of(kind)
        ends.append(at)
    assert ends == [448, record.TABLE_OFFSET, record.RECORD_FIELDS.size]


@pytest.mark.parametrize(("number", "fields"), [(0, record.FILE_FIELDS), (1, record.GROUP_FIELDS),
                                                (2, record.RECORD_FIELDS)])
def test_structs_are_those_of_the_page(number: int, fields: struct.Struct) -> None:
    """Filled byte by byte by the page's offsets, the struct gives the values back in the page's order."""
    table = [row for row in tables()[number] if number == 2 or not row[2].startswith("reserved")]
    block = bytearray(fields.size)
    due: list[int | bytes] = []
    for i, (offset, kind, _) in enumerate(table, 1):
        size = size_of(kind)
        raw = bytes([i]) * size
        block[offset:offset + size] = raw
        due.append(raw if kind.endswith("s") else int.from_bytes(raw, "little"))
    assert list(fields.unpack(bytes(block))) == due


def test_the_page_knows_every_reason_and_type() -> None:
    """Reasons of the scan, types of records, numbers of the limits."""
    for reason in marsscan.REASONS:
        assert re.search(rf"\b{reason}\b", PAGE), reason
    types = dict(re.findall(r"^  ([1-7]) (write|discard|zero|mark|resize|barrier|old data) ", PAGE, re.MULTILINE))
    assert types == {str(i): name for i, name in enumerate(
        ("write", "discard", "zero", "mark", "resize", "barrier", "old data"), 1)}
    assert [record.WRITE, record.DISCARD, record.ZERO, record.MARK, record.RESIZE, record.BARRIER, record.OLD_DATA] \
        == list(range(1, 8)) and {1, 2, 3, 4, 5, 6, 7} == ref.KNOWN_TYPES
    assert f"at most {record.MAX_RECORDS}" in PAGE and record.MAX_PAYLOAD == 64 << 20 and "64 MiB" in PAGE
    assert set(reader.CODE_TEXT) - {"ok", "feature", "field"} >= set(ref.REASON)


def test_twins_stand_alone() -> None:
    """The oracles are written from the page: they import nothing of the product."""
    for path in sorted((TOP / "tests/ref").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else \
                [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "marsx" for name in names), f"{path}: {names}"
