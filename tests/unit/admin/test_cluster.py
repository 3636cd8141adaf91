"""create, join, leave: the exact tree, the certificates, and that a refusal leaves nothing behind."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from marsx.admin import cluster
from marsx.base.errors import AuthError, MarsError
from marsx.peer import tls
from marsx.peer.join import JoinService
from marsx.peer.server import Server
from marsx.peer.token import TokenStore, create_token
from marsx.peer.wire import Hello
from marsx.tree import paths
from tests.unit.admin.small_tree import NOW, Admin, SmallTree


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Admin:
    """Host b with empty directories, and no marsd."""
    adm = Admin(SmallTree(tmp_path / "b"), monkeypatch)
    adm.control.running = False
    return adm


def files_of(adm: Admin) -> list[str]:
    """Everything in the directories of the host, directories without content too."""
    root = Path(adm.tree.paths.mars_dir).parent
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_create(fresh: Admin) -> None:
    """The links of facts 1.2 and 8.3, the incarnation of rule 26, the certificates; uuid is the newest link."""
    code, out, err = fresh("create-cluster --ip=10.0.0.2")
    assert code == 0 and "marsd start" in out, err
    tree = fresh.tree.all()
    uuid, stamp = tree.pop("uuid")
    assert re.fullmatch(r"b_[0-9]+\.[0-9]{9}", uuid) and uuid >= f"b_{NOW // 10**9}" and stamp >= NOW
    member, _ = tree.pop("ips/member-b")
    assert re.fullmatch("[0-9a-f]{32}", member)
    assert {rel: value for rel, (value, _) in tree.items()} == {
        "ips/ip-b": "10.0.0.2", "defaults-b/sync-limit": "0", "defaults-b/sync-pref-list": "(none)",
    }  # fmt: skip
    assert stamp > max(when for _, when in tree.values())
    for name in ("ips", "userspace", "defaults", "defaults-b", "todo-global", "actual-b"):
        assert Path(fresh.tree.paths.mars_dir, name).is_dir()
    assert tls.TlsFiles.of(fresh.tree.paths).may_sign()


def test_create_takes_the_first_address(fresh: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --ip the first that is not the loopback."""
    monkeypatch.setattr(cluster.checks, "_ip_listing", lambda: "2: eth1    inet 10.7.0.1/24 scope global eth1")
    assert fresh("create-cluster")[0] == 0 and fresh.tree.get("ips/ip-b") == "10.7.0.1"


def test_create_twice(fresh: Admin) -> None:
    """A cluster that exists is not made again: exit 3, nothing changed."""
    assert fresh("create-cluster --ip=10.0.0.2")[0] == 0
    before, all_files = fresh.tree.all(), files_of(fresh)
    for line in ("create-cluster --ip=10.0.0.3", "join-cluster a --ip=10.0.0.3 --ip-a=10.0.0.1 --token=T"):
        code, _, err = fresh(line)
        assert code == 3 and "belongs to a cluster already" in err
    assert fresh.tree.all() == before and files_of(fresh) == all_files


@pytest.mark.parametrize("ip", ["10.0.0", "eth0", "fe80::1"])
def test_create_with_a_bad_address(fresh: Admin, ip: str) -> None:
    """Exit 2, nothing left behind."""
    before = files_of(fresh)
    code, _, err = fresh(f"create-cluster --ip={ip}")
    assert code == 2 and "not an IPv4 address" in err and files_of(fresh) == before


