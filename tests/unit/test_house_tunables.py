"""Every tunable is read somewhere, and what is read is a tunable: none is a switch without a wire."""
from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from marsx.base.tunables import TUNABLES

TOP = Path(__file__).resolve().parents[2]


def pattern_of(node: ast.expr) -> str:
    """The names that the argument of a `get` can be, as a regular expression; "" for one that is a variable."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.escape(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(re.escape(part.value) if isinstance(part, ast.Constant) else "[a-z0-9_]+"
                       for part in node.values)
    return ""


def reads(text: str) -> Iterator[str]:
    """The patterns of all `settings.get(...)`."""
    for node in ast.walk(ast.parse(text)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get"):
            continue
        if node.args and re.search(r"settings$|^Settings\(.*\)$", ast.unparse(node.func.value)):
            yield pattern_of(node.args[0])


def found() -> dict[str, str]:
    """Pattern -> where it is read."""
    return {pattern: str(path.relative_to(TOP)) for path in sorted((TOP / "marsx").rglob("*.py"))
            for pattern in reads(path.read_text(encoding="utf-8"))}


def test_every_tunable_is_read() -> None:
    """A name in the table that no code asks for would look like a setting and be none."""
    patterns = [pattern for pattern in found() if pattern]
    assert [name for name in TUNABLES if not any(re.fullmatch(pattern, name) for pattern in patterns)] == []


def test_what_is_read_exists() -> None:
    """A name that is not in the table would raise when it is asked for."""
    assert {pattern: where for pattern, where in found().items()
            if not any(re.fullmatch(pattern, name) for name in TUNABLES)} == {}


def test_the_finder_finds() -> None:
    """Plain names, composed names, names in a variable."""
    text = 'self.settings.get("a")\nsettings.get(f"b_{x}_c")\nSettings(p).get(name)\nother.get("d")\n'
    assert list(reads(text)) == ["a", "b_[a-z0-9_]+_c", ""]
