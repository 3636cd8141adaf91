"""The picture: all there is to know about a cluster as one structure of dicts, lists, texts and numbers.

`picture(view, now_ns, seen, limits)` is a pure function: of a frozen tree, of what was seen of this host (`seen`), and
of the limits from which on something is a warning. Text, `--json`, `--nagios`, metrics and pages are functions of the
picture and of nothing else; its keys are a contract (docs/mars-status.md): while VERSION stays, keys are only added and
no type changes.

Amounts are bytes, times seconds, rates bytes a second; None is "not known", never guessed. Bytes of log are counted
along the version links from the beginning of the oldest log that leads to the replica's position (`LogMap`).

    done + rest = total for sync, fetch and replay;   percent = 100 only where rest = 0
    the level of a part is the highest of its notes; all reasons are notes (`notes`)
"""

from __future__ import annotations

from typing import Any

from marsx.log import chain
from marsx.monitor import nodenotes, notes
from marsx.monitor.limits import Limits
from marsx.monitor.seen import DOWN, RUNNING, SILENT, UNASKED, Seen
from marsx.tree.distance import LogMap
from marsx.tree.paths import NONE
from marsx.tree.view import View

FORMAT, VERSION = "mars-status", 1
ALIVE_S = 30.0
SLOW = 64 << 10
"""Bytes a second that a primary is taken to write at least, where its rate has to be guessed."""
NS = 1_000_000_000
SWITCHES = ("attach", "connect", "sync", "allow-replay")
ACTUAL = {"attached": "is-attached", "copying": "is-copying", "syncing": "is-syncing", "replaying": "is-replaying",
          "primary": "is-primary", "emergency": "has-emergency"}
RATES = {"sync": "sync", "fetch": "file", "replay": "replay", "device": "if"}

Dict = dict[str, Any]


def picture(view: View, now_ns: int, seen: Seen, limits: Limits | None = None, only: str = "") -> Dict:
    """See the module; `only`: one resource."""
    limits = limits or Limits()
    names = [name for name in view.resources if not only or name == only]
    found: Dict = {
        "format": FORMAT,
        "version": VERSION,
        "host": seen.host,
        "time": now_ns / NS,
        "program": seen.program,
        "kernel": seen.kernel,
        "daemon": {"state": seen.daemon.state, "version": seen.daemon.version, "text": str(seen.daemon)},
        "only": only,
    }
    found["cluster"] = cluster = _cluster(view, now_ns, seen, limits)
    found["resources"] = {name: _Resource(view, now_ns, seen, limits, name, cluster["hosts"]).found for name in names}
    if only and names:
        _blame_only(cluster, found["resources"][only])
    return {**found, **notes.worst(cluster, found["resources"])}


def _cluster(view: View, now_ns: int, seen: Seen, limits: Limits) -> Dict:
    order = sorted(view.hosts, key=lambda host: host != seen.host)  # this host first, the others as they were
    hosts = {host: _host(view, now_ns, seen, limits, host) for host in order}
    silent = [host for host, found in hosts.items() if found["alive"] is False]
    for host, found in hosts.items():
        found["notes"] = notes.of_host(host, found, limits, silent)
        found["level"] = notes.level(found["notes"])
    said = notes.of_cluster(seen, bool(view.uuid), hosts.get(seen.host, {}).get("alive"))
    return {
        "uuid": view.uuid,
        "hosts": hosts,
        "sync_limit": seen.sync_limit or view.sync_limit(seen.host),
        "notes": said,
        "level": max([notes.level(said), *(found["level"] for found in hosts.values())]),
    }


def _blame_only(cluster: Dict, resource: Dict) -> None:
    """With one resource only its members count, and this host."""
    for host, found in cluster["hosts"].items():
        if host not in resource["nodes"] and not found["local"]:
            found["notes"], found["level"] = [], 0
    cluster["level"] = max(notes.level(cluster["notes"]), *(found["level"] for found in cluster["hosts"].values()), 0)


