"""Settings of resource, cluster and host: what is written, what is refused, what a persistent tunable changes."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from marsx.admin import settings
from marsx.base.config import Settings
from tests.unit.admin.small_tree import Admin


def test_connect_pref_list(adm: Admin) -> None:
    """Set and shown; (none) takes it back."""
    adm.tree.put("ips/ip-c", "10.0.0.3")
    assert adm("get-connect-pref-list data")[1] == "(none)\n"
    code, out, _ = adm("set-connect-pref-list data c,a,c")
    assert code == 0 and "c, then a" in out and adm.tree.get("resource-data/connect-b") == "c,a"
    assert adm("get-connect-pref-list data")[1] == "c,a\n"
    assert json.loads(adm("get-connect-pref-list data --json")[1]) == {"resource": "data", "hosts": ["c", "a"]}
    assert adm("set-connect-pref-list data (none)")[0] == 0 and adm("get-connect-pref-list data")[1] == "(none)\n"


@pytest.mark.parametrize(("line", "code", "text"), [
    ("set-connect-pref-list data x", 4, "unknown host 'x'"),
    ("set-connect-pref-list data b", 2, "cannot fetch from itself"),
    ("set-connect-pref-list nodata a", 4, "unknown resource"),
    ("set-emergency-limit data 101", 2, "not a percentage"), ("set-emergency-limit data -1", 2, "unknown option"),
    ("set-emergency-limit data x", 2, "not a percentage"), ("emergency-limit nodata 5", 4, "unknown resource"),
    ("get-emergency-limit nodata", 4, "unknown resource"),
    ("set-global-enabled-net-compressions lzo", 2, "'lzo' is no compression"),
    ("set-tunable nonsense 1", 4, "unknown tunable"), ("set-tunable sync_limit x", 2, "not an integer"),
    ("set-tunable sync_limit 99999999", 2, "outside"), ("get-tunable nonsense", 4, "unknown tunable"),
])  # fmt: skip
def test_refused(adm: Admin, line: str, code: int, text: str) -> None:
    """Each with its status, nothing changed."""
    before = adm.tree.all()
    got, _, err = adm(line)
    assert got == code and text in err and adm.tree.all() == before
    assert not list(Path(adm.tree.paths.run_dir).rglob("*")) and not list(Path(adm.tree.paths.etc_dir).rglob("*"))


def test_emergency_limit(adm: Admin) -> None:
    """Percent, with or without the sign; the old name too."""
    assert adm("set-emergency-limit data 80%")[0] == 0 and adm("get-emergency-limit data")[1] == "80\n"
    assert adm("emergency-limit data 0")[0] == 0 and adm.tree.get("resource-data/todo-b/emergency-limit") == "0"


def test_net_compressions(adm: Admin) -> None:
    """A mask for the whole cluster."""
    for names, mask in (("none", "0x00000000"), ("blosc2", "0x00000001"), ("all", "0x00000001")):
        assert adm(f"set-global-enabled-net-compressions {names}")[0] == 0
        assert adm.tree.get("defaults/enabled-net-compressions") == mask


def test_tunables(adm: Admin) -> None:
    """Live at once; shown one or all."""
    code, out, _ = adm("set-tunable sync_limit 3")
    assert code == 0 and "sync_limit = 3" in out and "--persist" in out
    assert Settings(adm.tree.paths).get("sync_limit") == 3 and adm("get-tunable sync_limit")[1] == "3\n"
    assert "sync_limit = 3 resources\n" in adm("get-tunable")[1]
    assert json.loads(adm("get-tunable --json")[1])["sync_limit"] == 3


def test_persist(adm: Admin) -> None:
    """One line of the file changes; comments and the rest stay; a second value replaces the first."""
    file = Path(adm.tree.paths.config_file)
    file.write_text('# ours\nother = "x"\n\n[tunables]\nlogger_flush_ms = 10  # fast\n\n[more]\nsync_limit = 9\n')
    for value in (4, 5):
        assert adm(f"set-tunable sync_limit {value} --persist")[0] == 0
    assert adm("set-tunable tcp_tuning_2_sync_traffic/ip_tos 8 --persist")[0] == 0
    assert file.read_text() == ('# ours\nother = "x"\n\n[tunables]\n"tcp_tuning_2_sync_traffic/ip_tos" = 8\n'
                                "sync_limit = 5\nlogger_flush_ms = 10  # fast\n\n[more]\nsync_limit = 9\n")
    assert adm("set-tunable logger_flush_ms 7 --persist")[0] == 0
    assert "logger_flush_ms = 7  # fast\n" in file.read_text()
    fresh = Settings(adm.tree.paths)
    assert (fresh.default("sync_limit"), fresh.default("logger_flush_ms")) == (5, 7)
    assert fresh.default("tcp_tuning_2_sync_traffic/ip_tos") == 8


def test_persist_makes_the_file(adm: Admin) -> None:
    """Where there was none; a folder's own table is used where there is one."""
    assert adm("set-tunable sync_limit 2 --persist")[0] == 0
    file = Path(adm.tree.paths.config_file)
    assert file.read_text() == "[tunables]\nsync_limit = 2\n"
    file.write_text("[tunables.tcp_tuning_2_sync_traffic]\nip_tos = 1\n")
    assert adm("set-tunable tcp_tuning_2_sync_traffic/ip_tos 8 --persist")[0] == 0
    assert file.read_text() == "[tunables.tcp_tuning_2_sync_traffic]\nip_tos = 8\n"


@pytest.mark.parametrize("text", [
    "tunables = { sync_limit = 1 }\n", "tunables.sync_limit = 1\n", "[tunables]\nsync_limit = 0x3\n",
    'x = """\n[tunables]\n"""\n',
])  # fmt: skip
def test_what_cannot_be_changed_safely_is_left(adm: Admin, text: str) -> None:
    """A file written in another way is refused, and stays as it is."""
    file = Path(adm.tree.paths.config_file)
    file.write_text(text)
    code, _, err = adm("set-tunable sync_limit 2 --persist")
    assert code in (2, 3) and file.read_text() == text, err
    assert not (Path(adm.tree.paths.sys_dir) / "sync_limit").exists(), "both or nothing"


def test_dry_run_of_a_tunable(adm: Admin) -> None:
    """Told, not written."""
    code, out, _ = adm("set-tunable sync_limit 3 --persist --dry-run")
    assert code == 0 and out.count("DRY_RUN: would write") == 2
    assert not list(Path(adm.tree.paths.run_dir).rglob("*")) and not list(Path(adm.tree.paths.etc_dir).rglob("*"))


def test_with_tunable_is_what_toml_says() -> None:
    """Inside its own table only."""
    text = settings.with_tunable("[a]\nsync_limit = 1\n[tunables]\n[b]\n", "sync_limit", 6)
    assert tomllib.loads(text) == {"a": {"sync_limit": 1}, "tunables": {"sync_limit": 6}, "b": {}}
