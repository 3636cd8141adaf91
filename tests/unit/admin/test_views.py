"""The tables of values and macros: all names of facts 8.5, types, messages, JSON, and the page that lists them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from marsx.admin.views.macros import GLOBAL, MACROS, SHORT
from marsx.admin.views.structure import WORDS
from marsx.admin.views.table import all_values
from marsx.tree.distance import LogMap
from marsx.tree.paths import DELETED
from tests.unit.admin.small_tree import D1, D2, NOW, SIZE, Admin, S

TOP = Path(__file__).resolve().parents[3]
LOG1 = "log-000000001-a"

COMPLEX = """default 1and1 default-header default-global comminfo diskstate diskstate-1and1 outdated-flags replstate
replstate-1and1 flags flags-1and1 role role-1and1 todo-role primarynode primarynode-1and1 commstate
syncinfo syncinfo-1and1 sync-line sync-line-1and1 replinfo replinfo-1and1 fetch-line fetch-line-1and1
replay-line replay-line-1and1 resource-errors resource-errors-1and1 state cstate dstate status"""
PRIMITIVE = """is-{attach,sync,fetch,replay,primary,emergency,secondary,split-brain,consistent,almost-consistent,orphan}
is-{alive,member,guest,module-loaded} nr-{attach,sync,fetch,replay,primary,secondary}
todo-{attach,sync,fetch,replay,primary,secondary} rest-space total-space get-disk get-device
{present-,}{disk,device}{-present,} device-{opened,nrflying,error,completion-stamp,completion-age} disk-error
known-device-{mounted,mountpoint,fstype,mountflags}
{all,the}-{pretty-,}{global-,}{err-,wrn-,inf-,}msg{-count,} get-resource-{fat,err,wrn}{-count,} get-log-status
{count-,}{my,all}-{resources,members,guests} {count-,}{cluster,resource,guest}-{peers,members} configured-peers
{sync,fetch,replay,work}-{size,pos,rest,reached,almost-reached,threshold-reached,percent,permille,vector,rate,remain}
{sync,fetch,replay,work,device}-{ops,amount}-rate syncpos-pos summary-vector
{replay,fetch,work}-{lognr,logcount} replay-basenr writeback-rest deletable-size occupied-size get-primary
actual-primary {alive,fetch,replay,work}-{timestamp,age,lag} {disk,resource,device}-size resource-possible-size
replay-code errno-text enabled-{log,net}-compressions disabled-{log,net}-digests used-{log,net}-{digest,compression}
uuid tree systemd-unit wait-{is,todo}-{attach,sync,fetch,replay,primary}-{on,off}"""


def spelled(word: str) -> list[str]:
    """The words of a{b,c}d."""
    match = re.search(r"\{([^}]*)\}", word)
    if not match:
        return [word]
    words = [word[: match.start()] + part + word[match.end() :] for part in match[1].split(",")]
    return [found for one in words for found in spelled(one)]


@pytest.fixture
def adm(adm: Admin, tmp_path: Path) -> Admin:
    """marsadm on b, whose data device exists."""
    disk = tmp_path / "disk"
    disk.write_text("")
    for host in ("a", "b"):
        adm.tree.put(f"resource-data/data-{host}", str(disk))
    return adm


def test_all_names_of_the_original() -> None:
    """Facts 8.5.1 and 8.5.2."""
    values = all_values()
    assert [name for name in COMPLEX.split() if name not in MACROS and name not in values] == []
    wanted = [name for word in PRIMITIVE.split() for name in spelled(word)]
    odd = {"present-disk-present", "present-device-present", "disk", "device"}
    assert [name for name in wanted if name not in values and name not in odd] == [] and len(wanted) > 250


def test_names_do_not_clash() -> None:
    """A name is a value, a macro, or a function of the language, and each macro has its line."""
    from marsx.admin.macro.functions import FUNCTIONS

    assert not MACROS.keys() & all_values().keys()
    assert not (MACROS.keys() | all_values().keys()) & FUNCTIONS.keys()
    assert SHORT.keys() == MACROS.keys() and GLOBAL < MACROS.keys() and set(WORDS) <= MACROS.keys()


def test_every_value_has_its_type(adm: Admin) -> None:
    """Typed in JSON, printed as text; also where nothing is known."""
    kinds = {"flag": bool, "number": (int, float, type(None)), "text": str, "list": list}
    adm.tree.put("resource-hollow/size", "0")
    for resource in ("data", "hollow"):
        code, out, err = adm(f"view {resource} --json")
        found = json.loads(out)
        assert (code, err) == (0, "")
        shown = {**found["values"], **found["resources"][resource]["values"]}
        rows = all_values()
        wrong = [name for name, value in shown.items() if not isinstance(value, kinds[rows[name].kind])
                 or (rows[name].kind == "number" and isinstance(value, bool))]  # fmt: skip
        assert wrong == [] and len(shown) > 180
        for name in rows:
            if not name.startswith("wait-"):
                code, out, err = adm(f"view-{name} {resource}")
                assert (code, err) == (0, "") and (out == "" or out.endswith("\n") and not out.endswith("\n\n")), name


def test_every_macro_shows_something(adm: Admin) -> None:
    """No macro fails, for a member, for a stranger, without marsd and for a resource that is hardly there."""
    adm.tree.resource("other", "a")
    adm.tree.put("resource-hollow/size", "0")
    for adm.control.running in (True, False):
        for name in MACROS:
            for resource in ("data", "other", "hollow"):
                code, _, err = adm(f"view-{name} {resource}")
                assert (code, err) == (0, ""), name


def test_json_is_stable(adm: Admin) -> None:
    """Format, version, and the golden picture of one replica."""
    found = json.loads(adm("view data --json")[1])
    assert (found["format"], found["version"], found["host"], found["time"]) == ("marsx-view", 1, "b", NOW // S)
    assert found["resources"].keys() == {"data"} and found["values"]["cluster-peers"] == ["a", "b"]
    res = found["resources"]["data"]
    assert res["words"] == {
        "diskstate": "UpToDate", "replstate": "Replaying", "flags": "dCASFR", "role": "Secondary",
        "todo-role": "Secondary", "primarynode": "a", "commstate": "", "diskstate-1and1": "Uptodate",
        "replstate-1and1": "Replaying", "flags-1and1": "-SFR-", "role-1and1": "Secondary", "primarynode-1and1": "a",
    }  # fmt: skip
    golden = (TOP / "tests/unit/admin/view-values.txt").read_text(encoding="utf-8").splitlines()
    shown = {**found["values"], **res["values"]}
    kinds = {name: row.kind for name, row in all_values().items()}
    assert [f"{name} {kinds[name]}" for name in sorted(shown)] == golden
    some = ("resource-size", "is-consistent", "sync-remain", "get-primary", "syncpos-pos")
    assert [shown[name] for name in some] == [SIZE, True, 0, "a", None]


def test_json_of_one_value(adm: Admin) -> None:
    """Typed, for the resources that are meant; macros as text; errors as ever."""
    assert json.loads(adm("view-sync-rest data --json")[1])["resources"] == {"data": 0}
    assert json.loads(adm("view-cluster-peers --json")[1])["value"] == ["a", "b"]
    assert json.loads(adm("view-diskstate all --json")[1])["resources"] == {"data": "UpToDate"}
    assert adm("view-nonsense data --json")[0] == 2 and adm("view nodata --json")[0] == 4
    assert adm("view data --json --macro=x")[0] == 2


def test_messages(adm: Admin) -> None:
    """Families by kind, standing or all, with dates or as they stand, of the resource or the host."""
    put, res = adm.tree.put, "resource-data/actual-b"
    put(f"{res}/msg-err-replay-stop", "1742465728.000000001 1742465729.000000002 it stopped")
    put(f"{res}/msg-wrn-space-low", "OK")
    put(f"{res}/msg-inf-fetch", "from a")
    put("actual-b/msg-err-memory", "short")
    assert adm("view-the-msg data")[1] == (
        "err-replay-stop: 1742465728.000000001 1742465729.000000002 it stopped\ninf-fetch: from a\n")
    assert "wrn-space-low: OK\n" in adm("view-all-msg data")[1] and adm("view-all-wrn-msg-count data")[1] == "1\n"
    assert adm("view-the-wrn-msg data")[1] == "" and adm("view-the-msg-count data")[1] == "2\n"
    pretty, date = adm("view-the-pretty-err-msg data")[1], r"2025-03-2\d \d\d:15:2"
    assert re.fullmatch(rf"err-replay-stop: {date}8.000000001 {date}9.000000002 it stopped\n", pretty)
    assert adm("view-the-global-err-msg")[1] == "err-memory: short\n" == adm("view-the-global-msg data")[1]
    out = adm("view data")[1]
    assert f"    ERRORS   LNK  (1):\n      {pretty}" in out and "INFOS" not in out
    assert "    INFOS    LNK  (1):\n      inf-fetch: from a\n" in adm("view data --verbose=2")[1]
    assert "    INFOS    LNK  (1):\n" in adm("view-1and1 data")[1]
    assert "Communication Status ++++++++++++\n  b err-memory: short\n" in adm("view all")[1]
    assert adm("view --macro=%get-msg{inf-fetch} data")[1] == "from a\n"


def test_messages_file(adm: Admin) -> None:
    """Lines about just this resource; fresh ones are shown, old ones by show-errors only."""
    import time

    def line(age: int, text: str) -> str:
        return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(NOW / S - age)) + f".000 {text}"

    lines = [line(3600, "ERROR marsx.x: data: old"), line(5, "ERROR marsx.x: data: new"),
             line(5, "WARNING marsx.x: other-data: not this one"), line(4, "INFO marsx.x: replica of data is there"),
             "  a line of a traceback about data"]
    Path(adm.tree.paths.messages_file).write_text("\n".join(lines) + "\n")
    assert adm("view-get-resource-err data")[1] == lines[1] + "\n" and adm("view-get-resource-wrn data")[1] == ""
    assert adm("view-get-log-status data")[1] == f"{lines[0]}\n{lines[1]}\n"
    assert "    ERRORS   FILE (1): available with --verbose\n" in adm("view data")[1]
    assert f"    ERRORS   FILE (1):\n      {lines[1]}\n" in adm("view data --verbose")[1]
    code, out, err = adm("show-errors data")
    assert code == 1 and out == f"{lines[0]}\n{lines[1]}\n" and "has some (old) problems" in err
    assert adm("show-info data")[1] == f"{lines[0]}\n{lines[1]}\n{lines[3]}\n" == adm("mars-info data")[1]


def test_silent_hosts(adm: Admin) -> None:
    """A host that was not heard of is named, and how long the primary has been silent."""
    adm.tree.put("actual-a/alive", "1", NOW - 125 * S)
    out = adm("view all")[1]
    assert out.endswith("++++ Global / Communication Status ++++++++++++\n  a last heard of 00:02:05 ago\n")
    assert " PrimaryUnreachable dCASFR Secondary a 00:02:05\n" in out
    assert "PrimaryUnreachable" not in adm("view data --window=126")[1] and adm("view-alive-age data")[1] == "125\n"


def test_clock_ahead(adm: Admin) -> None:
    """Stamps of the tree that are ahead of the clock."""
    adm.tree.put("userspace/x", "y", NOW + 3725 * S)
    assert "++++++++++++ Lamport time slip: 01:02:05 ++++++++++++\n" in adm("view all")[1]


def test_hints_about_sizes(adm: Admin) -> None:
    """Room on all disks: resize; on this one only: not used."""
    adm.tree.put("resource-data/actsize-b", str(2 * SIZE))
    assert "HINT: 1024.000 MiB of the disk here are not used" in adm("view data")[1]
    adm.tree.put("resource-data/actsize-a", str(SIZE + 4096))
    assert "HINT: all disks have room for 1024.004 MiB: marsadm resize data\n" in adm("view data")[1]


def test_states_of_marsd(adm: Admin) -> None:
    """It does not run, is silent, has not begun with the resource."""
    adm.tree.put("resource-data/actual-b/is-attached", DELETED)
    assert adm("view-replstate data")[1] == "NotStarted\n"
    adm.tree.put("actual-b/alive", "1", NOW - 100 * S)
    assert adm("view-replstate data")[1] == "UnResponsive\n"
    adm.control.running = False
    assert adm("view-replstate data")[1] == "ModuleNotLoaded\n"


def test_recovery(adm: Admin) -> None:
    """A designated primary that replays its own log."""
    adm.tree.put("resource-data/primary", "b")
    adm.tree.put("resource-data/replay-b", f"{LOG1},4096,4096")
    assert adm("view-diskstate data")[1] == "Recovery[4.000KiB]\n"
    assert adm("view-replstate data")[1] == "NotYetPrimary\n"
    assert adm("view-todo-secondary data")[1] == "0\n" and adm("view-todo-primary data")[1] == "1\n"


def test_many_resources(adm: Admin) -> None:
    """A list; what is unknown does not stop the rest, and the status tells."""
    adm.tree.resource("other", "a")
    assert adm("view-get-primary data,other")[1] == "a\na\n"
    code, out, err = adm("view-get-primary data,nodata")
    assert (code, out) == (7, "a\n") and "unknown resource 'nodata'" in err
    assert adm("view-get-primary nodata")[0] == 4 and adm("view-get-primary")[0] == 2
    assert adm("view-get-primary all")[1].count("--------- resource ") == 2


def test_macro_option(adm: Admin) -> None:
    """--macro: once without a resource, else for each."""
    adm.tree.resource("other", "a")
    assert adm("view --macro=%foreach{r}{%all-resources{}}{}{<%{r}>}")[1] == "<data><other>\n"
    assert adm("view data,other --macro=%{res}:%{1} x")[1] == "data:x\nother:x\n"
    assert adm("view --macro=%is-attach{}")[0] == 2 and adm("view data --macro=")[1] == ""
    code, _, err = adm("view data --macro=%{x")
    assert code == 2 and "not closed" in err


def test_macro_reads_the_tree(adm: Admin) -> None:
    """By name or by path; the tree and nothing else."""
    root = adm.tree.paths.mars_dir
    assert adm("view data --macro=%readlink{%{resdir}/primary}%readlink{uuid}")[1] == "aa_1790000000.000000001\n"
    assert adm(f"view data --macro=%readlink{{{root}/../../etc/localtime}}")[1] == ""
    assert adm("view data --macro=%get-glob{ips/ip-*}{}{,}")[1] == "ips/ip-a,ips/ip-b\n"
    assert adm("view data --macro=%get-glob{*}{}{,}")[1] == "uuid\n"


def test_setlink(adm: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only below userspace/, only for root, and not with --dry-run."""
    monkeypatch.setattr("os.geteuid", lambda: 0)
    adm("view data --macro=%setlink{v1}{userspace/k}%setlink{v2}{resource-data/userspace/k}")
    assert adm.tree.get("userspace/k") == "v1" and adm.tree.get("resource-data/userspace/k") == "v2"
    before = adm.tree.all()
    for path in ("resource-data/primary", "userspace/../uuid", "/etc/passwd", "userspace/a/b", "userspace"):
        assert adm(f"view data --macro=%setlink{{x}}{{{path}}}")[0] == 2
    assert "DRY_RUN: would create symlink" in adm("view data --dry-run --macro=%setlink{v3}{userspace/k}")[1]
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert adm("view data --macro=%setlink{v3}{userspace/k}")[0] == 10
    assert adm.tree.all() == before


