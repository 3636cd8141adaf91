"""Metrics in Prometheus' text format, made of a picture and of the live counters of the devices here.

`text(picture, live)` is pure. marsd serves it (`daemon/web.py`), `mars-status --prometheus` prints it for the textfile
collector of the node exporter. Names are a contract (docs/monitoring.md lists them): base units, `_total` for counters,
`{state="..."} 0|1` for states, of which just one is 1. What is not known is left out. Labels: `resource`, and `host` =
whom it speaks of, which need not be the host that is asked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

TYPE = "text/plain; version=0.0.4; charset=utf-8"
ROLES = ("primary", "secondary")
DAEMON_STATES = ("running", "silent", "down", "unasked")
PARTS = ("sync", "fetch", "replay")
PART_STATES = ("done", "running", "waiting", "paused", "silent", "primary")
VERIFY_STATES = ("running", "equal", "differs", "repaired", "stopped", "failed")
# Reasons of `unreachable` -> state of a connection.
CONNECTIONS = {
    "refused": "down", "unreachable": "down", "lost": "down", "closed": "down", "timeout": "silent",
    "silent": "silent", "stalled": "silent", "proto": "version", "service": "version", "garbage": "version",
    "tls": "refused", "uuid": "refused", "name": "refused", "not-member": "refused", "certificate": "refused",
    "auth": "refused", "busy": "refused", "outcast": "refused",
}
CONNECTION_STATES = ("connected", "down", "silent", "version", "refused", "failed")

Dict = dict[str, Any]
Labels = dict[str, str]
Rows = Iterator[tuple[Labels, Any]]


class Family(NamedTuple):
    """One metric. `rows` gives (labels, value); a value of None is left out. A histogram's values are `Histogram`."""

    name: str
    kind: str
    help: str
    rows: Callable[[Dict, Mapping[str, Any]], Rows]


class Histogram(NamedTuple):
    """`counts[i]`: observations up to `scale * 2 ** i` and above the bound before; the last one has no bound."""

    counts: list[int]
    scale: float
    total: float


# ---- where values come from ----

def _one(get: Callable[[Dict], Any]) -> Callable[[Dict, Mapping[str, Any]], Rows]:
    def rows(picture: Dict, live: Mapping[str, Any]) -> Rows:
        yield {}, get(picture)
    return rows


def _hosts(get: Callable[[Dict], Any]) -> Callable[[Dict, Mapping[str, Any]], Rows]:
    def rows(picture: Dict, live: Mapping[str, Any]) -> Rows:
        for host, found in picture["cluster"]["hosts"].items():
            yield {"host": host}, get(found)
    return rows


def _resources(get: Callable[[Dict], Any]) -> Callable[[Dict, Mapping[str, Any]], Rows]:
    def rows(picture: Dict, live: Mapping[str, Any]) -> Rows:
        for name, found in picture["resources"].items():
            yield {"resource": name}, get(found)
    return rows


def _each_node(picture: Dict) -> Iterator[tuple[Labels, Dict]]:
    for name, resource in picture["resources"].items():
        for host, node in resource["nodes"].items():
            yield {"resource": name, "host": host}, node


def _nodes(get: Callable[[Dict], Any]) -> Callable[[Dict, Mapping[str, Any]], Rows]:
    def rows(picture: Dict, live: Mapping[str, Any]) -> Rows:
        for labels, node in _each_node(picture):
            yield labels, get(node)
    return rows


def _node_states(label: str, states: Iterable[str], get: Callable[[Dict], Any]) -> Callable[..., Rows]:
    """One row a state; `get` says which one it is (None: no rows), or for each whether it is."""
    def rows(picture: Dict, live: Mapping[str, Any]) -> Rows:
        for labels, node in _each_node(picture):
            found = get(node)
            if found is not None:
                for state in states:
                    yield {**labels, label: state}, found[state] if isinstance(found, dict) else found == state
    return rows


def _parts(key: str) -> Callable[..., Rows]:
    def rows(picture: Dict, live: Mapping[str, Any]) -> Rows:
        for labels, node in _each_node(picture):
            for part in PARTS:
                yield {**labels, "part": part}, node[part].get(key)
    return rows


