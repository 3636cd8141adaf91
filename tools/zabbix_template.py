"""The Zabbix template (export format 6.0, which all newer servers read): one master item, all others depend on it.

Items are rows (name, key in the master item's JSON, unit, type); triggers rows (name, expression, severity). In an
expression `@KEY` stands for `/Template/item key` of this replica, resource, peer or host.
"""

import hashlib
import re
from typing import Any

NAME = "MARS by Zabbix agent"
MASTER = "mars.status"
WARNING, AVERAGE, HIGH, DISASTER, INFO = "WARNING", "AVERAGE", "HIGH", "DISASTER", "INFO"

MACROS = {
    "{$MARS.LAG.WARN}": ("60", "Seconds that a replica may be behind"),
    "{$MARS.LAG.HIGH}": ("600", "Seconds from which on it is bad"),
    "{$MARS.PEER.AGE}": ("60", "Seconds for which a host may be silent"),
    "{$MARS.LOGS.WARN}": ("100G", "Bytes of logs on a host"),
    "{$MARS.OFF.WARN}": ("30m", "For how long a switch may be off"),
}

HOST = [("daemon", "marsd runs", "daemon", "", "u"), ("level", "level", "level", "", "u"),
        ("worst", "worst", "worst", "", "t"), ("time", "time of this state", "time", "unixtime", "u")]
PEER = [("alive", "alive", "", "i"), ("age", "last heard of", "s", "f"), ("emergency", "emergency level", "", "u"),
        ("free", "free on /mars", "B", "i"), ("rest", "left for logs", "B", "i"),
        ("unreachable", "hosts that it does not reach", "", "u")]
RESOURCE = [("size", "size", "B", "u"), ("level", "level", "", "u"), ("split_brain", "split brain", "", "u"),
            ("primaries", "hosts that are primary", "", "u"), ("primary", "primary", "", "t"),
            ("log_bytes", "logs on this host", "B", "i"), ("log_deletable", "logs that nobody needs", "B", "i")]
REPLICA = [
    *[(name, f"switch {name}", "", "u") for name in ("attach", "connect", "sync", "allow_replay")],
    *[(f"is_{name}", f"is {name}", "", "u")
      for name in ("attached", "copying", "syncing", "replaying", "primary", "emergency")],
    ("consistent", "consistent", "", "u"), ("lag", "lag", "s", "f"),
    ("lag_guessed", "lag is guessed", "", "u"), ("level", "level", "", "u"),
    *[(f"{part}_rest", f"{part}: what is missing", "B", "u") for part in ("sync", "fetch", "replay")],
    *[(f"{part}_rate", f"{part}: rate", "Bps", "u") for part in ("sync", "fetch", "replay")],
    ("sync_percent", "sync: done", "%", "f"), ("stalls", "activities that stand still", "", "u"),
    ("stalled", "stands still", "", "t"), ("errors", "errors", "", "u"), ("open_count", "device is open", "", "u"),
    ("verify_differs", "bytes that differ in the last verify", "B", "u"),
]
TYPES = {"u": "UNSIGNED", "i": "FLOAT", "f": "FLOAT", "t": "TEXT"}

HOST_TRIGGERS = [
    ("marsd does not run", "last(@daemon)=0", DISASTER, "marsd start; then mars-status"),
    ("no data of MARS for 15 minutes", "nodata(@daemon,15m)=1", WARNING, "the agent cannot call mars-status"),
]
PEER_TRIGGERS = [
    ("{#PEER} is silent", "last(@alive)=0 or last(@age)>{$MARS.PEER.AGE}", HIGH,
     "check the host, marsd there, and the network to it"),
    ("{#PEER}: /mars is full (emergency level {ITEM.LASTVALUE1})", "last(@emergency)>=1", DISASTER,
     "marsadm log-delete-all all; mars-status --history shows what holds logs back"),
    ("{#PEER} does not reach other hosts", "min(@unreachable,5m)>0", AVERAGE, "mars-status there says why"),
]
RESOURCE_TRIGGERS = [
    ("{#RESOURCE}: split brain", "last(@split_brain)=1", DISASTER,
     "decide whose data count, on the others: marsadm invalidate"),
    ("{#RESOURCE} is primary on more than one host", "min(@primaries,2m)>1", DISASTER, "umount it on all but one"),
    ("{#RESOURCE} is primary nowhere", "max(@primaries,10m)=0", WARNING, "marsadm primary"),
    ("{#RESOURCE}: many logs on this host", "last(@log_bytes)>{$MARS.LOGS.WARN}", WARNING,
     "mars-status --history shows what holds them back"),
]
REPLICA_TRIGGERS = [
    ("{#RESOURCE} on {#HOST}: attach is off", "last(@attach)=0", INFO, "marsadm attach"),
    ("{#RESOURCE} on {#HOST}: attach is off for a long time", "max(@attach,{$MARS.OFF.WARN})=0", DISASTER,
     "marsadm attach"),
    ("{#RESOURCE} on {#HOST}: to be attached and is not", "last(@attach)=1 and max(@is_attached,5m)=0", HIGH,
     "mars-status says why"),
    ("{#RESOURCE} on {#HOST}: connect is off", "last(@connect)=0", DISASTER, "marsadm connect"),
    ("{#RESOURCE} on {#HOST}: replay is off", "last(@allow_replay)=0", DISASTER, "marsadm resume-replay"),
    ("{#RESOURCE} on {#HOST}: sync is off", "last(@sync)=0", WARNING, "marsadm resume-sync"),
    ("{#RESOURCE} on {#HOST}: does not replay",
     "last(@allow_replay)=1 and last(@is_primary)=0 and last(@replay_rest)>0 and max(@is_replaying,5m)=0", AVERAGE,
     "mars-status says why"),
    ("{#RESOURCE} on {#HOST} is behind ({ITEM.LASTVALUE1})", "min(@lag,5m)>{$MARS.LAG.WARN}", WARNING,
     "mars-status says whether fetch or replay is behind"),
    ("{#RESOURCE} on {#HOST} is far behind ({ITEM.LASTVALUE1})", "min(@lag,5m)>{$MARS.LAG.HIGH}", HIGH,
     "a takeover would lose or wait for that much"),
    ("{#RESOURCE} on {#HOST} stands still", "min(@stalls,2m)>0", HIGH, "mars-status says what to do"),
    ("{#RESOURCE} on {#HOST} is in emergency", "last(@is_emergency)=1", DISASTER, "make room in /mars"),
    ("{#RESOURCE} on {#HOST}: errors", "min(@errors,10m)>0", AVERAGE, "mars-status shows them"),
    ("{#RESOURCE} on {#HOST} differs from its primary", "last(@verify_differs)>0", HIGH,
     "marsadm verify --repair"),
]