def test_create_that_fails_half_way(fresh: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    """No certificates and no uuid stay behind, so that it can be given again; and then it works."""

    def full(ctx: object, ip: str) -> None:
        raise MarsError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(cluster, "_begin_tree", full)
        assert fresh("create-cluster --ip=10.0.0.2")[0] == 1
    assert fresh.tree.get("uuid") == "" and not Path(tls.TlsFiles.of(fresh.tree.paths).ca_crt).exists()
    assert fresh("create-cluster --ip=10.0.0.2")[0] == 0


def test_create_beside_old_certificates(fresh: Admin) -> None:
    """Keys of a cluster whose tree is gone are not overwritten."""
    files = tls.TlsFiles.of(fresh.tree.paths)
    tls.create_cluster(files, "b")
    before = Path(files.ca_crt).read_bytes()
    code, _, err = fresh("create-cluster --ip=10.0.0.2")
    assert code == 3 and "certificates" in err and Path(files.ca_crt).read_bytes() == before
    assert fresh.tree.get("uuid") == ""


def test_create_while_marsd_runs(fresh: Admin) -> None:
    """A daemon that runs without a cluster is stopped first."""
    fresh.control.running = True
    code, _, err = fresh("create-cluster --ip=10.0.0.2")
    assert code == 3 and "marsd stop" in err and fresh.tree.all() == {}


class Member:
    """Host a of a cluster: its tree, and its join service on a real port, in a loop of its own."""

    def __init__(self, tree: SmallTree) -> None:
        self.tree = tree
        self.admitted: list[tuple[str, str]] = []
        self.files = tls.TlsFiles.of(tree.paths)
        tls.create_cluster(self.files, "a")
        self.port = 0
        self._stop: asyncio.Event | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._ready.wait(20)

    def token(self) -> str:
        return create_token(self.tree.paths, "a")

    def close(self) -> None:
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)

    def _admit(self, host: str, ip: str, address: str) -> list[Any]:
        self.admitted.append((host, ip))
        self.tree.put(f"ips/ip-{host}", ip)
        self.tree.put(f"ips/member-{host}", "given-by-a")
        return [[rel, value, stamp] for rel, (value, stamp) in self.tree.all().items()]

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        store = TokenStore.of(self.tree.paths)
        uuid = self.tree.get("uuid")
        service = JoinService(self.files, store, uuid=lambda: uuid, admit=self._admit)
        server = Server(
            "127.0.0.1", 0, contexts=tls.server_contexts(self.files), identity=lambda: Hello(uuid, "a", "inc-a"),
            services={"join": service}, is_member=lambda peer: "", join_open=store.any,
        )  # fmt: skip
        await server.start()
        self.port = server.port
        self._ready.set()
        await self._stop.wait()
        await server.close()


@pytest.fixture
def member(tmp_path: Path) -> Iterator[Member]:
    """Host a with the resource data, and its daemon's port."""
    tree = SmallTree(tmp_path / "a").cluster("a").resource("data", "a")
    found = Member(tree)
    yield found
    found.close()


def join(adm: Admin, member: Member, token: str, name: str = "a") -> tuple[int, str, str]:
    """join-cluster over the loopback."""
    port = Path(adm.tree.paths.run_dir, "sys", "mars_port")
    port.parent.mkdir(exist_ok=True)
    port.write_text(f"{member.port}\n")
    return adm(f"join-cluster {name} --ip=10.0.0.2 --ip-{name}=127.0.0.1 --token={token}")


def test_join(fresh: Admin, member: Member) -> None:
    """The member's whole tree with its stamps, our own entries, certificates of the same CA; uuid last."""
    code, out, err = join(fresh, member, member.token())
    assert code == 0 and "marsd start" in out, err
    mine, theirs = fresh.tree.all(), member.tree.all()
    assert {rel: entry for rel, entry in mine.items() if not rel.startswith("defaults-b/")} == theirs
    assert mine["ips/ip-b"][0] == "10.0.0.2" and mine["ips/member-b"][0] == "given-by-a"
    assert mine["defaults-b/sync-limit"][0] == "0" and Path(fresh.tree.paths.mars_dir, "actual-b").is_dir()
    files = tls.TlsFiles.of(fresh.tree.paths)
    assert files.may_sign() and Path(files.ca_crt).read_bytes() == Path(member.files.ca_crt).read_bytes()
    assert member.admitted == [("b", "10.0.0.2")]


