"""mars-status on real hosts: what it shows in each state, line by line.

The golden texts in tests/cluster/status/ come from here: `MARSX_GOLDEN=write` writes them anew (and then read them).
What no two runs share (positions, times, rates) has a placeholder; what is left has to be the same. One cluster walks
through all states of a pair, another one shows four hosts and names of maximal length.
"""

import os
import re
import time
from pathlib import Path

from marsx.base.config import Paths
from marsx.base.lamport import Lamport
from marsx.monitor import seen
from marsx.monitor.limits import Limit, Limits
from marsx.monitor.picture import picture as make_picture
from marsx.tree.store import Store
from marsx.tree.view import View
from tools import scenario
from tools.hosts import MIB, Cluster, Host

GOLDEN = Path(__file__).parent / "status"
PLACEHOLDERS = (
    (r"MARS (Admin  - marsadm|Status - \S+,|Module - marsd) [0-9.]+", r"MARS \1 VERSION"),
    (r"(?m)^MARS Kernel - .*", "MARS Kernel - KERNEL"),
    (r"/dev/loop\d+|/\S*/disk\S*", "DISK"),
    (r"\b\d+ bytes( \([0-9.]+ \w+\))?(?! of)", "N bytes (SIZE)"),
    (r"Todo \d+ \([0-9.]+ \w+\)", "Todo N (SIZE)"),
    (r"[0-9.]+ (bytes|[KMGT]iB)/s", "RATE"),
    (r"rest [0-9.]+ (bytes|[KMGT]iB)", "rest SIZE"),
    (r"[0-9.]+ (bytes|[KMGT]iB) (left|are missing)", r"SIZE \2"),
    (r" \(done in [^)]*\)", ""),
    (r"( at RATE|, at RATE|, received with RATE)", ""),
    (r"(lag|before|of for|is) (about )?\d+ (sec|min)", r"\1 TIME"),
    (r"\b(?!100\.00%)\d+\.\d\d%", "P%"),
    (r"log-(\d{9})-(\S+),\d+", r"log-\1-\2,POS"),
    (r"ends at \d+ here, asked from \d+", "ends at POS here, asked from POS"),
    (r"[0-9.]+ MiB of log", "SIZE of log"),
    (r"\d+ KiB of regions", "SIZE of regions"),
    (r"log-0000000[1-9]\d", "log-NUMBER"),
    (r"Check: [0-9a-f]{12}", "Check: DIGEST"),
    (r"from \w{3} \w{3} \d\d [0-9:]{8} \d{4}", "from DATE"),
)


class Golden:
    """Compares what is shown with what was shown once, and tells all differences at the end."""

    def __init__(self) -> None:
        self.wrong: list[str] = []

    def check(self, name: str, host: Host, level: int, options: str = "") -> str:
        """One call of mars-status: its text, its exit status."""
        done = host.run(f"mars-status {options}", check=False)
        text = scrubbed(done.stdout) + done.stderr
        path = GOLDEN / f"{name}.txt"
        if os.environ.get("MARSX_GOLDEN") == "write":
            path.write_text(text)
        elif text != path.read_text():
            self.wrong.append(f"==== {name}: expected\n{path.read_text()}==== {name}: got\n{text}")
        if done.returncode != level:
            self.wrong.append(f"==== {name}: exit status {done.returncode}, not {level}\n{text}")
        return done.stdout

    def end(self) -> None:
        """All was as it should be."""
        assert not self.wrong, "\n".join(self.wrong)


def scrubbed(text: str) -> str:
    """With placeholders."""
    for pattern, placeholder in PLACEHOLDERS:
        text = re.sub(pattern, placeholder, text)
    return text


def picture(host: Host, limits: Limits | None = None) -> dict:
    """The picture that the host's mars-status makes, made here: asking is cheap."""
    store = Store(paths(host), host.name, Lamport(), readonly=True)
    store.load()
    daemon = seen.ask_daemon(paths(host).control_socket)
    view = View(store.entries(), daemon.heard)
    return make_picture(view, time.time_ns(), seen.look(view, paths(host), host.name, daemon), limits)


def paths(host: Host) -> Paths:
    """Of a host, seen from outside."""
    return Paths(*(str(host.path(folder)) for folder in ("/mars", "/run/mars", "/dev/mars", "/etc/mars")))


def codes(host: Host, limits: Limits | None = None) -> set[str]:
    """What is wrong, by code."""
    return {note["code"] for note in picture(host, limits)["reasons"]}


def wait_for(host: Host, *wanted: str) -> None:
    """Until just these are the reasons."""
    host.wait(lambda: codes(host) == set(wanted), what=f"the reasons {wanted}")


def replica(host: Host, name: str) -> dict:
    """The picture of one host's replica."""
    return picture(host)["resources"]["data"]["nodes"][name]


