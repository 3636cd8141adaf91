"""What --system and --debug add to a picture: the tunables of this host, and what its marsd has said of late.

Both read files of this host; what this user may not read is said, or left out.
"""

from __future__ import annotations

import os
import re
import time
from typing import Any

from marsx.base.config import Paths, Settings
from marsx.base.text import printable
from marsx.base.tunables import TUNABLES

TAIL = 1 << 18
"""How much of the end of the messages file is read."""
LINES_MAX = 20
LEVELS = ("WARNING", "ERROR", "CRITICAL")

_LINE = re.compile(r"([0-9T:-]{19})\.[0-9]{3} ([A-Z]+) \S+ (.*)", re.DOTALL)
_WORD = re.compile(r"[A-Za-z0-9_][-A-Za-z0-9_]*", re.ASCII)

Dict = dict[str, Any]


def add_system(picture: Dict, paths: Paths) -> None:
    """`system`: tunable -> {set, source, value, used, default, unit, meaning}. `set` is the text that somebody wrote
    (source: the file), None if nobody did; `value` is what counts; `used` what is measured, where anything is."""
    current = Settings(paths)
    used, found = _measured(picture), {}
    table = current.file.get("tunables", {})
    for name, tunable in TUNABLES.items():
        text, source = _set(paths, name), paths.sys_dir
        if text is None and (listed := _listed(table, name)) is not None:
            text, source = printable(str(listed), 40), paths.config_file
        found[name] = {
            "set": text,
            "source": "" if text is None else source,
            "value": current.get(name),
            "used": used.get(name),
            "default": tunable.default,
            "unit": tunable.unit,
            "meaning": tunable.meaning,
        }
    picture["system"] = found


def _set(paths: Paths, name: str) -> str | None:
    try:
        with open(f"{paths.sys_dir}/{name}", encoding="ascii", errors="replace") as file:
            return printable(file.read(64).strip(), 40)
    except OSError:
        return None


def _listed(table: Any, name: str) -> Any:
    """What marsd.toml says: `"a/b" = 1`, or `b = 1` in a table `a`."""
    if isinstance(table, dict) and name not in table and "/" in name:
        first, _, rest = name.partition("/")
        return _listed(table.get(first), rest)
    return table.get(name) if isinstance(table, dict) else None


def _measured(picture: Dict) -> dict[str, int]:
    """What is in use now of what can be limited."""
    nodes = [node for resource in picture["resources"].values() for node in resource["nodes"].values()]
    own = [node for node in nodes if node["local"]]
    others = [node for node in nodes if not node["local"]]
    return {
        "traffic_tuning/client_role_traffic_ratelimit_kb": sum(_traffic(node, "") for node in own) // 1024,
        "traffic_tuning/server_role_traffic_ratelimit_kb":
            sum(_traffic(node, picture["host"]) for node in others) // 1024,
        "sync_limit": sum(node["sync"]["state"] == "running" for node in own),
    }  # fmt: skip


def _traffic(node: Dict, source: str) -> int:
    """What a replica receives, from `source` if given."""
    return sum(int(node[part]["rate"]) for part in ("sync", "fetch") if not source or node[part]["source"] == source)


def add_debug(picture: Dict, paths: Paths) -> None:
    """`debug` of the picture and of each resource: the last errors and warnings of marsd, `{time, level, text}`. A line
    that names no resource is marsd's own."""
    own: list[Dict] = []
    by_resource: dict[str, list[Dict]] = {name: [] for name in picture["resources"]}
    for line in _tail(paths.messages_file):
        match = _LINE.match(line)
        if match is None or match[2] not in LEVELS:
            continue
        said = {"time": match[1].replace("T", " "), "level": match[2], "text": printable(match[3].strip(), 400)}
        about = by_resource.keys() & set(_WORD.findall(match[3]))
        for name in about:
            by_resource[name].append(said)
        if not about:
            own.append(said)
    picture["debug"] = own[-LINES_MAX:]
    for name, found in by_resource.items():
        picture["resources"][name]["debug"] = found[-LINES_MAX:]


def _tail(path: str) -> list[str]:
    try:
        with open(path, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - TAIL))
            text = file.read(TAIL).decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    except OSError as err:
        now = time.strftime("%Y-%m-%dT%H:%M:%S")
        return [f"{now}.000 ERROR mars-status {path} cannot be read: {err.strerror}"]
    lines = text.split("\n")
    return lines if end <= TAIL else lines[1:]
