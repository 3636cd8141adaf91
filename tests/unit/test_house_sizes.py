"""Sizes of files and functions, docstrings, line length. A ratchet: what is over today may only shrink.

RATCHET lists what is over a ceiling, with its size. An entry that is larger than the real size fails too: lower it.
"""
from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
FILE_MAX = 600
FUNCTION_MAX = 70
LINE_MAX = 120

RATCHET: dict[str, int] = {}

CYTHON_FUNCTION = re.compile(r"( *)(?:def|cdef|cpdef)\b(?! +class\b)[^=#]*\(.*")


def sources(*suffixes: str) -> list[Path]:
    """Files we write by hand."""
    folders = [TOP / name for name in ("marsx", "ext", "tools", "tests", "bench")]
    return sorted([path for folder in folders for path in folder.rglob("*")
                   if path.suffix in suffixes and path.is_file()] + ([TOP / "setup.py"] if ".py" in suffixes else []))


def python_functions(path: Path) -> Iterator[tuple[str, int]]:
    """(name, lines) of every function, without its decorators."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def cython_functions(lines: list[str]) -> Iterator[tuple[str, int]]:
    """(first line, lines) of every function of a .pyx, by indentation."""
    for start, line in enumerate(lines):
        match = CYTHON_FUNCTION.fullmatch(line)
        if not match or line.rstrip().endswith(("cdef extern", ")")) and not line.rstrip().endswith(":"):
            continue
        depth, end = len(match[1]), start
        for number in range(start + 1, len(lines)):
            text = lines[number]
            if text.strip() and len(text) - len(text.lstrip()) <= depth and not text.lstrip().startswith((")", "#")):
                break
            end = number if text.strip() else end
        yield line.strip()[:50], end - start + 1


def too_big() -> dict[str, int]:
    """Everything over a ceiling, with its size."""
    found = {}
    for path in sources(".py", ".pyx", ".pxd", ".h", ".c"):
        name = str(path.relative_to(TOP))
        lines = path.read_text(encoding="utf-8").splitlines()
        if len(lines) > FILE_MAX:
            found[name] = len(lines)
        functions = python_functions(path) if path.suffix == ".py" else \
            cython_functions(lines) if path.suffix == ".pyx" else iter(())
        found |= {f"{name} {function}": size for function, size in functions if size > FUNCTION_MAX}
    return found


def test_ratchet() -> None:
    """Nothing new over a ceiling; nothing grows; entries follow what has shrunk."""
    assert too_big() == RATCHET


def test_the_scan_of_cython_counts() -> None:
    """A function over the ceiling is seen, with a signature over several lines too, and ends where it ends."""
    body = ["    x = 1", ""] * 40
    lines = ["cdef class A:", "    cdef int f(self,", "               int y) noexcept nogil:", *body[:4], "def g():"]
    assert ("def g():", 1) in list(cython_functions(lines))
    assert [size for _, size in cython_functions(["cdef int f(int a) except -1:", *body, "def g(): pass"])] == [80, 1]
    assert list(cython_functions(["cdef class B(A):", *body])) == []


@pytest.mark.parametrize("path", sources(".py", ".pyx"), ids=lambda path: str(path.relative_to(TOP)))
def test_module_docstring(path: Path) -> None:
    """Every module says what it is."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        assert ast.get_docstring(ast.parse(text)), "no module docstring"
    else:
        first = next((line for line in text.splitlines() if line.strip() and not line.startswith("#")), "")
        assert first.lstrip("r").startswith('"""'), "no module docstring"


def test_line_length() -> None:
    """Cython and C too; ruff sees only Python."""
    long = [f"{path.relative_to(TOP)}:{number}" for path in sources(".py", ".pyx", ".pxd", ".h", ".c")
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if len(line) > LINE_MAX]
    assert long == []
