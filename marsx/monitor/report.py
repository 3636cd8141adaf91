"""What there is to show, as a value: cluster, resources, nodes, with the numbers worked out and the hints found.

Amounts of log are counted in bytes along the version links. Percentages are never rounded up to 100.00: that stands
only where nothing is missing. A note is (tag, text): WORK = busy, TODO = something is wrong or can be done, HINT =
somebody has to look (manual 4.3).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from marsx.base.config import Paths
from marsx.base.mounts import device_number, mounts_of
from marsx.log import chain
from marsx.tree.distance import LogMap
from marsx.tree.view import View

ALIVE_WINDOW_NS = 30 * 1_000_000_000
WORK, TODO, HINT = "WORK", "TODO", "HINT"

Note = tuple[str, str]


@dataclass(frozen=True)
class Local:
    """What was seen of this host beside the tree."""

    host: str
    program: str = ""
    kernel: str = ""
    daemon: str = ""
    """What marsd says of itself, "" when it does not run."""
    mounts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """resource -> mount points of its device"""
    devices: frozenset[str] = frozenset()
    """Resources whose device exists here."""
    disks: frozenset[str] = frozenset()
    """Resources whose data device exists here."""
    sync_limit: int = 0


@dataclass(frozen=True)
class Bar:
    """How far something is: `done` of `total`."""

    done: int
    total: int

    @property
    def percent(self) -> str:
        """Two digits, 100.00 only at the end."""
        if self.done >= self.total:
            return "100.00"
        return f"{min(99.99, 100 * self.done / self.total):.2f}"


@dataclass(frozen=True)
class Verified:
    """The last verify of a replica. `state`: running, equal, differs, repaired, stopped or failed."""

    state: str
    source: str
    done: int
    differs: int
    repaired: int
    age_s: int


@dataclass(frozen=True)
class Node:
    """One host's part in a resource."""

    host: str
    ip: str
    local: bool
    joined: bool
    primary: bool = False
    alive: bool = False
    silent_s: int = -1
    disk: str = ""
    device: str = ""
    size: int = 0
    actual_size: int = 0
    sync: Bar = Bar(0, 0)
    sync_rate: int = 0
    sync_running: bool = False
    log: int = 0
    fetched: int = 0
    fetch_rate: int = 0
    fetch_rest: int = 0
    replay: Bar = Bar(0, 0)
    replay_log: int = 0
    replayed: int = 0
    replay_rate: int = 0
    replay_running: bool = False
    device_on: bool = False
    attached: bool = False
    fetching: bool = False
    consistent: bool = False
    verified: Verified | None = None
    switches: dict[str, bool] = field(default_factory=dict)
    device_notes: tuple[Note, ...] = ()
    sync_notes: tuple[Note, ...] = ()
    fetch_notes: tuple[Note, ...] = ()
    replay_notes: tuple[Note, ...] = ()
    verify_notes: tuple[Note, ...] = ()
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class LinkLine:
    """One host's version link in the history."""

    host: str
    producer: str
    digest: str
    size: int
    replay: str
    """"waiting", "incomplete" or "done"."""


@dataclass(frozen=True)
class VersionBlock:
    """All hosts' version links of one log number."""

    nr: int
    links: tuple[LinkLine, ...]
    in_use: bool
    members: int


@dataclass(frozen=True)
class Resource:
    """One resource."""

    name: str
    size: int
    primary: str
    nodes: tuple[Node, ...]
    notes: tuple[Note, ...] = ()
    history: tuple[VersionBlock, ...] = ()


@dataclass(frozen=True)
class Report:
    """All that is shown."""

    host: str
    program: str
    kernel: str
    daemon: str
    uuid: str
    only: str
    emergency: int
    full: tuple[tuple[str, int, int], ...]
    """Hosts short of space: (host, level, GiB left)."""
    silent: tuple[str, ...]
    sync_limit: int
    resources: tuple[Resource, ...]


def build(view: View, local: Local, now_ns: int, only: str = "") -> Report:
    """The report of one picture of the tree."""
    names = [name for name in view.resources if not only or name == only]
    return Report(
        host=local.host,
        program=local.program,
        kernel=local.kernel,
        daemon=local.daemon,
        uuid=view.uuid,
        only=only,
        emergency=view.emergency(local.host),
        full=tuple((host, view.emergency(host), view.rest_space(host)) for host in view.hosts if view.emergency(host)),
        silent=tuple(host for host in view.hosts if not _alive(view, local, host, now_ns)),
        sync_limit=local.sync_limit or view.sync_limit(local.host),
        resources=tuple(_Builder(view, local, now_ns, name).resource() for name in names),
    )


