"""Pieces of /mars that are deleted or damaged on one host, while marsd runs and while it does not: they are named and
whole again where anybody knows them, no role changes, marsd does not end."""

import contextlib
import os
from pathlib import Path

from damage import messages
from test_hosts import said
from test_roles_operations import follow

from tools import scenario
from tools.hosts import MIB, Host

WRITE = "dd if=/dev/urandom of=/dev/mars/data bs=64k count=16 conv=fsync,notrunc status=none"
LONG = "y" * 3000
ALIVE = ("time", "alive")  # said again every second


def to_a_directory(path: Path) -> None:
    """Something that is in the way. marsd may be faster than we are between two steps."""
    while not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            return


def to_a_file(path: Path) -> None:
    """As a backup without links makes it."""
    beside = path.with_name(".beside")
    beside.write_text("x")
    beside.rename(path)


def to_link(path: Path, value: str) -> None:
    """At once, with the time of now."""
    beside = path.with_name(".beside")
    beside.symlink_to(value)
    beside.rename(path)


def to_garbage(path: Path) -> None:
    """No value of any entry."""
    to_link(path, "\x01 no value / %%")


def to_a_long_one(path: Path) -> None:
    """Longer than any value."""
    to_link(path, LONG)


def to_another_owner(path: Path) -> None:
    """Nobody reads who owns a link."""
    os.lchown(path, 1234, 1234)


DAMAGES = (Path.unlink, to_a_directory, to_a_file, to_garbage, to_a_long_one, to_another_owner)
# Known to nobody else, or said otherwise after a start: what becomes of them stands in the second test.
OWN = ("actual-{0}/", "resource-data/actual-{0}/", "resource-data/replay-{0}", "resource-data/syncstatus-{0}",
       "resource-data/syncpos-{0}", "resource-data/version-", "uuid")


def links(host: Host) -> dict[str, str]:
    """Entries of the tree that rest."""
    return {rel: value for rel, value in host.tree().items()
            if not value.startswith("<") and not rel.startswith(("local-", "lost")) and rel.rpartition("/")[2]
            not in ALIVE and "/msg-" not in rel and not rel.endswith("_rate") and "-space" not in rel}


def lost(host: Host, before: dict[str, str]) -> list[str]:
    """What is not as it was."""
    now = host.tree()
    return [rel for rel, value in before.items() if now.get(rel) != value]


def test_every_link_while_marsd_runs(pair):
    """Each kind of damage to each link of the tree at once, on the primary and on a secondary: all are written again,
    said so, what was in the way is kept, and the device never goes away."""
    hosts = pair(data_size=16 * MIB)
    a, b = hosts
    a.run(WRITE)
    scenario.wait_equal(a, b, "data")
    device = a.mars_device("data")
    workers = {host: host.worker() for host in hosts}
    for host in hosts:
        for damage in DAMAGES:
            before = links(host)
            for rel in before:
                damage(host.path(f"/mars/{rel}"))
            host.wait(lambda host=host, before=before: not lost(host, before), 30, f"the tree after {damage.__name__}")
        host.wait(lambda host=host: "written again" in said(host, "inf-tree-healed"), 30, "the word of it")
        assert len(os.listdir(host.path(f"/mars/local-{host.name}/misplaced"))) >= 2 * 60
        folder = host.path("/mars/resource-data/todo-a")
        before = links(host)
        folder.rename(host.path("/mars/lost+found/todo-a"))
        host.wait(lambda host=host, before=before: not lost(host, before), 30, "the directory")
        assert not said(host, "err-tree")
    a.run(WRITE)
    scenario.wait_equal(a, b, "data")
    assert a.mars_device("data") == device and {host: host.worker() for host in hosts} == workers
    assert a.link("resource-data/primary") == "a"


def test_links_and_files_while_marsd_is_off(pair):
    """What others know comes back from them, also over garbage; own positions that are lost are named, with what heals;
    lost keys, the uuid and a host's own files are named or made again."""
    hosts = pair(data_size=16 * MIB)
    a, b = hosts
    a.run(WRITE)
    scenario.wait_equal(a, b, "data")
    own = tuple(prefix.format("b") for prefix in OWN)
    for damage in (Path.unlink, to_a_directory, to_garbage):
        b.marsd_stop()
        before = {rel: value for rel, value in links(b).items() if not rel.startswith(own) and rel != "ips/ip-a"}
        assert len(before) > 25
        for rel in before:
            damage(b.path(f"/mars/{rel}"))
        b.marsd_start()
        b.wait(lambda before=before: not lost(b, before), 30, f"the tree after {damage.__name__}")
    a.run(WRITE)
    scenario.wait_equal(a, b, "data")

    for damage in (Path.unlink, to_garbage):
        b.marsd_stop()
        damage(b.path("/mars/resource-data/replay-b"))
        b.marsd_start()
        b.wait(lambda: "replay link" in messages(b, "err-resource") and "invalidate" in messages(b, "err-resource"), 30,
               "the text")
        follow(hosts, "lost-replay-link")
        scenario.wait_equal(a, b, "data")

    b.marsd_stop()
    for rel in ("resource-data/syncstatus-b", "ips/ip-a"):
        b.path(f"/mars/{rel}").unlink()
    for name in ("lamport", "position-data", "seal-data"):
        b.path(f"/mars/local-b/{name}").write_bytes(b"garbage")
    for path in b.path("/mars/resource-data").glob("version-*"):
        path.unlink()
    b.marsd_start()
    b.wait(lambda: b.link("ips/ip-a") == a.ip, 30, "the address of a")
    a.run(WRITE)
    scenario.wait_equal(a, b, "data")

    b.marsd_stop()
    value = b.link("uuid")
    b.path("/mars/uuid").unlink()
    failed = b.run("marsd start", check=False)
    assert failed.returncode == 3 and "uuid is missing" in failed.stderr and "ln -s" in failed.stderr
    b.path("/mars/uuid").symlink_to(value)
    for name, words in (("host.key", "missing"), ("host.crt", "cannot be used"), ("ca.crt", "cannot be used")):
        path = b.path(f"/etc/mars/tls/{name}")
        sound = path.read_bytes()
        path.unlink() if words == "missing" else path.write_bytes(sound[:200] + b"garbage" + sound[207:])
        failed = b.run("marsd start", check=False)
        assert failed.returncode and "/etc/mars/tls" in failed.stderr, (name, failed.stderr)
        path.write_bytes(sound)
        path.chmod(0o600)
    b.marsd_start()
    a.run(WRITE)
    scenario.wait_equal(a, b, "data")
    assert a.link("resource-data/primary") == "a" and b.devices() == []