def _part_states(picture: Dict, live: Mapping[str, Any]) -> Rows:
    for labels, node in _each_node(picture):
        for part in PARTS:
            for state in PART_STATES:
                yield {**labels, "part": part, "state": state}, node[part]["state"] == state


def _connections(picture: Dict, live: Mapping[str, Any]) -> Rows:
    """As this host sees them."""
    hosts, here = picture["cluster"]["hosts"], picture["host"]
    if picture["daemon"]["state"] != "running" or here not in hosts:
        return
    broken = {found["host"]: found["reason"] for found in hosts[here]["unreachable"]}
    for host in hosts:
        if host != here:
            now = CONNECTIONS.get(broken[host], "failed") if host in broken else "connected"
            for state in CONNECTION_STATES:
                yield {"host": host, "state": state}, now == state


def _stalled(picture: Dict, live: Mapping[str, Any]) -> Rows:
    for labels, node in _each_node(picture):
        for found in node["stalled"]:
            yield {**labels, "activity": found["activity"], "cause": found["cause"]}, 1


def _messages(picture: Dict, live: Mapping[str, Any]) -> Rows:
    for labels, node in _each_node(picture):
        for kind in ("error", "warning"):
            yield {**labels, "kind": kind}, sum(message["kind"] == kind for message in node["messages"])


def _held(picture: Dict, live: Mapping[str, Any]) -> Rows:
    for name, resource in picture["resources"].items():
        for host in resource["nodes"]:
            yield {"resource": name, "host": host}, host in resource["logs"]["held_by"]


def _switches(node: Dict) -> Dict:
    return {name.replace("_", "-"): on for name, on in node["switches"].items()}


def _live(kind: str, key: str) -> Callable[[Dict, Mapping[str, Any]], Rows]:
    """A number of the devices that this host serves; `kind`: counters or state."""
    def rows(picture: Dict, live: Mapping[str, Any]) -> Rows:
        for name in picture["resources"]:
            found = live.get(name, {}).get(kind, {})
            if key in found:
                yield {"resource": name}, found[key]
    return rows


def _histogram(counts: str, scale: float, total: str, factor: float) -> Callable[..., Rows]:
    def rows(picture: Dict, live: Mapping[str, Any]) -> Rows:
        for name in picture["resources"]:
            found = live.get(name, {}).get("counters", {})
            if counts in found and total in found:
                yield {"resource": name}, Histogram(list(found[counts]), scale, found[total] * factor)
    return rows


def _verify(key: str) -> Callable[[Dict], Any]:
    return lambda node: node["verify"] and node["verify"][key]


# ---- the table ----

_SWITCHES = ("attach", "connect", "sync", "allow-replay")
_ACTUAL = ("attached", "copying", "syncing", "replaying", "primary", "emergency")