def write(host: Host, megabytes: int) -> None:
    """Data that cannot be guessed."""
    host.run(f"dd if=/dev/urandom of=/dev/mars/data bs=1M count={megabytes} oflag=direct status=none")


def tune(host: Host, name: str, value: int) -> None:
    """A tunable, at once."""
    path = host.path(f"/run/mars/sys/{name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{value}\n")


def test_all_states_of_a_pair(cluster):
    """From a host that is alone to a split brain and a daemon that is down: text and exit status of each state."""
    golden = Golden()
    hosts = cluster("a", "b", data_size=64 * MIB, mars_size=512 * MIB)
    a, b = hosts
    golden.check("no-cluster", a, 3)
    a.run(f"marsadm create-cluster --ip={a.ip}")
    golden.check("not-started", a, 3)
    a.marsd_start()
    golden.check("no-resource", a, 0)
    scenario.create_resource(a, "data")
    write(a, 48)
    a.wait(lambda: scenario.settled(a, "data"), what="write-back")
    a.wait(lambda: not replica(a, "a")["device"]["opened"], what="dd to be forgotten")
    golden.check("one-host", a, 0)
    scenario.join_cluster(a, b)
    b.wait(lambda: scenario.size(b, "data"), what="the resource")
    wait_for(b)
    golden.check("not-joined", b, 0)
    _sync(golden, a, b)
    golden.check("healthy-primary", a, 0)
    golden.check("healthy-secondary", b, 0)
    _used(golden, a, b)
    _lagging(golden, hosts, a, b)
    _switched_off(golden, a, b)
    _history(golden, a, b)
    _silent(golden, hosts, a, b)
    _split(golden, hosts, a, b)
    golden.end()


def _sync(golden: Golden, a: Host, b: Host) -> None:
    tune(b, "traffic_tuning/client_role_traffic_ratelimit_kb", 2048)
    scenario.join_resource(b, "data")
    b.wait(lambda: replica(b, "b")["sync"]["state"] == "running" and replica(b, "b")["sync"]["rate"] > 0,
           what="a sync that moves")
    golden.check("syncing", b, 0)
    a.wait(lambda: replica(a, "b")["sync"]["rate"] > 0, what="the sync to be heard of")
    golden.check("syncing-seen-from-primary", a, 0)
    b.run("marsadm pause-sync data")
    wait_for(b, "sync-paused")
    golden.check("sync-paused", b, 1)
    b.run("marsadm resume-sync data")
    tune(b, "traffic_tuning/client_role_traffic_ratelimit_kb", 0)
    scenario.wait_equal(a, b, "data")
    wait_for(b)
    wait_for(a)


def _used(golden: Golden, a: Host, b: Host) -> None:
    """`enable to mount` only where nobody uses it."""
    scenario.make_file_system(a, "data", "ext4")
    a.wait(lambda: replica(a, "a")["device"]["opened"], what="the mount")
    assert "WORK: mounted as /mnt" in a.run("mars-status", check=False).stdout
    assert "enable to mount" not in a.run("mars-status", check=False).stdout
    a.run("umount /mnt")
    scenario.wait_equal(a, b, "data")
    a.wait(lambda: not replica(a, "a")["device"]["opened"], what="the umount to be seen")


def _lagging(golden: Golden, hosts: Cluster, a: Host, b: Host) -> None:
    hosts.net.shape("b", "1mbit")
    write(a, 8)
    b.wait(lambda: replica(b, "b")["fetch"]["rest"] > MIB and replica(b, "b")["lag"]["seconds"] > 1,
           what="a replica that is behind")
    golden.check("lagging", b, 1, "--lag=1,1000 --rest=off")
    assert "MARS WARNING - data on b: this replica is" in b.run("mars-status --nagios --lag=1", check=False).stdout
    critical = b.run("mars-status --nagios --lag=1,1", check=False)
    assert critical.returncode == 2 and critical.stdout.startswith("MARS CRITICAL - ")
    hosts.net.unshape("b")
    scenario.wait_equal(a, b, "data")


def _switched_off(golden: Golden, a: Host, b: Host) -> None:
    b.run("marsadm pause-replay data")
    write(a, 1)
    a.wait(lambda: scenario.settled(a, "data"), what="write-back")
    b.wait(lambda: replica(b, "b")["replay"]["ready"] > 0 and not replica(b, "b")["fetch"]["rest"], what="the log")
    wait_for(b, "replay-paused")
    golden.check("replay-paused", b, 2)
    a.wait(lambda: replica(a, "b")["replay"]["ready"] > 0 and not replica(a, "b")["fetch"]["rest"], what="the log")
    golden.check("replay-paused-seen-from-primary", a, 2)
    b.run("marsadm resume-replay data")
    scenario.wait_equal(a, b, "data")
    b.run("marsadm disconnect data")
    b.wait(lambda: not replica(b, "b")["actual"]["copying"], what="the end of fetch")
    golden.check("fetch-paused", b, 2)
    b.run("marsadm connect data")
    b.run("marsadm detach data")
    wait_for(b, "detached")
    golden.check("detached", b, 2)
    b.run("marsadm attach data")
    wait_for(b)


