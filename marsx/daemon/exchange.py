"""The tree travels: every host dials every other one and pushes; what it accepts from others it takes from the links
that were dialled to it.

On connect the whole tree goes out as one unit (TREE_FULL), then every change at once, in the order it was written
(TREE_BATCH with a sequence number). A line that breaks starts again with the whole tree, so nothing is ever missing
(rule 19). What may be accepted from whom is decided by `Store.merge` (rules 22, 25, 26): own facts never from others,
facts of a host from others only while no session of that host is here.

Belongs to the loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from typing import Any

from marsx.base import messages
from marsx.base.errors import MarsError
from marsx.peer import wire
from marsx.peer.link import Link
from marsx.peer.server import Peer
from marsx.peer.wire import PeerError, Reason, Type
from marsx.tree import paths
from marsx.tree.store import Entry, Store

SERVICE = "tree"
LOG = messages.get("exchange")
BATCH_MAX = 2000
RETRY_MIN, RETRY_MAX = 0.2, 5.0
HEARTBEAT_KEYS = frozenset({"alive", "time"})

Dial = Callable[[str, str], Any]  # (host, service) -> awaitable (Link, Hello)


def pack(entries: list[Entry]) -> bytes:
    return json.dumps([[e.rel, e.value, e.stamp] for e in entries], separators=(",", ":")).encode()


def unpack(body: memoryview) -> list[tuple[str, str, int]]:
    """Entries of a peer: only their form is checked here, what they mean in Store.merge."""
    found = wire.parse_json(body)
    if not isinstance(found, list):
        raise wire.WireError("tree entries are not a list")
    result = []
    for item in found:
        if not (
            isinstance(item, list)
            and len(item) == 3
            and isinstance(item[0], str)
            and isinstance(item[1], str)
            and type(item[2]) is int
        ):
            raise wire.WireError("a tree entry is not [name, value, stamp]")
        result.append((item[0], item[1], item[2]))
    return result


class Exchange:
    """See the module. `dial(host, "tree")` gives a link; `on_foreign_own(sender, entries)` hears of own facts that
    others hold (rule 22)."""

    def __init__(
        self, store: Store, dial: Dial, on_peers: Callable[[], None], on_foreign_own: Callable[[str, list[Entry]], None]
    ) -> None:
        self._store = store
        self._dial = dial
        self._on_peers = on_peers
        self._on_foreign_own = on_foreign_own
        self._tasks: dict[str, tuple[str, asyncio.Task[None]]] = {}
        self._queues: dict[str, asyncio.Queue[list[str] | None]] = {}
        self._inbound: dict[str, int] = {}
        self._from: str = ""
        self._throttle = messages.Throttle(60, time.monotonic)
        self.heard: dict[str, float] = {}  # host -> monotonic time of the last word of itself
        self.reachable: set[str] = set()  # hosts that our own link to is up
        self.states: dict[str, str] = {}  # host -> text for people
        self.latency: dict[str, float] = {}
        store.on_change(self._changed)

    # ---- whom to talk to ----

    def update_peers(self) -> None:
        """Start and stop links by the address book of the tree."""
        wanted = {}
        for rel in self._store.names("ips/ip-"):
            name = paths.parse(rel)
            if name is not None and name.host != self._store.host:
                wanted[name.host] = self._store.get(rel)
        for host in [h for h, (ip, _) in self._tasks.items() if wanted.get(h) != ip]:
            _, task = self._tasks.pop(host)
            task.cancel()
            self.states.pop(host, None)
        for host, ip in wanted.items():
            if host not in self._tasks:
                self._tasks[host] = (ip, asyncio.create_task(self._talk_to(host), name=f"tree to {host}"))

    async def close(self) -> None:
        tasks = [task for _, task in self._tasks.values()]
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- outbound ----

    async def _talk_to(self, host: str) -> None:
        pause = RETRY_MIN
        while True:
            try:
                link, _ = await self._dial(host, SERVICE)
                pause = RETRY_MIN
                try:
                    await self._push(host, link)
                finally:
                    self.reachable.discard(host)
                    self._queues.pop(host, None)
                    self._on_peers()
                    with contextlib.suppress(PeerError, OSError):
                        await link.close()
            except PeerError as err:
                self._state(host, f"NOT connected {host}: {err.text}")
            except (OSError, MarsError) as err:
                self._state(host, f"NOT connected {host}: {err}")
            await asyncio.sleep(pause)
            pause = min(pause * 2, RETRY_MAX)

    def _state(self, host: str, text: str) -> None:
        if self.states.get(host) != text:
            self.states[host] = text
            LOG.info(text)

    async def _push(self, host: str, link: Link) -> None:
        queue: asyncio.Queue[list[str] | None] = asyncio.Queue()
        self._queues[host] = queue
        seq = 0
        everything = self._store.entries()
        while True:
            part, everything = everything[:BATCH_MAX], everything[BATCH_MAX:]
            await self._send(link, Type.TREE_FULL, seq, part, more=bool(everything))
            seq += 1
            if not everything:
                break
        self.reachable.add(host)
        self._state(host, f"CONNECTED {host}")
        self._on_peers()
        acks = asyncio.create_task(self._take_acks(host, link))
        try:
            while True:
                get = asyncio.create_task(queue.get())
                await asyncio.wait({get, acks}, return_when=asyncio.FIRST_COMPLETED)
                if acks.done():
                    get.cancel()
                    acks.result()
                    raise PeerError(Reason.LOST, f"{host} ended the connection")
                rels = list(get.result() or ())
                while not queue.empty():
                    rels += queue.get_nowait() or ()
                entries = [e for rel in dict.fromkeys(rels) if (e := self._store.entry(rel)) is not None]
                if entries:
                    entries.sort(key=lambda e: (e.stamp, rels.index(e.rel)))
                    await self._send(link, Type.TREE_BATCH, seq, entries)
                    seq += 1
        finally:
            acks.cancel()
            with contextlib.suppress(asyncio.CancelledError, PeerError, OSError):
                await acks

    async def _send(self, link: Link, kind: Type, seq: int, entries: list[Entry], more: bool = False) -> None:
        await link.send(
            kind, {"seq": seq, "real_ns": time.time_ns(), "more": more, "sent": time.monotonic()}, pack(entries)
        )

    async def _take_acks(self, host: str, link: Link) -> None:
        while True:
            frame = wire.expect(await link.recv(), Type.TREE_ACK)
            sent = frame.header.get("sent")
            if isinstance(sent, float):
                self.latency[host] = max(0.0, time.monotonic() - sent)

    def _changed(self, rels: list[str]) -> None:
        """The store changed: push it on. Heartbeats of others are not passed on (N hosts would echo each other)."""
        out = []
        for rel in rels:
            name = paths.parse(rel)
            if name is None or not name.propagated:
                continue
            if name.kind == "host-actual" and name.key in HEARTBEAT_KEYS and name.host != self._store.host:
                continue
            out.append(rel)
        if out:
            for host, queue in self._queues.items():
                if host != self._from:
                    queue.put_nowait(out)
        if any(rel.startswith("ips/") for rel in rels):
            self.update_peers()

    # ---- inbound ----

    async def service(self, link: Link, peer: Peer) -> None:
        """The `tree` service of the server."""
        host = peer.host
        self._inbound[host] = self._inbound.get(host, 0) + 1
        expected = 0
        try:
            while True:
                frame = wire.expect(await link.recv(), Type.TREE_FULL, Type.TREE_BATCH)
                seq = wire.take_int(frame.header, "seq", 0, 2**62)
                if seq != expected:
                    raise wire.WireError(f"tree batch {seq} came where {expected} is due")
                expected += 1
                self._take(host, frame)
                await link.send(Type.TREE_ACK, {"seq": seq, "sent": frame.header.get("sent")})
        finally:
            self._inbound[host] -= 1
            if not self._inbound[host]:
                del self._inbound[host]

    def _take(self, host: str, frame: wire.Frame) -> None:
        real = frame.header.get("real_ns")
        self._store.lamport.peer_clock(host, real if type(real) is int else None)
        self.heard[host] = time.monotonic()
        strangers = {h for h in self._hosts() if h not in self._inbound and h != self._store.host}
        self._from = host
        try:
            merged = self._store.merge(unpack(frame.body), host, strangers)
        finally:
            self._from = ""
        for rel, why in merged.refused:
            if self._throttle.due(f"{host}/{rel}"):
                LOG.debug(f"{rel} from {host} refused: {why}")
        if merged.foreign_own:
            self._on_foreign_own(host, merged.foreign_own)

    def _hosts(self) -> set[str]:
        return {name.host for rel in self._store.names("ips/ip-") if (name := paths.parse(rel)) is not None}

    def ages(self) -> dict[str, float]:
        """host -> seconds since its last own word, on our clock (rule 25)."""
        now = time.monotonic()
        return {host: now - then for host, then in self.heard.items()}