def _alive(view: View, local: Local, host: str, now_ns: int) -> bool:
    return bool(local.daemon) if host == local.host else view.alive(host, now_ns, ALIVE_WINDOW_NS)


class _Builder:
    """One resource out of one picture."""

    def __init__(self, view: View, local: Local, now_ns: int, name: str) -> None:
        self.view, self.local, self.now_ns, self.name = view, local, now_ns, name
        self.members = view.members(name)
        self.histories = chain.histories(view.version_texts(name), self.members)
        self.logs = LogMap(view, name)
        self.newest = self.logs.newest

    def resource(self) -> Resource:
        """This host's node first, then the others."""
        here = self.local.host
        order = [here, *(host for host in self.members if host != here)]
        return Resource(
            name=self.name,
            size=self.view.size(self.name),
            primary=self.view.designated(self.name),
            nodes=tuple(self._node(host) for host in order),
            notes=tuple(self._resource_notes()),
            history=tuple(self._history()),
        )

    def _is(self, host: str, key: str) -> bool:
        return self.view.actual(self.name, host, key) == "1"

    def _rate(self, host: str, key: str) -> int:
        text = self.view.actual(self.name, host, f"amount-{key}_rate")
        return int(text) * 1024 if text.isdigit() else 0

    def _node(self, host: str) -> Node:
        view, name = self.view, self.name
        local = host == self.local.host
        ip = view.ips.get(host, "")
        if host not in self.members:
            return Node(host, ip, local, joined=False)
        age = view.alive_age(host, self.now_ns)
        replay, fetched = view.replay(name, host), self.logs.fetched(host)
        replayed = replay.pos if replay else None
        todo = self.logs.distance(replayed, self.newest)
        done = replayed.pos if replayed else 0
        running = {"sync": self._is(host, "is-syncing"), "replay": self._is(host, "is-replaying")}
        node = Node(
            host, ip, local, joined=True,
            primary=host == view.designated(name) or self._is(host, "is-primary"),
            alive=_alive(view, self.local, host, self.now_ns),
            silent_s=-1 if age is None else age // 10**9,
            disk=view.data(name, host), device=view.device(name, host) or name,
            size=view.size(name), actual_size=view.actsize(name, host),
            sync=Bar(min(view.syncstatus(name, host), view.size(name)), view.size(name)),
            sync_rate=self._rate(host, "sync"), sync_running=running["sync"],
            log=fetched.nr if fetched else 0, fetched=fetched.pos if fetched else 0,
            fetch_rate=self._rate(host, "file"), fetch_rest=self.logs.fetch_rest(host),
            replay=Bar(done, done + todo), replay_log=replayed.nr if replayed else 0, replayed=done,
            replay_rate=self._rate(host, "replay"), replay_running=running["replay"],
            device_on=self._is(host, "is-primary"), attached=self._is(host, "is-attached"),
            fetching=self._is(host, "is-copying"), consistent=view.consistent(name, host),
            verified=self._verified(host),
            switches={key: view.todo(name, host, key) for key in ("attach", "connect", "sync", "allow-replay")},
        )  # fmt: skip
        return self._with_notes(node)

    def _with_notes(self, node: Node) -> Node:
        from dataclasses import replace

        return replace(
            node,
            device_notes=tuple(self._device_notes(node)),
            sync_notes=tuple(self._sync_notes(node)),
            fetch_notes=tuple(self._fetch_notes(node)),
            replay_notes=tuple(self._replay_notes(node)),
            verify_notes=tuple(self._verify_notes(node)),
            notes=tuple(self._messages(node.host)),
        )

    def _device_notes(self, node: Node) -> Iterator[Note]:
        designated = self.view.designated(self.name) == node.host
        if node.local and node.disk and self.name not in self.local.disks:
            yield TODO, f"{node.disk} is not there"
        if node.local and node.device_on:
            mounts = self.local.mounts.get(self.name, ())
            yield from ((WORK, f"mounted as {mount}") for mount in mounts)
            if not mounts and not self.view.open_count(self.name, node.host):
                yield TODO, "enable to mount"
        elif node.local and self.name in self.local.devices:
            yield HINT, "Mars-Device on Secondary available"
        if designated and not node.device_on:
            yield WORK, "the Mars-Device is not there yet"
        if not designated and node.device_on:
            yield HINT, "Primary against the wish: the role is given up when the device is no longer used"
        if node.actual_size // 4096 > node.size // 4096:
            yield HINT, f"resize is possible ({node.size} < {node.actual_size})"
        elif node.actual_size and node.actual_size < node.size:
            yield TODO, f"Disk-Device is too small ({node.actual_size} < {node.size})"

    def _sync_notes(self, node: Node) -> Iterator[Note]:
        if node.sync.done < node.sync.total:
            state = f"({node.sync.percent}% < 100.00%)"
            if node.sync_running:
                source = self.view.designated(self.name)
                yield WORK, f"Sync in progress = {state}" + (f", transferred from {source}" if source else "")
            elif not node.switches["sync"] or not node.switches["attach"]:
                yield HINT, f"Sync is paused = {state}"
            else:
                yield WORK, f"Sync waits = {state}"
        elif not node.consistent:
            yield WORK, "Sync is done, consistent when replay has passed its end"

    def _fetch_notes(self, node: Node) -> Iterator[Note]:
        if not node.log:
            yield WORK, "Logfile wait for starting ..."
        elif node.fetch_rest and self.newest and node.log != self.newest.nr:
            yield HINT, f"Logfile Version not actual = (log-{node.log:09d} ! log-{self.newest.nr:09d})"

    def _replay_notes(self, node: Node) -> Iterator[Note]:
        rest = node.replay.total - node.replay.done
        if not rest:
            return
        state = f"({node.replay.percent}% < 100.00%)"
        if not node.device_on and not (node.switches["allow-replay"] and node.switches["attach"]):
            yield HINT, f"Replay is paused = {state}"
        else:
            yield WORK, f"Replay in progress = {state}"
            if not node.device_on and self.newest and node.replay_log != self.newest.nr:
                yield WORK, f"Replay now log-{node.replay_log:09d}"

    def _verified(self, host: str) -> Verified | None:
        facts = {key: self.view.actual(self.name, host, f"verify-{key}")
                 for key in ("state", "source", "pos", "differs", "repaired", "time")}
        if not facts["state"]:
            return None
        done, differs, repaired = (int(facts[key] or 0) for key in ("pos", "differs", "repaired"))
        age = self.now_ns // 10**9 - int(facts["time"].partition(".")[0] or 0)
        return Verified(facts["state"], facts["source"], done, differs, repaired, max(0, age))

    def _verify_notes(self, node: Node) -> Iterator[Note]:
        found = node.verified
        if found is None:
            return
        left = found.differs - found.repaired
        if found.state == "running":
            yield WORK, f"Verify against {found.source} in progress"
        elif found.state in ("stopped", "failed"):
            yield HINT, f"Verify against {found.source} did not come to its end"
        if left:
            heal = f"marsadm verify {self.name} --host={node.host} --repair"
            yield TODO, f"{left} bytes differ from {found.source}: {heal}"

    def _messages(self, host: str) -> Iterator[Note]:
        tags = {"err": TODO, "wrn": HINT, "inf": WORK}
        for key, text in self.view.messages(self.name, host).items():
            yield tags.get(key.partition("-")[0], HINT), f"{key}: {text}"

    def _resource_notes(self) -> Iterator[Note]:
        split = chain.split_brain(self.histories)
        if split:
            yield TODO, f"SPLIT BRAIN: {split}"
        primaries = self.view.actual_primaries(self.name)
        if len(primaries) > 1:
            yield TODO, f"more than one Primary: {', '.join(primaries)}"
        if not self.view.designated(self.name):
            yield HINT, "nobody is designated as Primary"

    def _history(self) -> Iterator[VersionBlock]:
        numbers = sorted({nr for links in self.histories.values() for nr in links})
        used = {replay.pos.nr for host in self.members if (replay := self.view.replay(self.name, host))}
        for nr in numbers:
            lines = tuple(self._link(host, nr) for host in self.members if nr in self.histories[host])
            yield VersionBlock(nr, lines, nr in used, len(self.members))

    def _link(self, host: str, nr: int) -> LinkLine:
        end = self.histories[host][nr].end
        replay = self.view.replay(self.name, host)
        done = replay is not None and (replay.pos.nr > nr or (replay.pos.nr == nr and replay.pos.pos >= end.at.pos))
        waiting = replay is None or replay.pos.nr < nr or replay.pos.pos == 0
        return LinkLine(
            host, end.at.producer, end.digest, end.at.pos, "done" if done else "waiting" if waiting else "incomplete"
        )


def look(view: View, paths: Paths, host: str, **known: str | int) -> Local:
    """What can be seen of this host: devices, mounts."""
    numbers = {name: device_number(f"{paths.dev_dir}/{view.device(name, host) or name}") for name in view.resources}
    mounts = mounts_of({number for number in numbers.values() if number})
    points = {number: tuple(mount.point for mount in found) for number, found in mounts.items()}
    return Local(
        host=host,
        mounts={name: points[number] for name, number in numbers.items() if number in points},
        devices=frozenset(name for name, number in numbers.items() if number),
        disks=frozenset(name for name in view.resources if os.path.exists(view.data(name, host) or "/nonexistent")),
        **known,  # type: ignore[arg-type]
    )
