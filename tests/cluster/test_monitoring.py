"""Monitoring on real hosts: every silent stall is named, metrics are served, a browser shows what happens."""

import json
import os
import re
import shutil
import signal
import subprocess
import zipfile
from pathlib import Path

import pytest

from tools import scenario
from tools.hosts import MIB, Cluster, Host

WRITE = "dd if=/dev/urandom of=/dev/mars/{} bs=64k count={} oflag=direct conv=notrunc status=none"
PORT = 9200
BROWSERS = ("chromium-headless-shell", "chromium")
CLIENT_LIMIT = "traffic_tuning/client_role_traffic_ratelimit_kb"


def tune(host: Host, **values: int) -> None:
    """Set tunables; `__` stands for `/`."""
    for name, value in values.items():
        host.path(f"/run/mars/sys/{name.replace('__', '/')}").write_text(f"{value}\n")


def said(host: Host, resource: str = "data", about: str = "") -> tuple[str, dict[str, str]]:
    """What stands still on `about` (the host itself), as `host` knows it; the messages about that, without `OK`."""
    about = about or host.name
    folder = f"resource-{resource}/actual-{about}"
    found = {key: text for key, text in host.links(folder, "msg-").items() if "-stall-" in key and text != "OK"}
    return host.link(f"{folder}/stalled"), found


def wait_stall(host: Host, wanted: str, resource: str = "data", about: str = "") -> str:
    """Wait until it is said, in the fact and in one message; the message."""
    activity, found = wanted.partition("=")[0], []

    def is_said() -> bool:
        stalled, messages = said(host, resource, about)
        found[:] = [text for key, text in messages.items() if key.endswith(f"-{activity}")]
        return len(found) == 1 and wanted in stalled.split(",")
    host.wait(is_said, 60, f"the stall {wanted} of {resource}")
    return found[0]


def goes_on(host: Host, resource: str = "data") -> None:
    """Wait until nothing stands still any more, and nobody says so."""
    host.wait(lambda: said(host, resource) in (("", {}), ("-", {})), 60, f"an end of the stall of {resource}")


def other_version(pyz: Path, target: Path) -> Path:
    """The same program, which speaks another protocol."""
    build = re.search(rb'BUILD = "([0-9a-f]{32})"', zipfile.ZipFile(pyz).read("__main__.py"))
    with zipfile.ZipFile(pyz) as old, open(target, "wb") as out:
        out.write(b"#!/usr/bin/env -S python3 -IS\n")
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
            for info in old.infolist():
                data = old.read(info)
                if info.filename.endswith("marsx/peer/wire.py"):
                    data, count = re.subn(rb"(?m)^PROTO = (\d+)$", b"PROTO = 99", data)
                    assert count == 1
                new.writestr(info, data.replace(build[1], build[1][::-1]))
    target.chmod(0o755)
    return target


def fill(host: Host) -> Path:
    """/mars has no room any more."""
    path = host.path("/mars/filler")
    with open(path, "wb") as file:
        free = os.statvfs(path)
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - MIB)
        while True:
            try:
                os.write(file.fileno(), bytes(4096))
            except OSError:
                return path


def limits(hosts: Cluster) -> None:
    """A limit of bandwidth; a slot that is taken."""
    a, b = hosts
    scenario.create_resource(a, "more", a.add_device("more.img", 16 * MIB).path)
    for name in ("data", "more"):
        a.run(WRITE.format(name, 128))
    scenario.wait_caught_up(a, b, "data")
    tune(b, **{CLIENT_LIMIT: 1}, sync_limit=1, do_fast_fullsync=0)
    b.run("marsadm invalidate data")
    assert "KiB/s" in wait_stall(b, "sync=rate-limit")
    scenario.join_resource(b, "more", b.add_device("more.img", 16 * MIB).path)
    assert "waits for a free slot" in wait_stall(b, "sync=no-slot", "more")
    tune(b, **{CLIENT_LIMIT: 0}, sync_limit=0, do_fast_fullsync=1)
    for name in ("data", "more"):
        scenario.wait_caught_up(a, b, name)
        goes_on(b, name)


def paused_member(hosts: Cluster) -> None:
    """It holds logs back."""
    a, b = hosts
    b.run("marsadm pause-replay data")
    a.run(WRITE.format("data", 16))
    a.run("marsadm log-rotate data")
    assert "marsadm resume-replay data" in wait_stall(a, "delete=member-paused")
    assert "delete" not in said(b)[0], "b itself wants it so"
    b.run("marsadm resume-replay data")
    goes_on(a)