def _host(view: View, now_ns: int, seen: Seen, limits: Limits, host: str) -> Dict:
    is_here = host == seen.host
    age = view.alive_age(host, now_ns)
    level, total = view.emergency(host), view.host_actual(host, "total-space")
    if is_here and seen.daemon.state != UNASKED:
        alive: bool | None = seen.daemon.state == RUNNING
        age = 0 if alive else age
    elif seen.daemon.state in (DOWN, SILENT):
        alive = None  # nobody here has listened
    else:
        alive = view.alive(host, now_ns, int((limits.peer.warning or ALIVE_S) * NS))
    return {
        "local": is_here,
        "ip": view.ips.get(host, ""),
        "alive": alive,
        "age": None if age is None else round(age / NS, 3),
        "stopped": view.host_actual(host, "alive") == "0",
        "buildtag": view.host_actual(host, "buildtag"),
        "emergency": level,
        "rest_bytes": view.rest_space(host) << 30 if total else None,
        "total_bytes": seen.total_bytes if is_here else int(total) << 30 if total.isdigit() else None,
        "free_bytes": seen.free_bytes if is_here else None,
        "sync_limit": view.sync_limit(host),
        "unreachable": notes.pairs(view.host_actual(host, "unreachable"), "host", "reason"),
        "messages": notes.messages(view.message_table("").get(host, {})),
    }


