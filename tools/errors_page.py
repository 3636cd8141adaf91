"""Writes docs/errors.md, the table of exit statuses, from the classes in marsx/base/errors.py (make errors).

With --check it changes nothing and fails when the page is stale.
"""
from __future__ import annotations

import sys
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
PAGE = TOP / "docs/errors.md"

HEAD = """\
# Exit status

Made by `make errors` from `marsx/base/errors.py`; do not edit. `marsadm` and `marsd` use the same codes.
An error is one line on stderr, `PROGRAM: what is wrong`, and below it, indented, what to do next.
New codes may come: treat an unknown one as failure. `mars-status` has codes of its own (mars-status.md).

| code | class | meaning |
|---|---|---|
| 0 | | Done. |
"""
TAIL = """\
| 130 | | Interrupted from the keyboard. |
| 141 | | The reader of the output has gone. |
"""


def page() -> str:
    """The text of docs/errors.md."""
    sys.path.insert(0, str(TOP))
    from marsx.base import errors

    classes = sorted((cls for cls in errors.subclasses() if cls.__module__ == errors.__name__),
                     key=lambda cls: cls.exit_code)
    rows = [f"| {cls.exit_code} | `{cls.__name__}` | {(cls.__doc__ or '').strip()} |" for cls in classes]
    return HEAD + "".join(row + "\n" for row in rows) + TAIL


def main() -> None:
    """Write the page, or check it."""
    if sys.argv[1:] == ["--check"]:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
            sys.exit("docs/errors.md is stale\n  run: make errors")
        return
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
