"""Values for the Zabbix agent: `mars-status --zabbix=WORDS`, called by the UserParameter lines of
`share/zabbix-agent.conf`.

    status              the picture cut down to numbers: master item of the template (docs/monitoring.md)
    replicas, resources, peers      low-level discovery
    mars NAME           a value of the original's key system.mars[NAME], 0 if there is no such thing
    status RES LINK     a value of the original's key system.marsstatus[RES,LINK], of this host, 0 if there is none

Numbers only where the original had numbers; what is not known is -1 in `status`, so that no item becomes unsupported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from marsx.base.errors import UsageError
from marsx.base.tunables import TUNABLES

Dict = dict[str, Any]
Setting = Callable[[str], int]

SWITCHES = ("attach", "connect", "sync", "allow-replay")
ACTUAL = {"is-attached": "attached", "is-copying": "copying", "is-syncing": "syncing", "is-replaying": "replaying",
          "is-primary": "primary", "has-emergency": "emergency"}
RATES = {"sync_rate": "sync", "file_rate": "fetch", "replay_rate": "replay"}


def value(words: str, picture: Dict, live: Mapping[str, Any], setting: Setting) -> str:
    """What the agent is to be told; UsageError."""
    match words.split():
        case ["status"]:
            return json.dumps(status(picture), separators=(",", ":"))
        case ["replicas"]:
            return _discovered({"{#RESOURCE}": name, "{#HOST}": host} for name, found in picture["resources"].items()
                               for host in found["nodes"])
        case ["resources"]:
            return _discovered({"{#RESOURCE}": name} for name in picture["resources"])
        case ["peers"]:
            return _discovered({"{#PEER}": host} for host in picture["cluster"]["hosts"])
        case ["mars", name]:
            return str(_of_host(name, picture, live, setting))
        case ["status", resource, link]:
            return str(_of_replica(picture["resources"].get(resource, {}).get("nodes", {}).get(picture["host"]), link))
    raise UsageError(f"--zabbix={words[:80]}: not a value",
                     "there are: status, replicas, resources, peers, mars NAME, status RESOURCE LINK")


def _discovered(rows: Any) -> str:
    return json.dumps(list(rows), separators=(",", ":"))


# ---- the keys of the original's template ----

def _of_host(name: str, picture: Dict, live: Mapping[str, Any], setting: Setting) -> int:
    """As the original had it in /proc/sys/mars, as far as there is such a thing here."""
    here = picture["host"]
    if name == "emergency-modus":
        return int(picture["cluster"]["hosts"].get(here, {}).get("emergency", 0))
    if name in TUNABLES:
        return setting(name)
    nodes = [(host, node) for found in picture["resources"].values() for host, node in found["nodes"].items()]
    if name == "traffic_tuning/client_role_traffic_rate_kb":
        return _rates([node for host, node in nodes if host == here], "sync", "fetch")
    if name == "traffic_tuning/server_role_traffic_rate_kb":
        return sum(node[part]["rate"] for host, node in nodes for part in ("sync", "fetch")
                   if host != here and node[part]["source"] == here) // 1024
    if name in ("io_tuning/writeback_rate_kb", "traffic_tuning/writeback_rate_kb"):
        return _rates([node for host, node in nodes if host == here], "replay")
    if name == "logger_mem_used_kb":
        return sum(found.get("state", {}).get("shadow_bytes", 0) for found in live.values()) // 1024
    if name in ("copy_read_max_fly", "copy_write_max_fly"):
        return setting("sync_fly")
    return 0


def _rates(nodes: list[Dict], *parts: str) -> int:
    return sum(int(node[part]["rate"]) for node in nodes for part in parts) // 1024


def _of_replica(node: Dict | None, link: str) -> int:
    if node is None:
        return 0
    if link in SWITCHES:
        return int(node["switches"][link.replace("-", "_")])
    if link in ACTUAL:
        return int(node["actual"][ACTUAL[link]])
    if link in RATES:
        return int(node[RATES[link]]["rate"]) // 1024
    return int(node["device"]["opened"]) if link == "open-count" else 0


# ---- the template's master item ----

def status(picture: Dict) -> Dict:
    """The picture as numbers."""
    reasons = picture["reasons"]
    return {
        "time": int(picture["time"]), "level": picture["level"], "worst": reasons[0]["text"] if reasons else "",
        "daemon": int(picture["daemon"]["state"] == "running"),
        "peers": {host: _peer(found) for host, found in picture["cluster"]["hosts"].items()},
        "resources": {name: _resource(found) for name, found in picture["resources"].items()},
    }


def _known(number: Any) -> Any:
    return -1 if number is None else int(number) if isinstance(number, bool) else number


def _peer(found: Dict) -> Dict:
    return {"alive": _known(found["alive"]), "age": _known(found["age"]), "emergency": found["emergency"],
            "free": _known(found["free_bytes"]), "rest": _known(found["rest_bytes"]),
            "unreachable": len(found["unreachable"])}


def _resource(found: Dict) -> Dict:
    return {
        "size": found["size"], "level": found["level"], "split_brain": int(found["split_brain"] is not None),
        "primaries": len(found["primaries"]), "primary": ", ".join(found["primaries"]),
        "log_bytes": _known(found["logs"]["bytes"]), "log_deletable": _known(found["logs"]["deletable_bytes"]),
        "hosts": {host: _replica(node) for host, node in found["nodes"].items()},
    }


def _replica(node: Dict) -> Dict:
    stalled = ", ".join(f"{one['activity']}: {one['cause']}" for one in node["stalled"])
    return {
        **{name: int(on) for name, on in node["switches"].items()},
        **{f"is_{name}": int(on) for name, on in node["actual"].items()},
        "consistent": int(node["consistent"]), "lag": _known(node["lag"]["seconds"]),
        "lag_guessed": int(not node["lag"]["exact"]), "level": node["level"],
        **{f"{part}_{key}": node[part][key] for part in ("sync", "fetch", "replay") for key in ("rest", "rate")},
        "sync_percent": node["sync"]["percent"], "stalled": stalled, "stalls": len(node["stalled"]),
        "errors": sum(message["kind"] == "error" for message in node["messages"]),
        "open_count": node["device"]["opened"],
        "verify_differs": node["verify"]["differs"] - node["verify"]["repaired"] if node["verify"] else 0,
    }