class _Resource:
    """One resource; `found` is its part of the picture."""

    def __init__(self, view: View, now_ns: int, seen: Seen, limits: Limits, name: str, hosts: dict[str, Dict]) -> None:
        self.view, self.now_ns, self.seen, self.name, self.hosts = view, now_ns, seen, name, hosts
        self.limits = limits
        self.members = view.members(name)
        self.table, self.said = view.table(name), view.message_table(name)
        self.size, self.designated = view.size(name), view.designated(name)
        self.logs = LogMap(view, name)
        self.primaries = tuple(host for host in self.members if self._get(host, "actual/is-primary") == "1")
        here = seen.host
        order = [*([here] if here in self.members else []), *(host for host in self.members if host != here)]
        self.needed = {host: view.first_needed(name, host) for host in order}
        nodes = {host: self._node(host) for host in order}
        self.found: Dict = {
            "size": self.size,
            "block_size": view.block_size(name),
            "designated": self.designated,
            "primaries": list(self.primaries),
            "joined": here in self.members,
            "modus": "remote" if here not in nodes else "standalone" if len(nodes) == 1 else "clustered",
            "newest": _position(self.logs.newest),
            "split_brain": self._split(),
            "logs": self._logs(),
            "nodes": nodes,
        }
        self.found["notes"] = notes.of_resource(name, self.found)
        for host, node in nodes.items():
            node["notes"] = nodenotes.of_node(name, host, node, self.found, limits)
            node["level"] = notes.level(node["notes"])
        self.found["level"] = max([notes.level(self.found["notes"]), *(node["level"] for node in nodes.values())])

    def _get(self, host: str, key: str) -> str:
        return self.table.get(host, {}).get(key, "")

    def _number(self, host: str, key: str) -> int:
        text = self._get(host, key)
        return int(text) if text.isascii() and text.isdigit() else 0

    def _is(self, host: str, key: str) -> bool:
        return self._get(host, key) == "1"

    def _rate(self, host: str, kind: str) -> int:
        """Bytes a second; what a silent host said last is no rate."""
        if self._known(host)["alive"] is False:
            return 0
        return self._number(host, f"actual/amount-{RATES[kind]}_rate") * 1024

    def _known(self, host: str) -> Dict:
        return self.hosts.get(host) or {"alive": None, "age": None, "ip": "", "local": host == self.seen.host}

    def _is_heard(self, host: str) -> bool:
        return self._known(host)["alive"] is True

    def _split(self) -> Dict | None:
        texts = self.view.version_texts(self.name)
        if len({max(texts.get(host, {}).items(), default=None) for host in self.members}) < 2:
            return None  # equal links of the newest log are equal histories
        histories = chain.histories(texts, self.members)
        split = chain.split_brain(histories)
        return {"hosts": list(split.hosts), "text": str(split)} if split else None

    def _logs(self) -> Dict:
        """The log files here, and who still needs the oldest."""
        files = None if self.seen.logs is None else self.seen.logs.get(self.name, ())
        newest = self.logs.newest.nr if self.logs.newest else 0
        limit = min(self.needed.values(), default=0)
        return {
            "count": None if files is None else len(files),
            "bytes": None if files is None else sum(log.size for log in files),
            "deletable_bytes": None if files is None else sum(log.size for log in files if log.nr < min(limit, newest)),
            "needed_from": limit,
            "held_by": [host for host, nr in self.needed.items() if nr == limit and nr < newest],
        }

    def _node(self, host: str) -> Dict:
        """One host's replica."""
        known, designated = self._known(host), host == self.designated
        is_primary = host in self.primaries
        return {
            "local": known["local"],
            "ip": known["ip"],
            "alive": known["alive"],
            "age": known["age"],
            "role": "primary" if is_primary else "secondary",
            "designated": designated,
            "wants_primary": self._get(host, "todo/want-primary") not in ("", "0"),
            "consistent": self.view.consistent(self.name, host),
            "disk": self._disk(host),
            "device": self._device(host),
            "switches": {key.replace("-", "_"): self._is(host, f"todo/{key}") for key in SWITCHES},
            "actual": {key: self._is(host, f"actual/{fact}") for key, fact in ACTUAL.items()},
            "why": notes.reasons(self.said.get(host, {})),
            **self._amounts(host),
            "logs": self._node_logs(host),
            "verify": self._verify(host),
            "stalled": notes.pairs(self._get(host, "actual/stalled"), "activity", "cause"),
            "messages": notes.messages(self.said.get(host, {})),
        }

    def _disk(self, host: str) -> Dict:
        is_here, disks = host == self.seen.host, self.seen.disks
        return {
            "path": self._get(host, "data"),
            "bytes": self._number(host, "actsize"),
            "present": self.name in disks if is_here and disks is not None else None,
        }

    def _device(self, host: str) -> Dict:
        is_here = host == self.seen.host
        return {
            "name": self._get(host, "device").replace(NONE, "") or self.name,
            "on": self._is(host, "actual/is-primary"),
            "present": self.name in self.seen.devices if is_here else None,
            "opened": self._number(host, "actual/open-count"),
            "mounts": list(self.seen.mounts.get(self.name, ())) if is_here else [],
            "rate": self._rate(host, "device"),
            "ops_rate": self._number(host, "actual/ops-if_rate") if known_alive(self._known(host)) else 0,
        }

    def _amounts(self, host: str) -> Dict:
        view, name = self.view, self.name
        amounts, replay = self.logs.amounts(host), view.replay(name, host)
        fetched, synced = self.logs.fetched(host), min(self._number(host, "syncstatus"), self.size)
        found: Dict = {
            "sync": _span(synced, self.size, self._rate(host, "sync")),
            "fetch": _span(amounts.fetched, amounts.known, self._rate(host, "fetch")),
            "replay": _span(amounts.replayed, amounts.known, self._rate(host, "replay")),
        }
        found["fetch"] |= _position(fetched) or {"log": 0, "pos": 0}
        found["replay"] |= _position(replay.pos if replay else None) or {"log": 0, "pos": 0}
        found["replay"]["dirty"] = replay.length if replay else 0
        found["replay"]["ready"] = amounts.fetched - amounts.replayed
        numbers = view.version_numbers(name, host)
        for part, rel in (("sync", f"resource-{name}/syncstatus-{host}"), ("replay", f"resource-{name}/replay-{host}"),
                          ("fetch", f"resource-{name}/version-{numbers[-1]:09d}-{host}" if numbers else "")):
            stamp = view.stamp(rel) if rel else 0
            found[part]["moved"] = stamp / NS if stamp else None
        for part in ("sync", "fetch"):
            found[part]["source"] = notes.source(self.said.get(host, {}), part)
        for part in ("sync", "fetch", "replay"):
            found[part]["state"] = getattr(self, f"_{part}_state")(host, found[part])
        seconds, exact = self._lag(host, found["replay"]["rest"])
        found["lag"] = {"seconds": seconds, "exact": exact}
        return found

    def _sync_state(self, host: str, span: Dict) -> str:
        if not span["rest"] and self.size:
            return "done"
        if not (self._is(host, "todo/sync") and self._is(host, "todo/attach")):
            return "paused"
        return self._live(host, "running" if self._is(host, "actual/is-syncing") else "waiting")

    def _fetch_state(self, host: str, span: Dict) -> str:
        if host in self.primaries:
            return "primary"
        if not self._is(host, "todo/connect"):
            return "paused"
        if not self._is(host, "actual/is-copying"):
            return self._live(host, "waiting")
        return self._live(host, "running" if span["rest"] else "done")

    def _replay_state(self, host: str, span: Dict) -> str:
        if host in self.primaries:
            return "primary"
        if not (self._is(host, "todo/allow-replay") and self._is(host, "todo/attach")):
            return "paused"
        if not span["rest"]:
            return "done"
        return self._live(host, "running" if self._is(host, "actual/is-replaying") else "waiting")

    def _live(self, host: str, state: str) -> str:
        """What a host that says nothing said last is not what is."""
        known = self._known(host)
        return "silent" if known["alive"] is False or (known["local"] and not known_alive(known)) else state

    def _lag(self, host: str, rest: int) -> tuple[float | None, bool]:
        """(seconds since the oldest log that is missing on the disk was written, read from the log itself?). On a
        primary there is no lag: its device is never behind itself."""
        if host not in self.primaries and any(self._is(one, "actual/is-emergency") for one in self.primaries):
            return None, False  # what the primary writes now is in no log
        if not rest and self.primaries and host not in self.primaries and not any(map(self._is_heard, self.primaries)):
            return None, False  # it may have written since what was heard of it last
        at = self.logs.replayed(host)
        if not rest or at is None or host in self.primaries:
            return (0.0 if rest == 0 or at is not None else None), True
        born = self.seen.when(self.name, at, self.logs.ends.get(at.nr, 0))
        if 0 < born <= self.now_ns + NS:
            return round(max(0, self.now_ns - born) / NS, 3), True
        return self._guessed_lag(at, rest), False

    def _guessed_lag(self, at: Any, rest: int) -> float | None:
        """Where the missing log is not here: as long as the primary takes to write so much. It was written before the
        primary told of its end, and behind the last group that is here."""
        newest = self.logs.newest
        if newest is None:
            return None
        told = self.view.stamp(f"resource-{self.name}/version-{newest.nr:09d}-{newest.producer}")
        last = self.seen.before(self.name, at)
        rate = max([SLOW, *(self._rate(primary, "device") for primary in self.primaries)])
        least = (self.now_ns - told) / NS if told else 0.0
        most = (self.now_ns - last) / NS if last else float("inf")
        return round(max(0.0, min(most, max(least, rest / rate))), 3)

    def _node_logs(self, host: str) -> Dict:
        numbers = self.view.version_numbers(self.name, host)
        needed = self.needed[host]
        return {
            "count": len(numbers),
            "bytes": sum(self.logs.ends.get(nr, 0) for nr in numbers),
            "needed_from": needed,
        }

    def _verify(self, host: str) -> Dict | None:
        state = self._get(host, "actual/verify-state")
        if not state:
            return None
        at = self._get(host, "actual/verify-time").partition(".")[0]
        counts = {key: self._number(host, f"actual/verify-{key}") for key in ("pos", "differs", "repaired")}
        return {"state": state, "source": self._get(host, "actual/verify-source"), "done": counts["pos"],
                "total": self.size, "differs": counts["differs"], "repaired": counts["repaired"],
                "age": max(0, self.now_ns // NS - int(at)) if at else None}


def known_alive(known: Dict) -> bool:
    """Heard of, or nobody here has listened."""
    return known["alive"] is not False


def _position(at: Any) -> Dict | None:
    return None if at is None else {"log": at.nr, "producer": at.producer, "pos": at.pos}


def _span(done: int, total: int, rate: int) -> Dict:
    """How far something is; `seconds` that are left, None where that cannot be told."""
    rest = max(0, total - done)
    return {"done": done, "total": total, "rest": rest, "percent": percent(done, total), "rate": rate,
            "seconds": 0 if not rest else rest // rate if rate else None}


def percent(done: int, total: int) -> float:
    """Two digits, 100 only where nothing is missing."""
    return 100.0 if done >= total else min(99.99, 10000 * done // total / 100)
