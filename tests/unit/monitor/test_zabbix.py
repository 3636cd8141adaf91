"""Zabbix: keys of the original's template, discovery, the template's paths against real values, the agent itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from marsx.base.errors import UsageError
from marsx.base.tunables import TUNABLES
from marsx.monitor import templates
from marsx.monitor.picture import picture
from marsx.monitor.seen import DOWN, Daemon, Seen
from marsx.monitor.zabbix import status, value
from marsx.tree.view import View
from tests.unit.admin.small_tree import NOW, SmallTree
from tests.unit.monitor.test_picture import pictured
from tests.unit.monitor.test_prometheus import LIVE, full, of_today
from tools import zabbix_template

TOP = Path(__file__).resolve().parents[3]
# Keys of the original's template (facts 9.2).
ORIGINAL = """copy_read_max_fly copy_write_max_fly io_flying_count io_tuning/writeback_rate_kb
io_tuning/writeback_until_percent logger_mem_used_kb mapfree_period_sec propagate_interval_sec scan_interval_sec
statusfiles_rollover_sec sync_flip_interval_sec traffic_tuning/client_role_traffic_rate_kb
traffic_tuning/server_role_traffic_rate_kb traffic_tuning/writeback_rate_kb traffic_tuning/writeback_until_percent
traffic_tunning/client_role_traffic_count_ops write_throttle_count_ops write_throttle_rate_kb emergency-modus""".split()
LINKS = """allow-replay attach connect is-attached is-copying is-primary is-replaying is-syncing open-count replay_rate
sync""".split()


@pytest.fixture
def tree(tmp_path: Path) -> SmallTree:
    """a is primary of data, b follows from a; seen from b."""
    tree = SmallTree(tmp_path).cluster("a", "b").resource("data", "a", "b")
    for key, text in {"is-replaying": "1", "is-copying": "1", "is-attached": "1", "open-count": "2",
                      "amount-replay_rate": "300", "amount-file_rate": "500", "stalled": "fetch=peer-silent",
                      "msg-inf-fetch": "1.0 1.0 fetching 'data' from a"}.items():
        tree.put(f"resource-data/actual-b/{key}", text)
    tree.put("actual-b/emergency", "2")
    return tree


def told(tree: SmallTree, words: str, host: str = "b") -> str:
    """A value, as the agent of `host` gets it; tunables have their defaults."""
    return value(words, pictured(tree, host), LIVE, lambda name: TUNABLES[name].default)


def test_keys_of_the_original(tree: SmallTree) -> None:
    """All give a number."""
    assert all(re.fullmatch(r"[0-9]+", told(tree, f"mars {name}")) for name in (*ORIGINAL, "nothing-of-ours"))
    assert all(re.fullmatch(r"[0-9]+", told(tree, f"status data {link}")) for link in (*LINKS, "no-such-link"))


@pytest.mark.parametrize(("words", "host", "expected"), [
    ("mars emergency-modus", "b", "2"), ("mars emergency-modus", "a", "0"),
    ("mars sync_flip_interval_sec", "b", "60"), ("mars copy_read_max_fly", "b", "64"),
    ("mars logger_mem_used_kb", "b", "8"), ("mars nothing-of-ours", "b", "0"),
    ("mars traffic_tuning/client_role_traffic_rate_kb", "b", "500"),
    ("mars traffic_tuning/server_role_traffic_rate_kb", "a", "500"),
    ("mars io_tuning/writeback_rate_kb", "b", "300"),
    ("status data attach", "b", "1"), ("status data is-replaying", "b", "1"), ("status data is-primary", "a", "1"),
    ("status data is-primary", "b", "0"), ("status data open-count", "b", "2"), ("status data replay_rate", "b", "300"),
    ("status nosuch attach", "b", "0"), ("resources", "b", '[{"{#RESOURCE}":"data"}]'),
    ("peers", "b", '[{"{#PEER}":"b"},{"{#PEER}":"a"}]'),
    ("replicas", "b", '[{"{#RESOURCE}":"data","{#HOST}":"b"},{"{#RESOURCE}":"data","{#HOST}":"a"}]'),
])
def test_values(tree: SmallTree, words: str, host: str, expected: str) -> None:
    assert told(tree, words, host) == expected


@pytest.mark.parametrize("words", ["", "nothing", "status data", "mars", "mars a b", "replicas x"])
def test_what_is_no_value(tree: SmallTree, words: str) -> None:
    with pytest.raises(UsageError):
        told(tree, words)


def at(found: Any, path: str) -> Any:
    """What a JSONPath of the template finds."""
    for step in re.findall(r"\['([^']*)'\]|\.([a-z_]+)", path):
        found = found[step[0] or step[1]]
    return found


@pytest.mark.parametrize("kind", ["full", "down", "nothing"])
def test_the_template_finds_its_values(tree: SmallTree, kind: str) -> None:
    """Every item has a value of its type, whatever the state is."""
    found = json.loads(json.dumps(status(
        full(tree) if kind == "full" else pictured(tree, "b", daemon=Daemon(DOWN)) if kind == "down"
        else picture(View([]), NOW, Seen("b")))))
    macros = {"{#RESOURCE}": "data", "{#HOST}": "b", "{#PEER}": "a"}
    template = zabbix_template.export()["zabbix_export"]["templates"][0]
    items = [item for item in template["items"] if item["type"] == "DEPENDENT"]
    if kind != "nothing":
        items += [item for rule in template["discovery_rules"] for item in rule["item_prototypes"]]
    for item in items:
        path = item["preprocessing"][0]["parameters"][0]
        for name, text in macros.items():
            path = path.replace(name, text)
        wanted = str if item["value_type"] == "TEXT" else int if item["value_type"] == "UNSIGNED" else (int, float)
        got = at(found, path)
        assert isinstance(got, wanted) and not isinstance(got, bool), item["key"]
        assert item["value_type"] != "UNSIGNED" or got >= 0, item["key"]
    assert len(items) == (43 if kind != "nothing" else 4)


def test_the_template_is_sound() -> None:
    """Identifiers are of version 4 and differ; triggers name items; all of facts 9.2 and lag are there."""
    exported = zabbix_template.export()["zabbix_export"]
    template, text = exported["templates"][0], json.dumps(exported)
    uuids = re.findall(r'"uuid": "([^"]*)"', text)
    assert all(re.fullmatch(r"[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}", one) for one in uuids)
    assert len(set(uuids)) == len(uuids)
    keys = {item["key"] for item in template["items"]} | {
        item["key"] for rule in template["discovery_rules"] for item in rule["item_prototypes"]}
    triggers = [trigger for rule in template["discovery_rules"] for trigger in rule["trigger_prototypes"]]
    triggers += [trigger for item in template["items"] for trigger in item.get("triggers", [])]
    used = {key for trigger in triggers for key in re.findall(r"/MARS by Zabbix agent/([a-z._]+(?:\[[^]]*\])?)",
                                                              trigger["expression"])}
    assert used and used <= keys and "@" not in "".join(trigger["expression"] for trigger in triggers)
    names = " ".join(trigger["name"] for trigger in triggers)
    for word in ("marsd does not run", "no data", "emergency level", "replay is off", "attach is off", "connect is off",
                 "sync is off", "is not", "does not replay", "behind", "split brain", "silent", "stands still"):
        assert word in names, word
    macros = {macro["macro"] for macro in template["macros"]}
    assert set(re.findall(r"\{\$[A-Z.]+\}", text)) == macros


# The export format 6.0 as its manual has it: what an element may hold, what it must hold (*), and which words it takes.
SECONDS = r"0|[1-9][0-9]*[smhdw]?"
SCHEMA: dict[str, dict[str, str]] = {
    "zabbix_export": {"version*": r"6\.0", "groups*": "[group]", "templates*": "[template]"},
    "group": {"uuid": "uuid", "name*": r".{1,255}"},
    "template": {"uuid*": "uuid", "template*": r"[A-Za-z0-9 ._-]{1,128}", "name*": r".{1,128}", "description": r".+",
                 "groups*": "[group]", "items": "[item]", "discovery_rules": "[rule]", "tags": "[tag]",
                 "macros": "[macro]"},
    "tag": {"tag*": r".{1,255}", "value": r".{0,255}"},
    "macro": {"macro*": r"\{\$[A-Z0-9_.]+\}", "value": r".*", "description": r".+"},
    "item": {"uuid*": "uuid", "name*": r".{1,255}", "type": "ZABBIX_PASSIVE|DEPENDENT", "key*": "key", "delay": SECONDS,
             "history": SECONDS, "trends": SECONDS, "value_type": "FLOAT|CHAR|LOG|UNSIGNED|TEXT", "units": r".{1,255}",
             "preprocessing": "[step]", "master_item": "master", "tags": "[tag]", "triggers": "[trigger]"},
    "step": {"type*": "JSONPATH", "parameters*": "[text]", "error_handler": "DISCARD_VALUE|CUSTOM_VALUE|CUSTOM_ERROR"},
    "text": {}, "master": {"key*": "key"},
    "trigger": {"uuid*": "uuid", "expression*": "expression", "name*": r".{1,255}", "description": r".+",
                "priority": "NOT_CLASSIFIED|INFO|WARNING|AVERAGE|HIGH|DISASTER"},
    "rule": {"uuid*": "uuid", "name*": r".{1,255}", "type": "ZABBIX_PASSIVE", "key*": "key", "delay": SECONDS,
             "lifetime": SECONDS, "item_prototypes": "[item]", "trigger_prototypes": "[trigger]"},
}
WORD = r"[a-z][a-z0-9_.-]*(\[(\{#[A-Z]+\}(,\{#[A-Z]+\})*)\])?"
PERIOD = r"(,([1-9][0-9]*[smhd]|\{\$[A-Z.]+\}))"
TERM = (rf"(last\(/{zabbix_template.NAME}/{WORD}\)|(min|max)\(/{zabbix_template.NAME}/{WORD}{PERIOD}\)"
        rf"|nodata\(/{zabbix_template.NAME}/{WORD}{PERIOD}\))(=|>=|>|<)([0-9]+|\{{\$[A-Z.]+\}})")
FORMS = {"uuid": r"[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}", "key": WORD,
         "expression": rf"{TERM}( (and|or) {TERM})*"}


def problems(found: Any, kind: str, place: str) -> list[str]:
    """What an importing server would not take."""
    if kind[:1] + kind[-1:] == "[]":
        if not isinstance(found, list) or not found:
            return [f"{place}: not a list with something in it"]
        return [one for at, inner in enumerate(found) for one in problems(inner, kind[1:-1], f"{place}[{at}]")]
    if kind in SCHEMA and kind != "text":
        known = {name.rstrip("*"): form for name, form in SCHEMA[kind].items()}
        missing = {name[:-1] for name in SCHEMA[kind] if name.endswith("*")} - found.keys()
        odd = [f"{place}: {word}" for word in sorted(missing | (found.keys() - known.keys()))]
        return odd + [one for name in found.keys() & known.keys()
                      for one in problems(found[name], known[name], f"{place}.{name}")]
    form = r".+" if kind == "text" else FORMS.get(kind, kind)
    fits = isinstance(found, str) and re.fullmatch(form, found, re.DOTALL)
    return [] if fits else [f"{place}: {found!r}"]


def test_the_template_follows_the_format() -> None:
    """Every element has only what the export format knows, all that it demands, and values of their form; what must be
    different is; a dependent item hangs on the master, and text has no trends."""
    exported = json.loads(json.dumps(zabbix_template.export()))
    assert exported.keys() == {"zabbix_export"}
    assert problems(exported["zabbix_export"], "zabbix_export", "") == []
    template = exported["zabbix_export"]["templates"][0]
    rules = template["discovery_rules"]
    items = [*template["items"], *(item for rule in rules for item in rule["item_prototypes"])]
    keys = [one["key"] for one in (*items, *rules)]
    assert len(set(keys)) == len(keys)
    for item in items:
        assert item["value_type"] != "TEXT" or item["trends"] == "0", item["key"]
        assert (item["type"] == "DEPENDENT") == ("master_item" in item) == (item["delay"] == "0"), item["key"]
        assert item.get("master_item", {"key": zabbix_template.MASTER})["key"] in keys
    for rule in rules:
        macros = set(re.findall(r"\{#[A-Z]+\}", json.dumps(rule["item_prototypes"])))
        assert all(macros <= set(re.findall(r"\{#[A-Z]+\}", item["key"])) for item in rule["item_prototypes"])
        names = [trigger["name"] for trigger in rule["trigger_prototypes"]]
        assert len(set(names)) == len(names) and all(re.search(r"\{#[A-Z]+\}", name) for name in names)
    wrong = json.loads(json.dumps(exported["zabbix_export"]))
    wrong["templates"][0]["items"][1]["value_type"] = "NUMBER"
    wrong["templates"][0]["items"][2]["colour"] = "red"
    del wrong["templates"][0]["discovery_rules"][0]["key"]
    wrong["templates"][0]["discovery_rules"][1]["trigger_prototypes"][0]["expression"] = "{MARS:x.last()}=1"
    assert len(problems(wrong, "zabbix_export", "")) == 4


def test_the_agent_knows_the_keys(tree: SmallTree, tmp_path: Path) -> None:
    """`zabbix_agentd -t` with our lines: each key gives its value."""
    agent = shutil.which("zabbix_agentd", path=f"{os.environ['PATH']}:/usr/sbin")
    if not agent:
        pytest.skip("zabbix_agentd is not there (Debian: zabbix-agent)")
    program = tmp_path / "bin/mars-status"
    program.parent.mkdir()
    host = os.uname().nodename
    mine = of_today(SmallTree(tmp_path / "mine").cluster(host, "b").resource("data", host, "b"))
    paths = " ".join(f"--{name.replace('_', '-')}={getattr(mine.paths, name)}"
                     for name in ("mars_dir", "run_dir", "dev_dir", "etc_dir"))
    program.write_text(f'#!/bin/sh\ncd {TOP}\nexec {sys.executable} -c "import sys; from marsx.monitor import feeds; '
                       f'sys.exit(feeds.main(sys.argv[1:]))" "$@" {paths}\n')
    program.chmod(0o755)
    lines = templates.text("zabbix-agent.conf")
    assert len([line for line in lines.splitlines() if line.startswith("UserParameter=")]) == 6
    config = tmp_path / "agent.conf"
    config.write_text(f"PidFile={tmp_path}/pid\nLogFile={tmp_path}/log\nServer=127.0.0.1\nTimeout=30\n{lines}")
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}

    def asked(key: str) -> str:
        done = subprocess.run([agent, "-c", config, "-t", key], capture_output=True, text=True, timeout=60,
                              env=environment)
        return re.sub(r"^.*?\[t\|(.*)\]\s*$", r"\1", done.stdout, flags=re.DOTALL)
    assert asked("system.mars[sync_flip_interval_sec]") == "60"
    assert asked("system.marsstatus[data,attach]") == "1"
    assert json.loads(asked("mars.discovery")) == [{"{#RESOURCE}": "data", "{#HOST}": host},
                                                   {"{#RESOURCE}": "data", "{#HOST}": "b"}]
    assert json.loads(asked("mars.status"))["daemon"] == 0


def test_what_others_send_is_not_sent_from_here(tree: SmallTree) -> None:
    """b fetches from c: nothing of it leaves a."""
    tree.put("resource-data/actual-b/msg-inf-fetch", "1.0 1.0 fetching 'data' from c")
    assert told(tree, "mars traffic_tuning/server_role_traffic_rate_kb", "a") == "0"