def test_join_that_fails_half_way(fresh: Admin, member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    """uuid comes last: without it the host has no cluster, and joins again with a new token."""

    def full(ctx: object, ip: str) -> None:
        raise MarsError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(cluster, "_begin_tree", full)
        assert join(fresh, member, member.token())[0] == 1
    assert fresh.tree.get("uuid") == "" and fresh.tree.get("resource-data/size") != ""
    assert join(fresh, member, member.token())[0] == 0 and fresh.tree.get("uuid") == member.tree.get("uuid")


def test_a_token_works_once(fresh: Admin, member: Member, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 9 for the second host, whose tree stays empty."""
    token = member.token()
    assert join(fresh, member, token)[0] == 0
    other = Admin(SmallTree(tmp_path / "c"), monkeypatch, host="c")
    other.control.running = False
    code, _, err = join(other, member, token)
    assert code == 9 and "already used" in err and "create-token" in err and other.tree.all() == {}


def test_join_where_nobody_answers(fresh: Admin, member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named, with what may be wrong."""
    async def unreachable(*args: object, **more: object) -> None:
        raise MarsError("a (127.0.0.1:1): Network is unreachable")

    monkeypatch.setattr("marsx.peer.join.join_cluster", unreachable)
    code, _, err = join(fresh, member, member.token())
    assert code == 1 and "Network is unreachable" in err and "marsd status" in err and "--ip-a=" in err, err
    assert fresh.tree.get("uuid") == ""


def test_token_of_another_host(fresh: Admin, member: Member) -> None:
    """The token names its host: exit 9 before anything is connected."""
    code, _, err = join(fresh, member, member.token(), name="z")
    assert code == 9 and "made on a, not on z" in err and member.admitted == []


@pytest.mark.parametrize(
    ("line", "code", "text"),
    [
        ("join-cluster a --ip=10.0.0.2 --ip-a=127.0.0.1 --token=nonsense", 9, "not a join token"),
        ("join-cluster b --ip=10.0.0.2 --token=T", 2, "is this host"),
        ("join-cluster -oProxyCommand=x --token=T", 2, "unknown option"),
        ("join-cluster -- -oProxyCommand=x --token=T", 2, "unknown option"),
        ("join-cluster a;b --ip=10.0.0.2 --token=T", 2, "cannot be the name of a host"),
        ("join-cluster no-such-host-here --ip=10.0.0.2 --token=T", 4, "--ip-no-such-host-here="),
        ("join-cluster a --ip=10.0.0.2 --ip-x=10.0.0.1 --token=T", 2, "only the address of a"),
        ("join-cluster a --ip=10.0.0.2 --ip-a=nonsense --token=T", 2, "not an IPv4 address"),
    ],
)
def test_join_refused(fresh: Admin, monkeypatch: pytest.MonkeyPatch, line: str, code: int, text: str) -> None:
    """Each with its line and status; no link, no certificate."""

    def unknown(*args: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(cluster.socket, "getaddrinfo", unknown)
    before = files_of(fresh)
    got, _, err = fresh(line)
    assert got == code and text in err and files_of(fresh) == before


def test_join_without_token_asks_ssh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the manual has it; a host name cannot become an option, and a failure says what to do by hand."""
    seen: list[list[str]] = []

    class Done:
        returncode, stdout = 0, "mars-token\n"

    def run(command: list[str], **more: object) -> Done:
        seen.append(command)
        return Done()

    monkeypatch.setattr(subprocess, "run", run)
    assert cluster.token_by_ssh("a") == "mars-token" and seen[0][-3:] == ["root@a", "marsadm", "create-token"]
    Done.returncode = 255
    with pytest.raises(AuthError) as caught:
        cluster.token_by_ssh("a")
    assert "marsadm create-token" in caught.value.hint


def test_create_token(adm: Admin) -> None:
    """The token is the only line on stdout."""
    adm.control.answers["token"] = {"token": "mars-abc"}
    assert adm("create-token") == (0, "mars-abc\n", "")
    adm.control.answers["token"] = {"token": "two\nlines"}
    assert adm("create-token")[0] == 1


def test_leave(adm: Admin) -> None:
    """Rule 26: the incarnation is out, the address is gone; only without replicas."""
    before = adm.tree.all()
    code, _, err = adm("leave-cluster")
    assert code == 3 and "still has replicas of: data" in err and adm.tree.all() == before
    adm.tree.put("resource-data/data-b", paths.DELETED)
    code, out, _ = adm("leave-cluster")
    assert code == 0 and "marsd stop" in out
    assert adm.tree.get("ips/removed-b") == "bid" and adm.tree.get("ips/ip-b") == paths.DELETED


def test_leave_for_a_dead_host(adm: Admin) -> None:
    """--host needs --force, and a host that has no replica."""
    adm.tree.cluster("a", "b", "c")
    assert adm("leave-cluster --host=a --force")[0] == 3
    assert adm("leave-cluster --host=c")[0] == 3
    assert adm("leave-cluster --host=x --force")[0] == 4
    assert adm("leave-cluster --host=c --force")[0] == 0
    assert adm.tree.get("ips/removed-c") == "cid" and adm.tree.get("ips/ip-b") == "10.0.0.2"


def test_a_new_cluster_after_the_old(fresh: Admin, member: Member) -> None:
    """What a host has left is kept aside, tree and certificates, and is no part of the new cluster."""
    assert join(fresh, member, member.token())[0] == 0
    old = fresh.tree.get("uuid")
    fresh.control.running = True
    assert fresh("leave-cluster")[0] == 0
    fresh.control.running = False
    code, out, err = fresh("create-cluster --ip=10.0.0.5")
    assert code == 0 and "is kept in" in out, err
    assert fresh.tree.get("uuid") not in ("", old) and fresh.tree.get("resource-data/size") == ""
    backup = next(Path(fresh.tree.paths.mars_dir).glob("backup-*"))
    assert str((backup / "uuid").readlink()) == old and (backup / "resource-data/size").is_symlink()
    assert list(Path(fresh.tree.paths.etc_dir).glob("tls-backup-*/ca.crt"))


def test_joining_again_is_a_new_incarnation(fresh: Admin, member: Member) -> None:
    """Rule 26: a host that comes back under its name is not the removed one."""
    member.tree.put("ips/removed-b", "given-by-a")
    assert join(fresh, member, member.token())[0] == 0
    assert fresh.tree.get("ips/member-b") not in ("", "given-by-a")
