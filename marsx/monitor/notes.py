"""What there is to say about a picture: each note names a state, how bad it is, and what to do.

A note is `{"code", "level", "tag", "part", "host", "resource", "text", "do"}`. The tag is the manual's (4.3): WORK =
busy, TODO = something is wrong or can be done, HINT = somebody has to look. The level is the exit status it alone would
make (4.2): 0 well, 1 a warning or work beyond a limit, 2 critical, 3 not known. `do` is what to do next, "" where
nothing is. Codes are a contract (docs/mars-status.md), texts are not.

Here are the notes about cluster, hosts and resources, and what they come to; `nodenotes` has those about replicas.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from marsx.monitor.limits import Limits
from marsx.monitor.seen import DOWN, SILENT, UNASKED, Seen

WORK, TODO, HINT = "WORK", "TODO", "HINT"
WORDS = ("OK", "WARNING", "CRITICAL", "UNKNOWN")
CONNECT = "err-stall-connect"
KINDS = {"err": "error", "wrn": "warning", "inf": "info"}

_MESSAGE = re.compile(r"(?:(\d{1,12}\.\d{1,9}) \d{1,12}\.\d{1,9} )?(.*)", re.ASCII | re.DOTALL)
_WHY = re.compile(r"(?:^|; )(primary|fetch|replay|sync): ")
_SOURCE = re.compile(r"' from ([A-Za-z0-9_][-A-Za-z0-9_.]{0,62})$", re.ASCII)

Dict = dict[str, Any]


def note(code: str, bad: int, tag: str, part: str, text: str, do: str = "", host: str = "", resource: str = "") -> Dict:
    """See the module."""
    return {"code": code, "level": bad, "tag": tag, "part": part, "host": host, "resource": resource, "text": text,
            "do": do}


def level(notes: Iterable[Dict]) -> int:
    """The highest."""
    return max((found["level"] for found in notes), default=0)


def worst(cluster: Dict, resources: Mapping[str, Dict]) -> Dict:
    """level, word and reasons of it all: the notes with a level, the worst first."""
    found = [*cluster["notes"]]
    for host in cluster["hosts"].values():
        found += host["notes"]
    for resource in resources.values():
        found += resource["notes"]
        for node in resource["nodes"].values():
            found += node["notes"]
    reasons = sorted((one for one in found if one["level"]), key=lambda one: -one["level"])
    return {"level": level(reasons), "word": WORDS[level(reasons)], "reasons": reasons}


def headline(picture: Dict) -> str:
    """The worst in one line: `CRITICAL: data on b: Replay is paused (and 2 more)`; "OK" where there is nothing."""
    reasons = picture["reasons"]
    if not reasons:
        return "OK"
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return f"{picture['word']}: {sentence(reasons[0])}{more}"


def sentence(one: Dict) -> str:
    """A note that stands alone: where it is, and what."""
    where = " on ".join(part for part in (one["resource"], one["host"]) if part)
    return f"{where}: {one['text']}" if where else str(one["text"])


# What marsd says


def messages(said: Mapping[str, str]) -> list[Dict]:
    """Standing messages of a host: KEY, kind, text, and since when (seconds, None if it does not say)."""
    found = []
    for key, value in sorted(said.items()):
        match = _MESSAGE.fullmatch(value)
        assert match is not None  # every text fits
        kind = KINDS.get(key.partition("-")[0], "warning")
        found.append({"key": key, "kind": kind, "text": match[2], "since": float(match[1]) if match[1] else None})
    return found


def reasons(said: Mapping[str, str]) -> dict[str, str]:
    """Why an activity that is not there is not there, as marsd says it: primary, fetch, replay, sync -> text."""
    if "inf-why" not in said:
        return {}
    parts = _WHY.split(_MESSAGE.sub(r"\2", said.get("inf-why", ""), count=1))
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def pairs(text: str, left: str, right: str) -> list[Dict]:
    """A fact of the form A=B,... (`-` for none) as dicts."""
    parts = [part.partition("=") for part in text.split(",") if "=" in part]
    return [{left: one, right: other} for one, _, other in parts]


def source(said: Mapping[str, str], part: str) -> str:
    """From whom a sync or fetch comes, "" if that is not said."""
    text = said.get(f"inf-{part}")
    match = _SOURCE.search(text) if text else None
    return match[1] if match else ""


# Cluster and hosts


def of_cluster(seen: Seen, is_member: bool, alive: bool | None) -> list[Dict]:
    """About this host's marsd; who may not ask it goes by what it says of itself in the tree (`alive`)."""
    found = []
    is_down = seen.daemon.state == DOWN or (seen.daemon.state == UNASKED and alive is False)
    if not is_member:
        do = "marsadm create-cluster, or marsadm join-cluster"
        found.append(note("no-cluster", 3, TODO, "cluster", "this host belongs to no cluster", do))
    elif is_down:
        text = "marsd does not run here: what follows is the last known state"
        found.append(note("daemon-down", 3, TODO, "cluster", text, "marsd start", host=seen.host))
    elif seen.daemon.state == SILENT:
        text = "marsd does not answer: what follows is the last known state"
        found.append(note("daemon-silent", 3, TODO, "cluster", text, "look into marsd.log", seen.host))
    return found


