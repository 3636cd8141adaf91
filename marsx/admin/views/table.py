"""What a value is: its name, its type, whom it is about, and the function that finds it.

A function gets the picture (`Look`), the resource ("" for a value of the host) and perhaps arguments, and returns what
its type says: flag -> bool, number -> int, float or None (not known), text -> str, list -> list of str, wait -> None.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from marsx.admin.macro.numbers import write


class Value(NamedTuple):
    """One row."""

    name: str
    kind: str
    short: str
    of: Callable[..., Any]
    scope: str = "resource"
    """"resource", or "host": needs no resource."""


def as_text(found: object) -> str:
    """How a value is printed: 1 and 0, a number, a text, one line for each item of a list."""
    if found is True or found is False:
        return "1" if found else "0"
    if isinstance(found, str):
        return found
    if found is None:
        return ""
    if isinstance(found, (int, float)):
        return write(found)
    return "\n".join(found)  # type: ignore[arg-type]


def all_values() -> dict[str, Value]:
    """The tables of all modules, in the order of the documentation."""
    from marsx.admin.views import amounts, cluster, devices, messages, switches

    modules = (switches, amounts, devices, messages, cluster)
    return {value.name: value for module in modules for value in module.VALUES}
