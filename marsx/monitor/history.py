"""--history: the versions of a resource's log, who has them, whether they agree, and what hinders their deletion.

`history` is pure: a part of the picture. Versions are log numbers, the oldest first. Two hosts' versions are equal when
position and digest are; different when they are not at one position; a shorter one is open until it is as long.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from marsx.log import chain
from marsx.monitor.notes import HINT, TODO, WORK, note, size
from marsx.monitor.seen import LogFile, Seen
from marsx.tree.view import View

Dict = dict[str, Any]
CHECK_LENGTH = 12
BOX = {False: ("║", "╠═══>"), True: ("|", "|----->")}
REPLAYED = {"done": "replay OK", "waiting": "replay waiting for start", "running": "replay incomplete"}
COMPARED = {"equal": "verify OK", "open": "verify open", "differs": "verify failed"}


def history(view: View, seen: Seen, name: str, resource: Dict) -> list[Dict]:
    """All versions of a resource, as part of the picture (`resource`: what it has so far)."""
    histories = chain.histories(view.version_texts(name), resource["nodes"])
    numbers = sorted({nr for links in histories.values() for nr in links})
    files = None if seen.logs is None else {log.nr: log for log in seen.logs.get(name, ())}
    return [_version(view, name, resource, histories, nr, files) for nr in numbers]


def _version(view: View, name: str, resource: Dict, histories: dict[str, chain.History], nr: int,
             files: dict[int, LogFile] | None) -> Dict:  # fmt: skip
    ends = {host: links[nr].end for host, links in histories.items() if nr in links}
    log = files.get(nr) if files is not None else None
    nodes = resource["nodes"]
    found: Dict = {
        "log": nr,
        "producers": sorted({end.at.producer for end in ends.values()}),
        "bytes": max(end.at.pos for end in ends.values()),
        "file": None if log is None else {"bytes": log.size, "producer": log.producer, "changed": log.changed},
        "links": {host: _link(nodes[host]["replay"], host, end, list(ends.values())) for host, end in ends.items()},
        "used_by": [host for host, node in nodes.items() if node["replay"]["log"] == nr >= node["logs"]["needed_from"]],
        "needed_by": [host for host, node in nodes.items() if node["logs"]["needed_from"] <= nr],
    }
    newest = resource["newest"] is not None and nr >= resource["newest"]["log"]
    if files is not None and resource["joined"] and log is None:
        own = next(host for host, node in nodes.items() if node["local"])
        found["state"] = "missing" if own in found["needed_by"] and own in ends else "deleted"
    else:
        found["state"] = "used" if found["used_by"] or newest else "needed" if found["needed_by"] else "deletable"
    found["notes"] = list(_notes(name, resource, found))
    return found


def _link(replay: Dict, host: str, end: chain.Point, ends: list[chain.Point]) -> Dict:
    at = (replay["log"], replay["pos"])
    state = "done" if at >= (end.at.nr, end.at.pos) else "waiting" if at <= (end.at.nr, 0) else "running"
    same = [other for other in ends if other.at.pos == end.at.pos]
    if any((other.digest, other.at.producer) != (end.digest, end.at.producer) for other in same):
        compared = "differs"
    else:
        compared = "equal" if end.at.pos == max(other.at.pos for other in ends) else "open"
    return {"producer": end.at.producer, "digest": end.digest, "pos": end.at.pos, "replay": state, "compared": compared}


def _notes(name: str, resource: Dict, found: Dict) -> Iterator[Dict]:
    links, nodes = found["links"], resource["nodes"]

    def made(code: str, tag: str, text: str, do: str = "") -> Dict:
        return note(code, 0, tag, "history", text, do, resource=name)

    if found["state"] == "deleted":
        yield made("version-deleted", WORK, "Version goes with the next log-delete ...")
        return
    if found["state"] == "missing":
        text = "the Logfile is not here, and this host needs it"
        yield made("version-lost", TODO, text, f"marsadm invalidate {name}")
        return
    if len(links) < len(nodes):
        text = f"Count of Logfiles different = (Cluster has {len(nodes)} Nodes, but only find {len(links)} Node)"
        yield made("version-missing", HINT, text)
    if any(link["compared"] == "differs" for link in links.values()):
        text = "Logfiles has not equal Checksums and same size, check for SPLIT-BRAIN"
        yield made("version-differs", HINT, text)
    if found["state"] == "used":
        waits = all(link["replay"] == "done" for link in links.values())
        yield made("version-used", WORK,
                   f"Version is actual and used. {'Wait for more ...' if waits else 'Replay in progress ...'}")
    elif found["state"] == "needed":
        for host in found["needed_by"]:
            why, do = hindrance(name, host, nodes[host])
            yield made("version-needed", HINT, f"cannot be deleted, {host} needs it: {why}", do)
    else:
        text = "Logfiles has all equal Sizes and Checksums, can be deleted ..."
        yield made("version-deletable", TODO, text, f"marsadm log-delete-all {name}")


def hindrance(name: str, host: str, node: Dict) -> tuple[str, str]:
    """Why a replica still needs an old log, and what to do."""
    paused = [one for one in node["notes"] if one["code"] in ("detached", "replay-paused", "fetch-paused")]
    if node["alive"] is False:
        return "it is silent", f"bring {host} back, or: marsadm leave-resource {name} --host={host} --force"
    if paused:
        return str(paused[0]["text"]), str(paused[0]["do"])
    if not node["replay"]["log"]:
        return "it has not begun", ""
    return f"it replays log-{node['replay']['log']:09d}", ""


def text(versions: list[Dict], ascii_only: bool) -> Iterator[str]:
    """The lines of the manual."""
    edge, branch = BOX[ascii_only]
    yield "   -> History Replay/Status"
    for found in versions:
        yield f"  {edge}"
        yield f"  {branch} Vers.{found['log']:09d} {branch[1:]} {_head(found)}"
        for host, link in found["links"].items():
            yield f"  {edge}   {branch} {_line(host, link, found)}"
        for one in found["notes"]:
            yield f"  {edge}   {branch} {one['tag']}: {one['text']}" + (f" ==> {one['do']}" if one["do"] else "")


def _head(found: Dict) -> str:
    if found["state"] in ("deleted", "missing"):
        return f"old Version, Logfile is {found['state']} ..."
    changed = ""
    if found["file"]:
        changed = f" from {time.strftime('%a %b %d %H:%M:%S %Y', time.localtime(found['file']['changed']))}"
    return f"Logfile Size: {found['bytes']} bytes ({size(found['bytes'])}) by {', '.join(found['producers'])}{changed}"


def _line(host: str, link: Dict, found: Dict) -> str:
    role = "Primary  " if link["producer"] == host else "Secondary"
    state = f"---> {REPLAYED[link['replay']]}, {COMPARED[link['compared']]}"
    if found["state"] in ("deleted", "missing"):
        role, state = "", "(no longer available logfile)"
    return (f"{role} Node: {host} Check: {link['digest'][:CHECK_LENGTH]} Size: {link['pos']} bytes "
            f"({size(link['pos'])}) {state}").lstrip()