def test_waits(adm: Admin) -> None:
    """Values and functions that wait end by events, or with status 5."""
    def attach() -> None:
        adm.tree.put("resource-data/actual-b/is-attached", "0")

    assert adm("view-wait-is-attach-off data", attach)[0] == 0
    assert adm("view-wait-is-attach-on data --timeout=1")[0] == 5
    assert adm("view-wait-todo-primary-off data") == (0, "", "")
    assert adm("view-wait-todo-primary-on data --timeout=1")[0] == 5
    adm.tree.put("resource-data/actual-b/is-attached", "1")
    assert adm("view data --macro=%wait{%not{%is-attach{}}}now-%is-attach{}", attach)[1] == "now-0\n"
    assert adm("view data --macro=%wait-resource{is-attach-off}ok", attach)[1] == "ok\n"
    assert adm("view --macro=%wait-resource{is-attach-off}")[0] == 4


def test_sizes_of_logs(adm: Admin) -> None:
    """What lies here, and what of it nobody needs."""
    for nr, size in ((1, 100), (2, 10), (3, 1)):
        Path(adm.tree.paths.mars_dir, f"resource-data/log-{nr:09d}-a").write_bytes(b"x" * size)
    for host in "ab":
        adm.tree.put(f"resource-data/replay-{host}", "log-000000002-a,4096,0")
        adm.tree.put(f"resource-data/version-000000002-{host}", f"{D2},log-000000002-a,8192:{D1},{LOG1},8192")
    assert adm("view-occupied-size data")[1] == "111\n" and adm("view-deletable-size data")[1] == "100\n"
    assert adm("view-replay-lognr data")[1] == "2\n" and adm("view-replay-basenr data")[1] == "1\n"
    assert adm("view-work-logcount data")[1] == "2\n"