def full_mars(hosts: Cluster) -> None:
    """Of the secondary."""
    a, b = hosts
    filler = fill(b)
    a.run(WRITE.format("data", 64))
    text = wait_stall(a, "fetch=no-room", about="b")
    assert "room" in text, "b itself has no room to write it down"
    filler.unlink()
    scenario.wait_caught_up(a, b, "data")
    goes_on(b)


def lost_log(hosts: Cluster) -> None:
    """The source has not got it any more."""
    a, b = hosts
    b.run("marsadm disconnect data")
    a.run(WRITE.format("data", 16))
    a.run("marsadm log-rotate data")
    a.wait(lambda: scenario.settled(a, "data"), what="write-back on a")
    sorted(a.path("/mars/resource-data").glob("log-*"))[-2].unlink()
    b.run("marsadm connect data")
    assert "invalidate" in wait_stall(b, "fetch=log-missing")
    b.run("marsadm invalidate data")
    scenario.wait_caught_up(a, b, "data")
    goes_on(b)


def damaged_log_and_silent_peer(hosts: Cluster) -> None:
    """The copy is damaged while nobody who has it answers; healed when a answers again."""
    a, b = hosts
    b.run("marsadm pause-replay data")
    a.run(WRITE.format("data", 16))
    a.wait(lambda: scenario.published(a, "data"), what="a to say how far it is")
    end = str(scenario.Version.newest(a, "data").pos)
    b.wait(lambda: b.link("resource-data/actual-b/fetched").split(",")[1:2] == [end], 30, "the log on b")
    b.marsd_stop()
    worker = a.worker()
    os.kill(worker, signal.SIGSTOP)
    try:
        with open(max(b.path("/mars/resource-data").glob("log-*")), "r+b") as file:
            file.seek(4096 + scenario.Replay.of(b, "data").pos + 4096 + 512)
            file.write(b"damaged!")
            os.fsync(file.fileno())
        b.marsd_start()
        assert "log" in wait_stall(b, "resource=log-corrupt")
        b.wait(lambda: "a=silent" in b.link("actual-b/unreachable"), 60, "a to be called silent")
        b.wait(lambda: "does not answer" in b.link("actual-b/msg-err-stall-connect"), 30, "the message about a")
    finally:
        os.kill(worker, signal.SIGCONT)
    b.run("marsadm resume-replay data")
    scenario.wait_equal(a, b, "data")
    goes_on(b)
    b.wait(lambda: b.link("actual-b/unreachable") == "-", 30, "a to be there again")


def version_mismatch(hosts: Cluster, folder: Path) -> None:
    """b comes back with a program that speaks another protocol."""
    a, b = hosts
    b.marsd_stop()
    b.install(other_version(hosts.pyz, folder / "other.pyz"))
    b.marsd_start()
    tune(b, stuck_seconds=1)
    assert "same mars.pyz on all hosts" in wait_stall(b, "fetch=version")
    a.wait(lambda: "b=proto" in a.link("actual-a/unreachable"), 30, "a to say so too")


def test_every_stall_is_named(pair, tmp_path):
    """Rate limit, no sync slot, paused member, full /mars, lost and damaged log, silent peer, other version: each is
    named on the host that has it, with what to do, and taken back when it is over."""
    hosts = pair(data_size=32 * MIB)
    for host in hosts:
        tune(host, stuck_seconds=1)
    scenario.wait_caught_up(*hosts, "data")
    limits(hosts)
    paused_member(hosts)
    full_mars(hosts)
    lost_log(hosts)
    damaged_log_and_silent_peer(hosts)
    version_mismatch(hosts, tmp_path)


# ---- metrics and page ----

def served(host: Host, path: str) -> bytes:
    """What marsd of a host answers."""
    return host.run(["curl", "-sf", f"http://127.0.0.1:{PORT}{path}"]).stdout.encode()