FAMILIES = (
    # What is asked
    Family("mars_info", "gauge", "Who tells this: this host, its program, kernel, cluster.",
           lambda p, live: iter([({"host": p["host"], "program": p["program"], "kernel": p["kernel"],
                                   "cluster": p["cluster"]["uuid"]}, 1)])),
    Family("mars_daemon_state", "gauge", "State of marsd on this host.",
           lambda p, live: iter([({"state": s}, p["daemon"]["state"] == s) for s in DAEMON_STATES])),
    Family("mars_status_level", "gauge", "0 well, 1 warning, 2 critical, 3 not known, as mars-status ends.",
           _one(lambda p: p["level"])),
    Family("mars_status_timestamp_seconds", "gauge", "When this was made.", _one(lambda p: p["time"])),
    # Hosts
    Family("mars_peer_alive", "gauge", "Whether the host is heard of.", _hosts(lambda h: h["alive"])),
    Family("mars_peer_age_seconds", "gauge", "Time since the host was heard of.", _hosts(lambda h: h["age"])),
    Family("mars_peer_connection_state", "gauge", "Connection of this host to another one.", _connections),
    Family("mars_emergency_level", "gauge", "Emergency level of /mars, 0 (none) to 4 (primaries log nothing).",
           _hosts(lambda h: h["emergency"])),
    Family("mars_dir_free_bytes", "gauge", "Free space of /mars (this host).", _hosts(lambda h: h["free_bytes"])),
    Family("mars_dir_size_bytes", "gauge", "Size of /mars; of other hosts what is left of it for logs.",
           _hosts(lambda h: h["total_bytes"])),
    Family("mars_dir_rest_bytes", "gauge", "Space of /mars that logs may still take, in whole GiB.",
           _hosts(lambda h: h["rest_bytes"])),
    # Resources
    Family("mars_resource_size_bytes", "gauge", "Size of the resource.", _resources(lambda r: r["size"])),
    Family("mars_resource_split_brain", "gauge", "Whether histories have parted.",
           _resources(lambda r: r["split_brain"] is not None)),
    Family("mars_resource_primaries", "gauge", "Number of hosts where the device exists.",
           _resources(lambda r: len(r["primaries"]))),
    Family("mars_resource_level", "gauge", "0 well, 1 warning, 2 critical.", _resources(lambda r: r["level"])),
    Family("mars_resource_newest_log", "gauge", "Number of the newest log.",
           _resources(lambda r: r["newest"] and r["newest"]["log"])),
    Family("mars_log_bytes", "gauge", "Log files on this host.", _resources(lambda r: r["logs"]["bytes"])),
    Family("mars_log_files", "gauge", "Number of log files on this host.", _resources(lambda r: r["logs"]["count"])),
    Family("mars_log_deletable_bytes", "gauge", "Log files on this host that no member needs any more.",
           _resources(lambda r: r["logs"]["deletable_bytes"])),
    Family("mars_log_held_by", "gauge", "Whether old logs must be kept for this member.", _held),
    # Replicas
    Family("mars_resource_role", "gauge", "Role of the replica by fact.",
           _node_states("state", ROLES, lambda n: n["role"])),
    Family("mars_resource_designated", "gauge", "Whether the host shall be primary.",
           _nodes(lambda n: n["designated"])),
    Family("mars_resource_consistent", "gauge", "Whether the replica could take over.",
           _nodes(lambda n: n["consistent"])),
    Family("mars_resource_switch", "gauge", "Switches as wanted.", _node_states("switch", _SWITCHES, _switches)),
    Family("mars_resource_actual", "gauge", "What really runs.", _node_states("what", _ACTUAL, lambda n: n["actual"])),
    Family("mars_resource_part_state", "gauge", "State of sync, fetch and replay.", _part_states),
    Family("mars_resource_done_bytes", "gauge", "How far sync, fetch, replay are; log from the oldest one needed on.",
           _parts("done")),
    Family("mars_resource_rest_bytes", "gauge", "What is missing to sync, fetch, replay.", _parts("rest")),
    Family("mars_resource_rate_bytes_per_second", "gauge", "How fast they are, smoothed.", _parts("rate")),
    Family("mars_resource_position_log", "gauge", "Number of the log where fetch and replay are.", _parts("log")),
    Family("mars_resource_position_bytes", "gauge", "Position in that log.", _parts("pos")),
    Family("mars_last_progress_timestamp_seconds", "gauge", "When sync, fetch, replay moved last.", _parts("moved")),
    Family("mars_peer_replay_lag_seconds", "gauge", "Age of the oldest log that is not on the disk of the replica.",
           _nodes(lambda n: n["lag"]["seconds"])),
    Family("mars_peer_replay_lag_guessed", "gauge", "Whether that is guessed: the log itself is not here.",
           _nodes(lambda n: None if n["lag"]["seconds"] is None else not n["lag"]["exact"])),
    Family("mars_resource_stalls", "gauge", "Number of activities that are switched on and do not move.",
           _nodes(lambda n: len(n["stalled"]))),
    Family("mars_resource_stalled", "gauge", "One row for each of them, with its cause.", _stalled),
    Family("mars_resource_messages", "gauge", "Standing messages of marsd.", _messages),
    Family("mars_resource_verify_state", "gauge", "State of the last verify.",
           _node_states("state", VERIFY_STATES, _verify("state"))),
    Family("mars_resource_verify_differs_bytes", "gauge", "Bytes that differed in the last verify.",
           _nodes(_verify("differs"))),
    Family("mars_resource_verify_age_seconds", "gauge", "Time since the last verify said something.",
           _nodes(_verify("age"))),
    # Devices of this host
    Family("mars_device_opened", "gauge", "How often the device is open.", _nodes(lambda n: n["device"]["opened"])),
    Family("mars_device_writes_total", "counter", "Writes answered.", _live("counters", "writes")),
    Family("mars_device_written_bytes_total", "counter", "Bytes of them.", _live("counters", "write_bytes")),
    Family("mars_device_reads_total", "counter", "Reads.", _live("counters", "reads")),
    Family("mars_device_read_bytes_total", "counter", "Bytes of them.", _live("counters", "read_bytes")),
    Family("mars_device_flushes_total", "counter", "Flushes that applications asked for.",
           _live("counters", "flushes")),
    Family("mars_device_waits_total", "counter", "Writes that had to wait for room in memory.",
           _live("counters", "waits")),
    Family("mars_device_write_latency_seconds", "histogram", "From the request to its answer.",
           _histogram("latency", 1e-6, "latency_us", 1e-6)),
    Family("mars_device_read_latency_seconds", "histogram", "From the request to its answer.",
           _histogram("read_latency", 1e-6, "read_latency_us", 1e-6)),
    Family("mars_device_flush_latency_seconds", "histogram", "From the request to its answer.",
           _histogram("flush_latency", 1e-6, "flush_latency_us", 1e-6)),
    Family("mars_log_group_records", "histogram", "Records in a group, which is one write of the log.",
           _histogram("group_sizes", 1.0, "records", 1.0)),
    Family("mars_log_syncs_total", "counter", "Flushes of the log.", _live("counters", "syncs")),
    Family("mars_device_backlog_bytes", "gauge", "Log that is not written back yet.",
           _live("state", "writeback_rest")),
    Family("mars_device_shadow_bytes", "gauge", "Data that are only in the log.", _live("state", "shadow_bytes")),
)


