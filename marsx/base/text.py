"""Text for people."""
from __future__ import annotations


def printable(text: str, limit: int = 1000) -> str:
    """`text` without control characters and not longer than `limit`."""
    shown = text[:limit]
    if not shown.isprintable():
        shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in shown)
    return shown + ("..." if len(text) > limit else "")
