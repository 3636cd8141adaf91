"""--events: one JSON line for each change of the picture, from the kernel's notification of the tree (inotify).

    {"event": "exists", "time", "what", "host", "resource", "state": {...}}     each object, at the start
    {"event": "ready", "time"}                                                  the start is told
    {"event": "change", "time", "what", "host", "resource", "changed": {KEY: NEW VALUE}}
    {"event": "create" | "destroy", ...}                                        with "state", without
    {"event": "raise" | "clear", "time", "note": {...}}                         a note comes, goes, or changes its level

`what` is cluster, host, resource or replica; keys are those of the picture, nested ones with dots (`replay.pos`). What
only tells how time goes by (age, lag, seconds left) is no change. That a host falls silent, or a replica behind,
changes no entry: what is known is judged again at least every LOOK_S seconds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

LOOK_S = 10.0
"""Silence can only be noticed by a clock."""
PASSING = frozenset({"age", "seconds", "exact", "time", "free_bytes"})
PARTS = frozenset({"notes", "nodes", "hosts", "messages", "level"})
"""Told as objects or notes of their own."""

Dict = dict[str, Any]
Key = tuple[str, str, str]


def objects(picture: Dict) -> dict[Key, Dict]:
    """(what, resource, host) -> its keys, flat."""
    found: dict[Key, Dict] = {("cluster", "", ""): _flat({**picture["cluster"], "daemon": picture["daemon"]["state"]})}
    for host, one in picture["cluster"]["hosts"].items():
        found["host", "", host] = _flat(one)
    for name, resource in picture["resources"].items():
        found["resource", name, ""] = _flat(resource)
        for host, node in resource["nodes"].items():
            found["replica", name, host] = _flat(node)
    return found


def _flat(value: Dict, prefix: str = "") -> Dict:
    found = {}
    for key, inner in value.items():
        if key in PASSING or not prefix and key in PARTS:
            continue
        if isinstance(inner, dict):
            found.update(_flat(inner, f"{prefix}{key}."))
        else:
            found[prefix + key] = inner
    return found


def notes(picture: Dict) -> dict[tuple[Any, ...], Dict]:
    """What makes a note the same one -> the note. Its text may go on changing (percent); its level may not."""
    found = {}
    cluster, resources = picture["cluster"], picture["resources"].values()
    parts = [cluster, *cluster["hosts"].values(), *resources]
    for part in [*parts, *(node for resource in resources for node in resource["nodes"].values())]:
        for note in part["notes"]:
            key = note["text"].partition(":")[0] if note["code"] == "message" else ""
            found[note["code"], note["resource"], note["host"], note["level"], key] = note
    return found


def differences(before: Dict | None, after: Dict) -> Iterator[Dict]:
    """The events that lead from one picture to the next; without the first: what there is."""
    now = {"time": round(after["time"], 3)}
    old, new = objects(before) if before else {}, objects(after)
    for key, state in new.items():
        what = dict(zip(("what", "resource", "host"), key, strict=True))
        if key not in old:
            yield {"event": "create" if before else "exists", **now, **what, "state": state}
        elif changed := {name: value for name, value in state.items() if old[key].get(name, state) != value}:
            yield {"event": "change", **now, **what, "changed": changed}
    for key in old.keys() - new.keys():
        yield {"event": "destroy", **now, **dict(zip(("what", "resource", "host"), key, strict=True))}
    was, there = notes(before) if before else {}, notes(after)
    for gone in was.keys() - there.keys():
        yield {"event": "clear", **now, "note": was[gone]}
    for come in there.keys() - was.keys():
        yield {"event": "raise", **now, "note": there[come]}
    if before is None:
        yield {"event": "ready", **now}


def follow(root: str, picture: Callable[[list[str] | None], Dict], say: Callable[[str], None]) -> None:
    """For ever: `picture(names)` after what changed was read again (None: everything)."""
    import select

    from marsx.tree.watch import Watch

    pending: list[list[str] | None] = []
    watch = Watch(root, pending.append)
    try:
        last = None
        pending.append(None)
        while True:
            everything = any(names is None for names in pending)
            names = None if everything else list(dict.fromkeys(rel for some in pending for rel in some or ()))
            pending.clear()
            current = picture(names)
            for event in differences(last, current):
                say(json.dumps(event))
            last = current
            if select.select([watch.fileno()], [], [], LOOK_S)[0]:
                watch.process()
    finally:
        watch.close()