# ---- text ----

def text(picture: Dict, live: Mapping[str, Any] | None = None) -> str:
    """All metrics; `live`: resource -> counters and state (what the control socket says)."""
    lines: list[str] = []
    for family in FAMILIES:
        rows = [(labels, value) for labels, value in family.rows(picture, live or {}) if value is not None]
        if not rows:
            continue
        lines += [f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind}"]
        for labels, value in rows:
            if isinstance(value, Histogram):
                lines += _histogram_lines(family.name, labels, value)
            else:
                lines.append(f"{family.name}{_braces(labels)} {_number(value)}")
    return "\n".join(lines) + "\n"


def _histogram_lines(name: str, labels: Labels, found: Histogram) -> Iterator[str]:
    seen = 0
    for at, count in enumerate(found.counts[:-1]):
        seen += count
        yield f"{name}_bucket{_braces({**labels, 'le': _number(found.scale * 2 ** at)})} {seen}"
    seen += found.counts[-1]
    yield f"{name}_bucket{_braces({**labels, 'le': '+Inf'})} {seen}"
    yield f"{name}_sum{_braces(labels)} {_number(found.total)}"
    yield f"{name}_count{_braces(labels)} {seen}"


def _number(value: float) -> str:
    if isinstance(value, float):
        return f"{value:.15g}"
    return str(int(value))


def _braces(labels: Labels) -> str:
    inner = ",".join(f'{key}="{_escaped(value)}"' for key, value in labels.items())
    return f"{{{inner}}}" if inner else ""


_SPECIAL = re.compile(r'[\\"\n]')


def _escaped(value: str) -> str:
    return _SPECIAL.sub(lambda match: {"\\": r"\\", '"': r"\"", "\n": r"\n"}[match[0]], value)