def test_other_hosts(adm: Admin) -> None:
    """Values that take a host."""
    assert adm("view-is-primary data a")[1] == "1\n" and adm("view-is-alive data b")[1] == "1\n"
    assert adm("view-is-alive data nobody")[1] == "0\n" and adm("view-nr-primary data")[1] == "1\n"
    assert adm("view-is-member data a")[0] == 2


def test_host_option(adm: Admin) -> None:
    """--host: as that host says of itself; nothing of this one is mixed in."""
    Path(adm.tree.paths.dev_dir, "data").write_text("")
    adm.control.running = False
    assert " UpToDate Replicating DCASFR Primary a \n" in adm("view data --host=a")[1]
    assert adm("view-is-module-loaded --host=a")[1] == "1\n" and adm("view-get-device data --host=a")[0] == 0
    adm.tree.put("resource-data/actual-a/is-primary", "0")
    assert adm("view-flags data --host=a")[1] == "dCASFR\n" and adm("view-flags data")[1] == "DCASFR\n"
    assert adm("view data --host=z")[0] == 4 and adm("show data --host=a")[0] == 2


def test_names(adm: Admin) -> None:
    """What there is to see, without the page."""
    names = adm("view-names")[1].split()
    assert {"default", "flags", "is-primary", "wait-is-sync-off", "names"} <= set(names) and names == sorted(names)


