"""What there is to say about one replica: the notes (see `notes`) of its device, sync, fetch, replay, verify, itself.

What a switch forbids is told at the switch, with the command that allows it. What is allowed and does not happen is
told with the reason that marsd gives. A host that is silent is told once, not once more at each of its activities.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from marsx.monitor.limits import Limits
from marsx.monitor.notes import HINT, TODO, WORK, duration, note, size

Dict = dict[str, Any]
Said = Iterator[tuple[str, int, str, str, str, str]]
"""code, level, tag, part, text, what to do"""

SHOWN_ELSEWHERE = frozenset({"inf-why", "inf-fetch", "inf-sync"})
TRANSIENT = frozenset({"err-fetch", "err-sync", "err-space-low"})
"""Errors after which marsd tries again by itself."""


def of_node(name: str, host: str, node: Dict, resource: Dict, limits: Limits) -> list[Dict]:
    """All of one replica, in the order of the display."""
    at = "" if node["local"] else f"on {host}: "
    found = []
    for rows in (
        _device(name, node, resource, at),
        _sync(name, node, resource, limits, at),
        _fetch(name, node, resource, limits, at),
        _replay(name, host, node, resource, limits, at),
        _verify(name, host, node, at),
        _itself(name, node, at),
        _messages(node),
    ):
        found += [note(code, bad, tag, part, text, do, host, name) for code, bad, tag, part, text, do in rows]
    return found


def _device(name: str, node: Dict, resource: Dict, at: str) -> Said:
    disk, device = node["disk"], node["device"]
    if disk["present"] is False:
        yield "disk-missing", 2, TODO, "device", f"{disk['path']} is not there", "bring it back: marsd then attaches it"
    if device["on"]:
        yield from _use(node, device)
        if not node["designated"]:
            text = "Primary against the wish: the role is given up when the device is no longer used"
            yield "primary-against-wish", 1, HINT, "device", text, f"{at}umount /dev/mars/{device['name']}"
    elif node["designated"] and node["alive"] is not False:
        why = node["why"].get("primary", "")
        text = "the Mars-Device is not there yet" + (f": {why}" if why else "")
        yield "primary-not-yet", 1, TODO if why else WORK, "device", text, ""
    elif device["present"]:
        yield "device-on-secondary", 1, HINT, "device", "Mars-Device on Secondary available", ""
    yield from _disk_size(name, node, resource, at)


def _use(node: Dict, device: Dict) -> Said:
    for mount in device["mounts"]:
        yield "mounted", 0, WORK, "device", f"mounted as {mount}", ""
    if node["local"] and node["alive"] is not False and not device["mounts"]:
        if device["present"] is False:
            text = "unable to mount, mars is starting or defective"
            yield "device-missing", 1, HINT, "device", text, "look into marsd.log"
        elif device["opened"]:
            yield "opened", 0, WORK, "device", f"in use, open count {device['opened']}", ""
        else:
            yield "not-mounted", 0, TODO, "device", "enable to mount", f"mount /dev/mars/{device['name']}"


def _disk_size(name: str, node: Dict, resource: Dict, at: str) -> Said:
    actual, wanted = node["disk"]["bytes"], resource["size"]
    if actual // 4096 > wanted // 4096:
        smallest = min(other["disk"]["bytes"] for other in resource["nodes"].values())
        if smallest // 4096 > wanted // 4096:
            do = f"on the primary: marsadm resize {name}"
            yield "resize-possible", 0, HINT, "device", f"resize is possible ({wanted} < {smallest})", do
    elif actual and actual < wanted:
        text = f"Disk-Device is too small ({actual} < {wanted})"
        yield "disk-small", 2, TODO, "device", text, f"{at}enlarge {node['disk']['path']}"


def _percent(span: Dict) -> str:
    return f"({span['percent']:.2f}% < 100.00%)"


def _sync(name: str, node: Dict, resource: Dict, limits: Limits, at: str) -> Said:
    span, state = node["sync"], _percent(node["sync"])
    if span["state"] == "running":
        source = span["source"] or resource["designated"]
        text = f"Sync in progress = {state}" + (f", transferred from {source}" if source else "")
        yield "sync", limits.rest.level(span["rest"]), WORK, "sync", text, ""
    elif span["state"] == "paused" and node["switches"]["attach"]:
        yield "sync-paused", 1, HINT, "sync", f"Sync is paused = {state}", f"{at}marsadm resume-sync {name}"
    elif span["state"] in ("waiting", "paused"):
        why = node["why"].get("sync", "")
        yield "sync-waits", 1, WORK, "sync", f"Sync waits = {state}" + (f": {why}" if why else ""), ""
    elif span["state"] == "done" and not node["consistent"]:
        text = "Sync is done, consistent when replay has passed its end"
        yield "not-consistent", 0, WORK, "sync", text, ""


def _fetch(name: str, node: Dict, resource: Dict, limits: Limits, at: str) -> Said:
    span = node["fetch"]
    if span["state"] == "paused":
        text = "Fetch is paused, no log comes here" + (f", {size(span['rest'])} are missing" if span["rest"] else "")
        yield "fetch-paused", 2, HINT, "fetch", text, f"{at}marsadm connect {name}"
    elif span["state"] == "waiting" and node["switches"]["attach"]:
        why = node["why"].get("fetch", "")
        tag = TODO if why else WORK
        yield "fetch-waits", 1, tag, "fetch", "Fetch does not run" + (f": {why}" if why else ""), ""
    elif not span["log"]:
        yield "fetch-starts", 0, WORK, "fetch", "Logfile wait for starting ...", ""
    newest = resource["newest"]
    if span["rest"] and newest and span["log"] and span["log"] != newest["log"] and not resource["split_brain"]:
        text = f"Logfile Version not actual = (log-{span['log']:09d} ! log-{newest['log']:09d})"
        yield "fetch-behind", 0, HINT, "fetch", text, ""
    if span["state"] == "running" and limits.rest.level(span["rest"]):
        text = f"Fetch in progress, {size(span['rest'])} are missing"
        yield "fetch-rest", limits.rest.level(span["rest"]), WORK, "fetch", text, ""


def _replay(name: str, host: str, node: Dict, resource: Dict, limits: Limits, at: str) -> Said:
    span, state, split = node["replay"], _percent(node["replay"]), resource["split_brain"]
    if split and host in split["hosts"] and span["rest"] and span["state"] == "running":
        yield "replay-waits", 1, TODO, "replay", f"Replay stands still = {state}: split brain", ""
    elif span["state"] == "paused" and node["switches"]["attach"]:
        text = "Replay is paused" + (f" = {state}" if span["rest"] else "")
        yield "replay-paused", 2, HINT, "replay", text, f"{at}marsadm resume-replay {name}"
    elif span["state"] == "waiting" and not span["ready"]:
        pass  # there is nothing here to replay: told at fetch
    elif span["state"] == "waiting":
        why = node["why"].get("replay", "")
        yield "replay-waits", 1, TODO if why else WORK, "replay", f"Replay waits = {state}" + (
            f": {why}" if why else ""), ""
    elif span["rest"] and span["state"] in ("running", "primary"):
        bad = limits.rest.level(span["rest"]) if span["state"] == "running" else 0
        yield "replay", bad, WORK, "replay", f"Replay in progress = {state}", ""
        if node["fetch"]["log"] != span["log"]:
            yield "replay-log", 0, WORK, "replay", f"Replay now log-{span['log']:09d}", ""
    lag = node["lag"]["seconds"]
    if limits.lag.level(lag):
        yield "lag", limits.lag.level(lag), TODO, "replay", f"this replica is {duration(lag)} behind", ""


def _verify(name: str, host: str, node: Dict, at: str) -> Said:
    found = node["verify"]
    if found is None:
        return
    command = f"marsadm verify {name} --host={host}"
    if found["state"] == "running":
        yield "verify", 0, WORK, "verify", f"Verify against {found['source']} in progress", ""
    elif found["state"] in ("stopped", "failed"):
        text = f"Verify against {found['source']} did not come to its end"
        yield "verify-unfinished", 1, HINT, "verify", text, command
    left = found["differs"] - found["repaired"]
    if left > 0:
        yield "verify-differs", 2, TODO, "verify", f"{left} bytes differ from {found['source']}", f"{command} --repair"


def _itself(name: str, node: Dict, at: str) -> Said:
    if not node["switches"]["attach"]:
        yield "detached", 2, HINT, "node", "detached: its disk gets nothing", f"{at}marsadm attach {name}"
    elif not node["actual"]["attached"] and node["alive"]:
        yield "not-attached", 1, TODO, "node", "not attached, although it shall be", ""
    if node["actual"]["emergency"]:
        do = f"{at}make room in /mars: it ends by itself, and the members follow by themselves"
        yield "emergency", 2, TODO, "node", "EMERGENCY: nothing is logged any more, the members fall behind", do
    if node["wants_primary"] and not node["device"]["on"]:
        yield "wants-primary", 0, WORK, "node", "wants to become Primary", ""


def _messages(node: Dict) -> Said:
    for message in node["messages"]:
        key, text = message["key"], f"{message['key']}: {message['text']}"
        if message["kind"] == "error":
            yield "message", 1 if key in TRANSIENT else 2, TODO, "node", text, ""
        elif message["kind"] == "warning":
            yield "message", 1, HINT, "node", text, ""
        elif key not in SHOWN_ELSEWHERE:
            yield "message", 0, WORK, "node", text, ""
