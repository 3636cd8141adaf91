"""Where block devices are mounted, in the mount name space of this process."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from typing import NamedTuple

_OCTAL = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """One mount of a device."""

    point: str
    fstype: str
    flags: str


def device_number(path: str) -> str:
    """`MAJOR:MINOR` of a block device, "" for what is none."""
    try:
        number = os.stat(path).st_rdev
    except (OSError, ValueError):
        return ""
    return f"{os.major(number)}:{os.minor(number)}" if number else ""


def mounts_of(numbers: Collection[str]) -> dict[str, tuple[Mount, ...]]:
    """device number -> its mounts."""
    found: dict[str, list[Mount]] = {}
    if numbers:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                parse(line, numbers, found)
    return {number: tuple(mounts) for number, mounts in found.items()}


def parse(line: str, numbers: Collection[str], found: dict[str, list[Mount]]) -> None:
    """Take one line of mountinfo into `found` if it is about one of the devices."""
    words = line.split()
    if len(words) > 5 and words[2] in numbers and "-" in words:
        point = _OCTAL.sub(lambda octal: chr(int(octal[1], 8)), words[4])
        behind = words[words.index("-") + 1 :]
        found.setdefault(words[2], []).append(Mount(point, behind[0] if behind else "", words[5]))
