"""How amounts, times and progress are written (facts 8.5); what counts as a number or as true in the macro language.

Two kinds of amounts: the newer one takes the next unit early and writes three digits, the older one (`-1and1`) keeps
smaller units longer and writes whole numbers where they are exact.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from marsx.base.errors import UsageError

Number = int | float

_NEW = (("T", 9.99 * 2**40), ("G", 9.99 * 2**30), ("M", 2**20), ("K", 2**10))
_OLD = (("T", 999 * 2**40), ("G", 999 * 2**30), ("M", 99 * 2**20), ("K", 9 * 2**10))
_POWER = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
_NUMBER = re.compile(r"\s*([-+]?(?:[0-9]{1,400}\.?[0-9]{0,400}|\.[0-9]{1,400})(?:[eE][-+]?[0-9]{1,5})?)")
EXACT = 1 << 63
BAR_MAX = 1000


def number(text: str) -> Number:
    """The number a text begins with, 0 if it begins with none; beyond 64 bits inexact."""
    if len(text) < 19 and text.isascii() and text.isdigit():
        return int(text)
    match = _NUMBER.match(text)
    if not match:
        return 0
    word = match[1]
    return int(word) if len(word) < 19 and word.lstrip("+-").isdigit() else bounded(float(word))


def bounded(value: Number) -> Number:
    """Whole numbers up to 64 bits stay exact, larger ones become floating."""
    if isinstance(value, int):
        return value if -EXACT <= value < EXACT else float(value)
    return int(value) if math.isfinite(value) and value.is_integer() and abs(value) < 2**53 else value


def whole(value: Number) -> int:
    """Without what is behind the point; 0 for what is no finite number."""
    return int(value) if isinstance(value, int) or math.isfinite(value) else 0


def write(value: Number) -> str:
    """A number as text: 15 digits that count."""
    return str(value) if isinstance(value, int) else f"{value:.15g}"


def is_true(text: str) -> bool:
    """Everything is true but nothing and "0"."""
    return text not in ("", "0")


def unit_of(name: str, most: float, older: bool) -> tuple[str, int]:
    """(name, divisor) of a unit named like K, KiB, k or kB, or chosen by the largest number."""
    if not name:
        letter = next((letter for letter, least in (_OLD if older else _NEW) if most >= least), "")
        return (f"{letter}iB" if letter else "B"), 1024 ** _POWER[letter]
    letter = "" if name == "B" else name[0]
    if letter.upper() not in _POWER or name[1:] not in ("", "B", "iB"):
        raise UsageError(f"'{name[:20]}' is no unit", "units: B K M G T (1024), k m g t (1000)")
    if letter.islower():
        return f"{letter.upper()}B", 1000 ** _POWER[letter.upper()]
    return (f"{letter}iB" if letter else "B"), 1024 ** _POWER[letter]


def amounts(
    numbers: Sequence[Number], unit: str = "", delim: str = "", unit_delim: str = "", older: bool = False
) -> str:
    """`191.652 MiB`, or several with one unit: `164/356 MiB`."""
    values = [value if math.isfinite(value) else 0 for value in numbers]
    name, divisor = unit_of(unit, max(map(abs, values), default=0), older)
    if len(values) == 1:
        shown = [_single(values[0], divisor, older)]
    else:
        shown = [str(int(value / divisor)) for value in values]
    return (delim or "/").join(shown) + (unit_delim or " ") + name


def _single(value: Number, divisor: int, older: bool) -> str:
    exact = value == int(value) and int(value) % divisor == 0
    return str(int(value) // divisor) if exact and (older or divisor == 1) else f"{value / divisor:.3f}"


def rate(value: Number) -> str:
    """`1.17 MiB`"""
    shown = value if math.isfinite(value) else 0
    name, divisor = unit_of("", abs(shown), False)
    return f"{shown / divisor:.2f} {name}"


def seconds(value: Number) -> str:
    """`HH:MM:SS`, `--:--:--` for what is not known."""
    if not math.isfinite(value) or value < 0:
        return "--:--:--"
    left = int(value)
    return f"{left // 3600:02d}:{left // 60 % 60:02d}:{left % 60:02d}"


def progress(width: int, low: Number, middle: Number, high: Number) -> str:
    """A bar of `width` characters with its brackets: `=` and `>` up to `low`, `:` up to `middle`, `.` up to `high`. At
    the last step before the end the `>` is missing, and the bar is shorter by it, as scripts know it."""
    room = min(max(width, 3), BAR_MAX) - 2
    done = _part(room, low, high) + 1
    bar = "=" * min(room, done - 1) + (">" if done < room else "")
    bar += ":" * (_part(room, middle, high) - max(done, 0))
    return f"[{bar}{'.' * (room - max(done, len(bar)))}]"


def _part(room: int, value: Number, high: Number) -> int:
    if not (math.isfinite(value) and math.isfinite(high)):
        return 0
    if value >= high:
        return room
    return int(max(0.0, min(float(room), room * (value / high)))) if high > 0 else 0