def of_host(host: str, found: Dict, limits: Limits, silent: Collection[str] = ()) -> list[Dict]:
    """About a host: is it there, has it room, what does it say. `silent`: hosts that are called so themselves."""
    said = [*_silence(host, found, limits), *_space(host, found, limits)]
    for message in found["messages"]:
        if message["kind"] != "info":
            bad = message["kind"] == "error"
            level, tag = (2, TODO) if bad else (1, HINT)
            if message["key"] == CONNECT:
                level, tag = _connect(found, silent)
            said.append(note("message", level, tag, "host", f"{message['key']}: {message['text']}", host=host))
    return said


def _connect(found: Dict, silent: Collection[str]) -> tuple[int, str]:
    """Lines to hosts that are silent are no news: those are told once, not once more by each host that misses them."""
    lost = {one["host"] for one in found["unreachable"]}
    return (0, WORK) if lost and lost <= set(silent) else (1, HINT)


def _silence(host: str, found: Dict, limits: Limits) -> Iterable[Dict]:
    age = found["age"]
    if found["local"] or found["alive"] is None:
        return
    bad = limits.peer.level(age if age is not None else 1e12)
    if found["alive"] and not bad:
        return
    if found["stopped"]:
        bad, text, do = max(1, bad), "marsd was stopped there", f"on {host}: marsd start"
    else:
        text = "never heard of" if age is None else f"not heard of for {duration(age)}"
        do = f"check host {host} and the network to it"
    yield note("peer-silent", bad, TODO, "connect", text, do, host=host)


def _space(host: str, found: Dict, limits: Limits) -> Iterable[Dict]:
    total, free, rest = found["total_bytes"], found["free_bytes"], found["rest_bytes"]
    left = free if free is not None else rest
    share = 100 * left / total if total and left is not None else None
    bad = max(0 if not found["emergency"] else 1 if found["emergency"] == 1 else 2, limits.space.level_below(share))
    if not bad:
        return
    place = "Local Partition /mars" if found["local"] else f"Remotesystem {host}: /mars"
    tag = TODO if bad > 1 else HINT
    state = f"emergency level {found['emergency']}, " if found["emergency"] else ""
    amount = "not known" if left is None else size(left)
    at = "" if found["local"] else f"on {host}: "
    do = f"{at}marsadm log-delete-all all, or enlarge /mars; what holds logs: mars-status --history"
    yield note("space", bad, tag, "space", f"{place} is full ({state}{amount} left) !!!", do, host)


# Resources


def of_resource(name: str, found: Dict) -> list[Dict]:
    """About a resource as a whole."""
    said = []
    if found["split_brain"]:
        do = f"keep the data of one; on the other: marsadm invalidate {name}"
        said.append(note("split-brain", 2, TODO, "resource", f"SPLIT BRAIN: {found['split_brain']['text']}", do,
                         resource=name))
    if len(found["primaries"]) > 1:
        text = f"more than one Primary: {', '.join(found['primaries'])}"
        do = f"umount it on all but one, there: marsadm secondary {name}"
        said.append(note("more-primaries", 2, TODO, "resource", text, do, resource=name))
    if not found["designated"]:
        do = f"where it is to be used: marsadm primary {name}"
        said.append(note("no-primary", 1, HINT, "resource", "nobody is designated as Primary", do, resource=name))
    return said


# Amounts as people read them


def size(amount: float) -> str:
    """In the unit that leaves one to three digits before the point: 256.000 MiB."""
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if abs(amount) < 1000 or unit == "PiB":
            break
        amount /= 1024
    return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.3f} {unit}"


def duration(seconds: float) -> str:
    """42 sec, 12 min, 3 h 20 min, 4 days 3 h."""
    whole = int(seconds)
    if whole < 120:
        return f"{whole} sec"
    if whole < 7200:
        return f"{whole // 60} min"
    if whole < 2 * 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} days {whole % 86400 // 3600} h"
