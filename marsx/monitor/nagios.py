"""--nagios: a picture as the output of a plugin for Nagios and Icinga (guidelines of the monitoring plugins).

The first line is the state, the worst reason and the performance data; below stand all reasons with what to do. Labels
are `RES.HOST.lag`, `RES.HOST.rest`, `RES.HOST.sync`, `HOST.age`, `HOST.free`; `U` is a value that is not known. What is
worse the less it is has its limits as ranges (`20:`).
"""

from __future__ import annotations

from typing import Any

from marsx.monitor.limits import Limit, Limits
from marsx.monitor.notes import WORDS, headline, sentence

Dict = dict[str, Any]


def text(picture: Dict, limits: Limits) -> str:
    """All of it."""
    count = len(picture["resources"])
    well = f"OK - {count} resource{'' if count == 1 else 's'}"
    first = headline(picture).replace(": ", " - ", 1) if picture["reasons"] else well
    lines = [f"MARS {_plain(first)} | {' '.join(performance(picture, limits))}"]
    for note in picture["reasons"]:
        advice = f" ==> {note['do']}" if note["do"] else ""
        lines.append(_plain(f"{WORDS[note['level']]}: {sentence(note)}{advice}"))
    return "\n".join(lines) + "\n"


def unknown(text: str) -> str:
    """Where there is no picture."""
    return f"MARS UNKNOWN - {_plain(text)}\n"


def _plain(text: str) -> str:
    """The bar divides text from data."""
    return text.replace("|", "/").replace("\n", " ")


def performance(picture: Dict, limits: Limits) -> list[str]:
    """'label'=value[unit];warning;critical;least;most"""
    found = []
    for host, one in picture["cluster"]["hosts"].items():
        if not one["local"]:
            found.append(_item(f"{host}.age", one["age"], "s", limits.peer))
        elif one["total_bytes"]:
            free = round(100 * one["free_bytes"] / one["total_bytes"], 2)
            found.append(_item(f"{host}.free", free, "%", limits.space, below=True, most="100"))
    for name, resource in picture["resources"].items():
        for host, node in resource["nodes"].items():
            if node["role"] != "primary":
                found.append(_item(f"{name}.{host}.lag", node["lag"]["seconds"], "s", limits.lag))
                found.append(_item(f"{name}.{host}.rest", node["replay"]["rest"], "B", limits.rest))
                found.append(_item(f"{name}.{host}.sync", node["sync"]["percent"], "%", Limit(), most="100"))
    return found


def _item(label: str, value: float | None, unit: str, limit: Limit, below: bool = False, most: str = "") -> str:
    def bound(number: float | None) -> str:
        return "" if number is None else f"{number:.12g}{':' if below else ''}"

    shown = "U" if value is None else f"{value:.15g}{unit}"
    return f"'{label}'={shown};{bound(limit.warning)};{bound(limit.critical)};0;{most}".rstrip(";")