def _history(golden: Golden, a: Host, b: Host) -> None:
    b.run("marsadm pause-replay data")
    b.wait(lambda: not replica(b, "b")["actual"]["replaying"], what="the end of replay")
    a.run("marsadm log-rotate data")
    write(a, 1)
    b.wait(lambda: scenario.published(a, "data") and replica(b, "b")["replay"]["ready"] > 0
           and not replica(b, "b")["fetch"]["rest"], what="the log")
    a.wait(lambda: scenario.settled(a, "data"), what="write-back")
    a.wait(lambda: replica(a, "b")["replay"]["ready"] > 0 and not replica(a, "b")["fetch"]["rest"], what="the log")
    golden.check("history", a, 2, "--history --ascii")
    golden.check("status-bars", a, 2, "--status --ascii")
    b.run("marsadm resume-replay data")
    scenario.wait_equal(a, b, "data")
    wait_for(b)


def _silent(golden: Golden, hosts, a: Host, b: Host) -> None:
    hosts.net.cut("a", "b")
    limits = Limits(peer=Limit(3, 5))
    a.wait(lambda: codes(a, limits) == {"peer-silent"} and picture(a, limits)["level"] == 2, what="the silence")
    golden.check("dead-peer", a, 2, "--peer=3,5")
    hosts.net.heal("a", "b")
    wait_for(a)
    a.wait(lambda: time.time() - float(a.link("actual-b/time")) < 2, what="the line from b, which TCP tries seldom now")
    b.marsd_stop()
    assert a.link("actual-b/alive") == "0", "who stops waits until the others know it"
    assert "marsd was stopped there ==> on b: marsd start" in a.run("mars-status", check=False).stdout
    golden.check("daemon-down", b, 3)
    b.marsd_start()
    wait_for(a)
    wait_for(b)


def _split(golden: Golden, hosts, a: Host, b: Host) -> None:
    hosts.net.cut("a", "b")
    b.run("marsadm disconnect data")
    b.run("marsadm primary --force data")
    scenario.wait_device(b, "data")
    write(a, 1)
    write(b, 2)
    for host in (a, b):
        host.wait(lambda host=host: scenario.settled(host, "data"), what="write-back")
    hosts.net.heal("a", "b")
    for host in (a, b):
        host.wait(lambda host=host: {"split-brain", "message"} <= codes(host), what="the split brain")
    golden.check("split-brain", a, 2)


def test_four_hosts_with_long_names(cluster):
    """Names of maximal length, four hosts, three of them members; at the end the primary's /mars is full."""
    golden = Golden()
    names = [letter * 63 for letter in "abcd"]
    hosts = cluster(*names, data_size=8 * MIB, mars_size=256 * MIB)
    first, *others = list(hosts)
    scenario.form_cluster(hosts)
    resource = "r" * 63
    scenario.create_resource(first, resource)
    for host in others[:2]:
        scenario.join_resource(host, resource)
    for host in others[:2]:
        scenario.wait_equal(first, host, resource)
    for host in (first, others[2]):
        wait_for(host)
    first.wait(lambda: not picture(first)["resources"][resource]["nodes"][first.name]["device"]["opened"], what="dd")
    golden.check("four-hosts", first, 0, "--status --ascii")
    golden.check("four-hosts-seen-from-outside", others[2], 0)
    _emergency(first, resource, others[:2])
    golden.end()


def _emergency(primary: Host, resource: str, members: list[Host]) -> None:
    """A full /mars: the primary goes on without log, and the members wait."""
    room = os.statvfs(primary.path("/mars"))
    primary.run(f"fallocate -l {room.f_bavail * room.f_frsize - 8 * MIB} /mars/junk")

    def told(host: Host, key: str) -> bool:
        said = picture(primary)["resources"][resource]["nodes"][host.name]["messages"]
        return key in {message["key"] for message in said}

    primary.wait(lambda: told(primary, "err-emergency") and all(told(host, "inf-gap") for host in members),
                 what="the emergency")
    shown = primary.run("mars-status", check=False)     # no golden text: the level may have fallen again meanwhile
    assert shown.returncode == 2 and "EMERGENCY: nothing is logged any more" in shown.stdout, shown.stdout
    primary.run("rm /mars/junk")
