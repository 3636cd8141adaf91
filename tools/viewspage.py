"""Writes the tables of docs/views.md, all values and macros of `marsadm view`: python -m tools.viewspage."""

from __future__ import annotations

from pathlib import Path

from marsx.admin.views.macros import MACROS, SHORT
from marsx.admin.views.table import all_values

PAGE = Path(__file__).resolve().parents[1] / "docs/views.md"
MARK = "<!-- tables -->"


def tables() -> str:
    """One line each."""
    lines = ["### Macros", "", "| view-NAME | shows |", "|---|---|"]
    lines += [f"| {name} | {_cell(SHORT[name])} |" for name in MACROS]
    for scope, title in (("resource", "Values of a resource"), ("host", "Values of the host")):
        lines += ["", f"### {title}", "", "| view-NAME | type | |", "|---|---|---|"]
        rows = [row for row in all_values().values() if row.scope == scope]
        lines += [f"| {row.name} | {row.kind} | {_cell(row.short)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.strip().replace("|", "\\|")


if __name__ == "__main__":
    head = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    PAGE.write_text(f"{head}{MARK}\n\n{tables()}", encoding="utf-8")