def test_show(adm: Admin) -> None:
    """PATH=VALUE lines, for scripts."""
    adm.tree.resource("other", "a")
    lines = adm("show data")[1].splitlines()
    for line in ("ips/ip-a=10.0.0.1", "actual-b/alive=1", "resource-data/primary=a", f"resource-data/size={SIZE}",
                 "resource-data/actual-a/is-primary=1", "resource-data/todo-b/attach=1",
                 "resource-data/replay-b=log-000000001-a,8192,0"):  # fmt: skip
        assert line in lines
    assert not [line for line in lines if "other" in line or "version" in line]
    assert "resource-other/primary=a" in adm("show all")[1] and adm("show nodata")[0] == 4


@pytest.mark.parametrize(
    ("rel", "value", "words"),
    [
        ("primary", "a", "secondary uptodate"), ("primary", "b", "becoming_primary"),
        ("actual-b/is-primary", "1", "is_primary"),
        ("replay-b", f"{LOG1},4096,0", "secondary outdated (4096 instead of 8192)"),
        ("syncstatus-b", "4096", f"secondary inconsistent (4096 bytes of {SIZE})"),
    ],
)  # fmt: skip
def test_show_state(adm: Admin, rel: str, value: str, words: str) -> None:
    """One phrase."""
    adm.tree.put(f"resource-data/{rel}", value)
    assert adm("show-state data") == (0, f"{words}\n", "") == adm("mars-state data")