def uuid(*what: str) -> str:
    """Of version 4, as Zabbix wants it; the same for the same thing, so that importing a newer template changes the
    older one."""
    text = hashlib.sha256("\0".join((NAME, *what)).encode()).hexdigest()
    return f"{text[:12]}4{text[13:16]}8{text[17:32]}"


def _item(kind: str, short: str, key: str, path: str, name: str, unit: str, which: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "uuid": uuid("item", key), "name": name, "type": "DEPENDENT", "key": key, "delay": "0",
        "history": "90d" if which != "t" else "30d", "trends": "365d" if which != "t" else "0",
        "value_type": TYPES[which], "units": unit,
        "preprocessing": [{"type": "JSONPATH", "parameters": [path], "error_handler": "DISCARD_VALUE"}],
        "master_item": {"key": MASTER}, "tags": [{"tag": "component", "value": kind}],
    }
    return {key: value for key, value in found.items() if value != ""}


def _triggers(rows: list[tuple[str, str, str, str]], key_of: Any) -> list[dict[str, Any]]:
    def whole(expression: str) -> str:
        return re.sub(r"@([a-z_]+)", lambda m: f"/{NAME}/{key_of(m[1])}", expression)

    return [{"uuid": uuid("trigger", name), "expression": whole(expression), "name": name,
             "priority": severity, "description": do} for name, expression, severity, do in rows]


def _rule(name: str, key: str, what: str, macros: tuple[str, ...], path: str, rows: list[tuple[str, str, str, str]],
          triggers: list[tuple[str, str, str, str]]) -> dict[str, Any]:
    """A discovery rule with its items and triggers."""
    def key_of(short: str) -> str:
        return f"mars.{what}.{short}[{','.join(macros)}]"

    items = [_item(what, short, key_of(short), f"{path}.{short}", f"{' on '.join(macros)}: {label}", unit, which)
             for short, label, unit, which in rows]
    return {"uuid": uuid("rule", key), "name": name, "type": "ZABBIX_PASSIVE", "key": key, "delay": "1h",
            "lifetime": "7d", "item_prototypes": items, "trigger_prototypes": _triggers(triggers, key_of)}


def export() -> dict[str, Any]:
    """The file."""
    master = {"uuid": uuid("item", MASTER), "name": "MARS: state",
              "type": "ZABBIX_PASSIVE", "key": MASTER, "delay": "1m",
              "history": "0", "trends": "0", "value_type": "TEXT", "tags": [{"tag": "component", "value": "raw"}]}
    items = [_item("host", short, f"mars.host.{short}", f"$.{path}", f"MARS: {label}", unit, which)
             for short, label, path, unit, which in HOST]
    rules = [
        _rule("Hosts", "mars.peers", "peer", ("{#PEER}",), "$.peers['{#PEER}']", PEER, PEER_TRIGGERS),
        _rule("Resources", "mars.resources", "resource", ("{#RESOURCE}",), "$.resources['{#RESOURCE}']", RESOURCE,
              RESOURCE_TRIGGERS),
        _rule("Replicas", "mars.discovery", "replica", ("{#RESOURCE}", "{#HOST}"),
              "$.resources['{#RESOURCE}'].hosts['{#HOST}']", REPLICA, REPLICA_TRIGGERS),
    ]
    group = "Templates/Applications"
    group_uuid = "a571c0d144b14fd4a87a9d9b2aa9fcd6"  # that of the group which every server has
    template = {
        "uuid": uuid("template"), "template": NAME, "name": NAME,
        "description": "Replication of block devices by MARS (marsx). Needs zabbix-agent.conf on the host.",
        "groups": [{"name": group}], "items": [master, *items], "discovery_rules": rules,
        "tags": [{"tag": "class", "value": "storage"}, {"tag": "target", "value": "mars"}],
        "macros": [{"macro": name, "value": value, "description": text} for name, (value, text) in MACROS.items()],
    }
    own = _triggers(HOST_TRIGGERS, lambda short: f"mars.host.{short}")
    for found in template["items"]:
        mine = [trigger for trigger in own if f"/{found['key']}" in trigger["expression"]]
        if mine:
            found["triggers"] = mine
    groups = [{"uuid": group_uuid, "name": group}]
    return {"zabbix_export": {"version": "6.0", "groups": groups, "templates": [template]}}