class Browser:
    """Looks at the page of one host; keeps pictures of what it saw."""

    def __init__(self, host: Host, folder: Path) -> None:
        found = [path for name in BROWSERS if (path := shutil.which(name))]
        if not found:
            pytest.skip(f"no browser: none of {', '.join(BROWSERS)} (Debian packages) is there")
        self.program, self.host, self.folder = found[0], host, folder

    def _run(self, *words: str) -> str:
        net = ["nsenter", "-t", str(self.host.holder.pid), "-n", "--"]
        done = subprocess.run(
            [*net, self.program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             f"--user-data-dir={self.folder}/browser", "--window-size=1280,800", "--virtual-time-budget=4000", *words,
             f"http://127.0.0.1:{PORT}/"], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def see(self, name: str) -> str:
        """The page as the browser has built it; a screenshot goes to `name`.png."""
        if folder := os.environ.get("MARS_SHOTS"):
            self._run(f"--screenshot={folder}/{name}.png")
        return self._run("--dump-dom")


def part_of(dom: str, host: str, part: str) -> float:
    """Percent of sync, fetch or replay of a host, as shown."""
    row = dom.partition(f'<tr data-host="{host}">')[2].partition("</tr>")[0]
    cell = row.partition(f'data-part="{part}"')[2]
    return float(re.search(r'aria-valuenow="([0-9.]+)"', cell)[1])


def card_of(dom: str, host: str) -> str:
    """The text about a host."""
    return re.sub(r"<[^>]*>", " ", dom.partition(f'data-host="{host}"')[2].partition('data-host="')[0])


def test_page_and_metrics(cluster, tmp_path):
    """A browser sees a running sync move, a dead peer and a split brain; promtool likes what is served; nothing is
    served before it is asked for, and nothing beyond loopback."""
    if not shutil.which("curl"):
        pytest.skip("curl is not there (Debian: curl)")
    hosts = cluster("a", "b", "c", data_size=64 * MIB)
    a, b, c = hosts
    browser = Browser(b, tmp_path)
    scenario.form_cluster(hosts)
    c.kill9_keeper()
    scenario.create_resource(a, "data")
    a.run(WRITE.format("data", 900))
    assert b.run(["curl", "-s", f"http://127.0.0.1:{PORT}/"], check=False).returncode
    tune(b, web_port=PORT, stuck_seconds=3, **{CLIENT_LIMIT: 3000})
    scenario.join_resource(b, "data")
    b.wait(lambda: b.run(["curl", "-sf", f"http://127.0.0.1:{PORT}/"], check=False).returncode == 0, 30, "the page")
    assert a.run(["curl", "-s", "-m", "2", f"http://{b.ip}:{PORT}/"], check=False).returncode

    b.wait(lambda: 0 < scenario.synced(b, "data") < 20 * MIB, 30, "the sync to begin")
    first = browser.see("sync")
    assert 0 < part_of(first, "b", "sync") < 90 and "running" in first and "Primary: a" in first
    b.wait(lambda: json.loads(served(b, "/status.json"))["resources"]["data"]["nodes"]["b"]["sync"]["percent"]
           > part_of(first, "b", "sync") + 1, 60, "more of it")
    assert part_of(browser.see("sync2"), "b", "sync") > part_of(first, "b", "sync")
    tune(b, **{CLIENT_LIMIT: 0})

    b.wait(lambda: json.loads(served(b, "/status.json"))["cluster"]["hosts"]["c"]["alive"] is False, 60, "c to be dead")
    b.run(["ln", "-sfn", '1.0 1.0 <b id="evil">x</b><script>y</script>',
           "/mars/resource-data/actual-b/msg-wrn-hostile"])
    b.wait(lambda: b"hostile" in served(b, "/status.json"), 30, "the message")
    dead = browser.see("dead")
    assert "&lt;b id=\"evil\"&gt;" in dead and "<b id" not in dead, "what comes from the tree is text"
    assert "silent" in card_of(dead, "c") and "alive" in card_of(dead, "a") and "CRITICAL" not in card_of(dead, "a")

    scenario.wait_caught_up(a, b, "data")
    metrics = served(b, "/metrics").decode()
    assert 'mars_peer_alive{host="c"} 0' in metrics
    assert 'mars_peer_connection_state{host="c",state="connected"} 0' in metrics
    if shutil.which("promtool"):
        done = subprocess.run(["promtool", "check", "metrics"], input=metrics, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")

    hosts.net.cut("a", "b")
    a.run(WRITE.format("data", 4))
    a.wait(lambda: scenario.settled(a, "data"), what="write-back on a")
    b.run("marsadm disconnect data")
    b.run("marsadm primary --force data")
    scenario.wait_device(b, "data")
    b.run(WRITE.format("data", 4))
    b.wait(lambda: 'mars_device_write_latency_seconds_count{resource="data"} 4' in served(b, "/metrics").decode(), 30,
           "the four writes, in metrics that are a second old at most")
    metrics = served(b, "/metrics").decode()
    assert 'mars_device_flush_latency_seconds_count{resource="data"}' in metrics
    assert re.search(r'mars_device_read_latency_seconds_count\{resource="data"\} [1-9]', metrics), "udev and dd read"
    hosts.net.heal("a", "b")
    b.wait(lambda: 'mars_resource_split_brain{resource="data"} 1' in served(b, "/metrics").decode(), 60, "the verdict")
    assert "SPLIT BRAIN" in browser.see("split")
    tune(b, web_port=0)
    b.wait(lambda: b.run(["curl", "-s", f"http://127.0.0.1:{PORT}/"], check=False).returncode == 7, 30, "its end")