def test_role_sentence(adm: Admin) -> None:
    """By fact, then by wish."""
    assert adm("role data")[1] == "I am actually secondary and a is primary\n"
    adm.tree.put("resource-data/primary", "b")
    assert adm("state data")[1] == "I am actually secondary and a is primary and I should be primary\n"
    adm.host = "a"
    assert adm("role data")[1] == "I am actually primary and b should be primary\n"


def test_cat(adm: Admin, tmp_path: Path) -> None:
    """Stamps become dates; a file that is not there does not stop the others."""
    (tmp_path / "f").write_text("at 1742465728.123456789 x 12.5\n")
    code, out, err = adm(f"cat {tmp_path}/none {tmp_path}/f")
    assert code == 4 and re.fullmatch(r"at 2025-03-2\d \d\d:15:28.123456789 x 12.5\n", out) and "none" in err


HOSTILE = ("", "\x1b[2J", "a\nb", "9" * 19, "9" * 400, "-1", "-9999999999999999999", "0", ".deleted", "(none)", "%{x}",
           "log-000000001-a,9223372036854775807,9223372036854775807", "log-999999999999999999-a,1,1", "{", "1",
           f"{D1},log-000000001-b,9223372036854775807:", f"{D1},log-000000002-a,1:{D2},log-000000001-b,5")  # fmt: skip


