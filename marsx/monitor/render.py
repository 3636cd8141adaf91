"""A picture as text, in the layout of the manual's chapter 4.3. Pure: the same picture gives the same lines.

    head; what is wrong with hosts; the cluster line; per resource: this host's replica, the others, the summary

Each note stands below the line it belongs to, `---> TAG: text`, with what to do behind `==>`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from marsx.monitor.notes import duration, headline, size

RULE = "-" * 79
BAR_WIDTH = 40

Dict = dict[str, Any]


@dataclass(frozen=True)
class Style:
    """How to show it."""

    terminal: bool = False
    """Bars for what runs."""
    history: bool = False
    status: bool = False
    ascii: bool = False
    width: int = 80
    """Of the bars of --status."""


def lines(picture: Dict, style: Style) -> Iterator[str]:
    """Everything; a line may be longer than a terminal is wide (`layout`)."""
    yield from head(picture, f": {headline(picture)}")
    yield from system(picture)
    yield from cluster(picture)
    yield "---> Resources <---"
    if not picture["resources"]:
        yield "---> HINT: no resources found"
    for name, resource in picture["resources"].items():
        yield ""
        yield from _resource(name, resource, style, picture)
    yield from _debug("---> Debug <---", picture.get("debug"))


def head(picture: Dict, worst: str) -> Iterator[str]:
    """Who and what; the first line names the worst."""
    only = f", Resource: {picture['only']}" if picture["only"] else ""
    yield f"MARS Status - {picture['host']}, {picture['program']}{only}{worst}"
    yield f"MARS Admin  - marsadm {picture['program']}"
    yield f"MARS Module - {picture['daemon']['text']}"
    yield f"MARS Kernel - {picture['kernel']}"
    yield RULE


def cluster(picture: Dict) -> Iterator[str]:
    """The cluster line, and before it what is wrong with hosts."""
    found = picture["cluster"]
    for note in found["notes"]:
        yield f"---> {note['tag']}: {told(note)}"
    hosts = found["hosts"]
    full = [host for host, one in hosts.items() if any(note["part"] == "space" for note in one["notes"])]
    silent = [host for host, one in hosts.items() if one["alive"] is False]
    for host, one in hosts.items():
        for note in one["notes"]:
            where = "" if note["part"] == "space" else f"{host}: "
            yield f"\t-> {note['tag']}: {where}{told(note)}"
    stopped = [one for one in hosts.values() if one["emergency"] >= 4]
    stopped += [node for resource in picture["resources"].values() for node in resource["nodes"].values()
                if node["actual"]["emergency"]]
    unheard = picture["daemon"]["state"] in ("down", "silent")
    disk = f"HINT ({', '.join(full)})" if full else "smoothly"
    transactions = "and Replication not running !!!" if stopped else "smoothly"
    connects = "unknown" if unheard else f"TODO ({', '.join(silent)})" if silent else "smoothly"
    limit = f"set to {found['sync_limit']}" if found["sync_limit"] else "smoothly"
    yield f"-> Cluster Diskspace: {disk} Transactions: {transactions} Connects: {connects} Synclimit: {limit}"


def told(note: Dict) -> str:
    """A note with what to do."""
    return f"{note['text']} ==> {note['do']}" if note["do"] else note["text"]


def _resource(name: str, resource: Dict, style: Style, picture: Dict) -> Iterator[str]:
    primary = resource["designated"] or "unknown"
    yield f"-> check resource {name}, with {size(resource['size'])}, Primary Node is {primary}"
    for note in resource["notes"]:
        yield f"---> {note['tag']}: {told(note)}"
    if not resource["joined"]:
        here = picture["host"]
        ip = picture["cluster"]["hosts"].get(here, {}).get("ip") or "no address"
        yield f"   -> local Node ({here} [{ip}]) as not joined"
        yield "   -> Resource is not joined to this node"
    for host, node in resource["nodes"].items():
        yield from _node(name, host, node, style)
    count = len(resource["nodes"])
    yield f"   -> modus for resource {name} is {resource['modus']} ({count} node{'' if count == 1 else 's'})"
    if style.history:
        from marsx.monitor.history import text

        yield from text(resource["history"], style.ascii)
    if style.status:
        from marsx.monitor.bars import status

        yield from status(name, resource, style)
    yield from _debug(f"   -> Debug for resource {name}", resource.get("debug"))


def _node(name: str, host: str, node: Dict, style: Style) -> Iterator[str]:
    place, role = "local" if node["local"] else "remote", "Primary" if _is_primary(node) else "Secondary"
    yield f"   -> {place} Node ({host} [{node['ip'] or 'no address'}]) as {role}, {_alive(node)}"
    yield _device(node)
    yield from _notes(node, "device")
    yield _sync(node["sync"])
    yield from _notes(node, "sync")
    yield from bar(node["sync"], style, node["sync"]["state"] == "running")
    yield _fetch(node["fetch"])
    yield from _notes(node, "fetch")
    yield _replay(node)
    yield from _notes(node, "replay")
    yield from bar(node["replay"], style, any(note["code"] == "replay" for note in node["notes"]))
    yield from _verify(node)
    yield f"\tActual  : {_actual(node)}"
    yield f"\tSwitches: {_switches(node)}"
    yield from _notes(node, "node")


def _is_primary(node: Dict) -> bool:
    return node["designated"] or node["role"] == "primary"


def _notes(node: Dict, part: str) -> Iterator[str]:
    for note in node["notes"]:
        if note["part"] == part:
            yield f"\t\t---> {note['tag']}: {told(note)}"


def _alive(node: Dict) -> str:
    if node["alive"]:
        return "System alive"
    age = node["age"]
    since = " (never heard of)" if age is None else f" (last message before {int(age)} sec)" if age else ""
    return f"System unknown{since} !!!"


def _device(node: Dict) -> str:
    disk, device = node["disk"], node["device"]
    used = f", used as Mars-Device /dev/mars/{device['name']}" if device["on"] else ""
    rate = f" at {size(device['rate'])}/s" if device["rate"] else ""
    enlarged = any(note["code"] == "resize-possible" for note in node["notes"])
    return f"\tDevice  : Disk-Device {disk['path']}, {'' if enlarged else 'not '}enlarged{used}{rate}"


def _bytes(amount: int) -> str:
    """To the byte, and readable."""
    return f"{amount} bytes" + (f" ({size(amount)})" if amount >= 1000 else "")


def _speed(span: Dict, word: str) -> str:
    """Rate, what is left and how long that takes, as far as there is any."""
    if not span["rest"]:
        return ""
    rate = f", {word} {size(span['rate'])}/s" if span["rate"] else ""
    done = f" (done in {duration(span['seconds'])})" if span["seconds"] else ""
    return f", rest {size(span['rest'])}{rate}{done}"


def _sync(span: Dict) -> str:
    return (f"\tSync    : {_bytes(span['done'])} synced = {span['percent']:.2f}%"
            + _speed(span, "at"))


def _fetch(span: Dict) -> str:
    return (f"\tFetch   : {_bytes(span['pos'])} in log-{span['log']:09d} active"
            + _speed(span, "received with"))


def _replay(node: Dict) -> str:
    span = node["replay"]
    rate = f", at {size(span['rate'])}/s" if span["rate"] and span["rest"] else ""
    done = f" (done in {duration(span['seconds'])})" if span["seconds"] else ""
    todo = f"{span['rest']} ({size(span['rest'])})" if span["rest"] else "0"
    return (f"\tReplay  : {_bytes(span['pos'])} now replayed, Todo {todo}, "
            f"completed {span['percent']:.2f}%{rate}{done}{_lag(node)}")


def _lag(node: Dict) -> str:
    """How old the oldest log is that is missing on the disk; nothing on a primary."""
    if node["role"] == "primary":
        return ""
    seconds = node["lag"]["seconds"]
    about = "" if node["lag"]["exact"] else "about "
    return ", lag unknown" if seconds is None else f", lag {about}{duration(seconds)}"


def _verify(node: Dict) -> Iterator[str]:
    found = node["verify"]
    if found is None:
        return
    healed = f", {found['repaired']} bytes repaired" if found["repaired"] else ""
    when = "" if found["age"] is None else f" before {duration(found['age'])}"
    compared = f"{_bytes(found['done'])} compared, {found['differs']} bytes differ{healed}"
    yield f"\tVerify  : {compared}, {found['state']}{when}"
    yield from _notes(node, "verify")


def _actual(node: Dict) -> str:
    actual = node["actual"]
    attached = f"Attached={_on(actual['attached'])}"
    if _is_primary(node):
        return f"Status=Primary, used Device={_on(node['device']['on'])}, {attached}"
    return f"Status=Secondary, Syncstatus={_on(actual['syncing'])}, Logfileupdate={_on(actual['copying'])}, {attached}"


def _switches(node: Dict) -> str:
    switches = node["switches"]
    names = (("connect", "Connect"), ("sync", "Sync"), ("allow_replay", "AllowReplay"))
    others = " ".join(f"{label}={_on(switches[key])}" for key, label in names)
    return f"Attach={_on(switches['attach'])} " + (f"[masked: {others}]" if _is_primary(node) else others)


def _on(value: bool) -> str:
    return "on" if value else "off"


def bar(span: Dict, style: Style, wanted: bool, width: int = BAR_WIDTH) -> Iterator[str]:
    """[==========>.........]  52.11%"""
    if not (style.terminal and wanted and span["total"]):
        return
    filled = width if not span["rest"] else min(width - 1, width * span["done"] // span["total"])
    shape = "=" * filled + (">" if filled < width else "") + "." * (width - filled - 1)
    yield f"\t\t[{shape}] {span['percent']:6.2f}%"


# What options add


def system(picture: Dict) -> Iterator[str]:
    """--system: every tunable with what it is set to and what counts."""
    if "system" not in picture:
        return
    yield "---> Systemdata <---"
    for name, one in picture["system"].items():
        unit = f" {one['unit']}" if one["unit"] else ""
        by = f" by {one['source']}" if one["source"].endswith(".toml") else ""
        set_to = "is unset" if one["set"] is None else f"is set to {one['set']}{unit}{by}"
        used = "" if one["used"] is None else f", {one['used']}{unit} in use now"
        default = "" if one["value"] == one["default"] else f" (default {one['default']})"
        yield f"-> {name} {set_to}, actually used {one['value']}{unit}{default}{used}: {one['meaning']}"


def _debug(title: str, found: list[Dict] | None) -> Iterator[str]:
    """--debug: what marsd has said of late."""
    if found is None:
        return
    yield title
    for one in found:
        yield f"\t{one['time']}: {one['level']} {one['text']}"
    if not found:
        yield "\tnothing"
