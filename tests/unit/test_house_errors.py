"""Exit codes: one place, unique, documented."""
from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]

# docs/design.md, section 6.
DESIGNED = {
    1: "MarsError", 2: "UsageError", 3: "PreconditionError", 4: "NotFoundError", 5: "TimeoutExpired",
    6: "DaemonDownError", 7: "PartlyFailedError", 8: "DamagedError", 9: "AuthError", 10: "PermissionDeniedError",
    11: "UnfinishedError",
}


def test_codes_are_unique_and_as_designed() -> None:
    """Every class of errors.py has its own code, and it is the documented one."""
    from marsx.base import errors

    here = [cls for cls in errors.subclasses() if cls.__module__ == errors.__name__]
    assert [code for code, times in Counter(cls.exit_code for cls in here).items() if times > 1] == []
    assert {cls.exit_code: cls.__name__ for cls in here} == DESIGNED


def test_only_errors_py_defines_codes() -> None:
    """No class elsewhere gives itself a code."""
    found = []
    for path in sorted((TOP / "marsx").rglob("*.py")):
        if path == TOP / "marsx/base/errors.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        found += [f"{path.relative_to(TOP)}:{line.lineno}" for one in classes for line in one.body
                  if isinstance(line, ast.Assign | ast.AnnAssign) and "exit_code" in ast.unparse(line).split("=")[0]
                  and not (isinstance(line, ast.AnnAssign) and line.value is None)]
    assert found == []


def test_page_is_fresh() -> None:
    """docs/errors.md is what `make errors` would write."""
    done = subprocess.run([sys.executable, TOP / "tools/errors_page.py", "--check"], capture_output=True, text=True,
                          timeout=60)
    assert done.returncode == 0, done.stderr