def test_whatever_stands_in_the_tree(adm: Admin) -> None:
    """Hostile values of any entry: the views say something, without control characters, and JSON stays whole."""
    before = adm.tree.all()
    names = [rel for rel in before if rel.startswith("resource-data/") and ("-b" in rel or rel.count("/") == 1)]
    names += ["resource-data/actual-b/replay-code", "resource-data/actual-b/msg-err-x", "resource-data/syncpos-b",
              "resource-data/actual-b/fetched", "resource-data/actual-b/amount-file_rate", "actual-b/total-space",
              "actual-b/used-log-digest", "defaults/disabled-log-digests", "resource-data/actual-b/if-completion-stamp",
              "resource-data/version-000000002-b"]  # fmt: skip
    for nr, rel in enumerate(names):
        for value in HOSTILE[nr % 2 :: 2]:
            path = Path(adm.tree.paths.mars_dir, rel)
            path.unlink(missing_ok=True)
            if value:
                path.parent.mkdir(exist_ok=True)
                path.symlink_to(value)
            code, out, _ = adm("view data --verbose=2")
            assert code in (0, 4) and not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", out), (rel, value)
            code, out, _ = adm("view data --json")
            assert code == 4 or json.loads(out)["resources"].keys() == {"data"}, (rel, value)
        path.unlink(missing_ok=True)
        if rel in before:
            adm.tree.put(rel, before[rel][0])


def test_a_look_loads_little(adm: Admin) -> None:
    """Start-up: looking loads none of the other commands, nor what only they need."""
    code = (
        f"import os, sys, time; time.time_ns = lambda: {NOW}; os.uname = lambda: type('U', (), {{'nodename': 'b'}});"
        "from marsx.admin import marsadm; marsadm.main(['view', 'all']); print(*sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **adm.tree.paths.environment()},
                          capture_output=True, text=True, timeout=60, cwd=TOP)  # fmt: skip
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "  data [2/2]" in done.stdout and "marsx.admin.views.source" in loaded
    heavy = {"subprocess", "asyncio", "ssl", "tomllib", "datetime", "shutil", "tempfile", "ctypes", "difflib"}
    others = {f"marsx.admin.{name}" for name in ("roles", "switches", "resource", "cluster", "waits", "state")}
    assert loaded & (heavy | others | {"marsx.log.chain", "marsx.tree.watch"}) == set()


def test_each_thing_is_worked_out_once(adm: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logs of a resource are walked once for a picture, however many values ask."""
    made: list[str] = []
    monkeypatch.setattr("marsx.admin.views.look.LogMap", lambda view, res: made.append(res) or LogMap(view, res))
    adm.tree.resource("other", "a")
    adm("view all")
    assert sorted(made) == ["data", "other"]


def test_the_page_lists_everything() -> None:
    """docs/views.md has one line for each value and macro, as `make man` writes it."""
    from tools.viewspage import PAGE, tables

    assert PAGE.read_text(encoding="utf-8").partition("<!-- tables -->")[2].strip() == tables().strip()
