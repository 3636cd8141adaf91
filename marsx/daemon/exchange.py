"""The tree travels: every host dials every other one and pushes; what it accepts from others it takes from the links
that were dialled to it.

On connect the whole tree goes out as one unit (TREE_FULL), then every change at once, in the order it was written
(TREE_BATCH with a sequence number). A line that breaks starts again with the whole tree, so nothing is ever missing
(rule 19). What may be accepted from whom is decided by `Store.merge` (rules 22, 25, 26).

Invariants
    a unit is merged as a whole, however many frames it needs: listeners never see a part of it (rule 19)
    every link carries all changes that its sender accepted or made, in order, except those the receiver sent itself;
        the receiver's own newer entries go back to it
    what others say about a host with a session here waits until that session ends; so a session that dies with words
        in flight loses none that anybody has heard, and facts of a host stay in its own order (rule 19)

Belongs to the loop's thread.
"""
from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Any

from marsx.base import messages
from marsx.base.errors import MarsError
from marsx.base.tasks import ended
from marsx.peer import wire
from marsx.peer.link import Link
from marsx.peer.server import Peer
from marsx.peer.wire import PeerError, Reason, Type
from marsx.tree import paths
from marsx.tree.store import Entry, Store, order

SERVICE = "tree"
LOG = messages.get("exchange")
BATCH_MAX = 2000  # entries in a frame
BODY_MAX = 4 << 20
UNIT_MAX = 1_000_000  # entries in a unit
HELD_MAX = 100_000  # entries about one host that wait for the end of its session
RETRY_MIN, RETRY_MAX = 0.2, 5.0
TAKEN_STEP_S = 0.01
HEARTBEAT_KEYS = frozenset({"alive", "time"})

Dial = Callable[[str, str], Any]  # (host, service) -> awaitable (Link, Hello)


def pack(entries: Iterable[Entry]) -> Iterator[tuple[bytes, bool]]:
    """A unit as bodies of frames: (body, more to come)."""
    part: list[bytes] = []
    size = 0
    for entry in entries:
        text = json.dumps(entry, separators=(",", ":")).encode()
        if part and (len(part) == BATCH_MAX or size + len(text) > BODY_MAX):
            yield b"[%b]" % b",".join(part), True
            part, size = [], 0
        part.append(text)
        size += len(text) + 1
    yield b"[%b]" % b",".join(part), False


def unpack(body: memoryview | bytes) -> list[Entry]:
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
        result.append(Entry(*item))
    return result


class Intake:
    """What is taken of what others say. `on_foreign_own(sender, entries)` hears of own facts that others hold
    (rule 22); `sessions`: hosts that speak to us now (host -> links)."""

    def __init__(self, store: Store, on_foreign_own: Callable[[str, list[Entry]], None]) -> None:
        self._store = store
        self._on_foreign_own = on_foreign_own
        self._throttle = messages.Throttle(60, time.monotonic)
        self._held: dict[str, dict[str, tuple[Entry, str]]] = {}  # about whom -> name -> (entry, who said it)
        self._merging: dict[str, Entry] = {}
        self._sender = ""
        self._hosts: set[str] | None = None  # of the tree; None: to be looked up
        self.sessions: Counter[str] = Counter()
        store.on_change(self._look)

    def begin(self, host: str) -> None:
        """A session of `host` is here."""
        self.sessions[host] += 1

    def end(self, host: str) -> None:
        """A session of `host` has ended. With the last one its clock counts no more (rule 25), and others are believed
        about it: also what they have said meanwhile."""
        self.sessions[host] -= 1
        if self.sessions[host] > 0:
            return
        del self.sessions[host]
        self._store.lamport.peer_clock(host, None)
        held = sorted(self._held.pop(host, {}).values(), key=lambda item: (item[0].stamp, item[0].rel))
        for sender, items in groupby(held, key=lambda item: item[1]):
            self._merge(sender, [entry for entry, _ in items])

    def take(self, sender: str, entries: list[Entry]) -> None:
        """One unit of `sender`."""
        now = []
        for entry in entries:
            about = _fact_about(entry.rel)
            if about == sender:
                self._held.get(about, {}).pop(entry.rel, None)
            if about in self.sessions and about not in (sender, self._store.host):
                self._hold(about, entry, sender)
            else:
                now.append(entry)
        self._merge(sender, now)

    def is_echo(self, host: str, rel: str) -> bool:
        """Does `host` know this entry because it is saying it just now?"""
        return host == self._sender and self._merging.get(rel) == self._store.entry(rel)

    def _hold(self, about: str, entry: Entry, sender: str) -> None:
        held = self._held.setdefault(about, {})
        older = held.get(entry.rel, (None, ""))[0]
        if max(order(older), order(self._store.entry(entry.rel))) < order(entry):
            if len(held) < HELD_MAX or older is not None:
                held[entry.rel] = (entry, sender)

    def _merge(self, sender: str, entries: list[Entry]) -> None:
        self._sender, self._merging = sender, {entry.rel: entry for entry in entries}
        try:
            merged = self._store.merge(entries, sender, self._strangers())
        finally:
            self._sender, self._merging = "", {}
        for rel, why in merged.refused:
            if self._throttle.due(f"{sender}/{rel}"):
                LOG.debug("%s from %s refused: %s", rel, sender, why)
        if merged.foreign_own:
            self._on_foreign_own(sender, merged.foreign_own)

    def _strangers(self) -> set[str]:
        if self._hosts is None:
            names = map(paths.parse, self._store.names("ips/ip-"))
            self._hosts = {name.host for name in names if name is not None}
        return self._hosts - {self._store.host} - set(self.sessions)

    def _look(self, rels: list[str]) -> None:
        if any(rel.startswith("ips/") for rel in rels):
            self._hosts = None


def _fact_about(rel: str) -> str:
    name = paths.parse(rel)
    return name.host if name is not None and name.writer == "fact" else ""


class Exchange:
    """See the module. `dial(host, "tree")` gives a link; `on_foreign_own` see Intake."""

    def __init__(
        self, store: Store, dial: Dial, on_peers: Callable[[], None], on_foreign_own: Callable[[str, list[Entry]], None]
    ) -> None:
        self._store = store
        self._dial = dial
        self._on_peers = on_peers
        self._intake = Intake(store, on_foreign_own)
        self._tasks: dict[str, tuple[str, asyncio.Task[None]]] = {}
        self._queues: dict[str, asyncio.Queue[list[str]]] = {}
        self.heard: dict[str, float] = {}  # host -> monotonic time of the last word of itself
        self.reachable: set[str] = set()  # hosts that our own link to is up
        self.answered: set[str] = set()  # hosts that have told all they know, or did not answer our first call
        self.incarnations: dict[str, str] = {}  # host -> of who answers at its address, while our link to it is up
        self.guests: dict[str, dict[int, tuple[Peer, Link]]] = {}  # host -> its sessions here
        self.on_real: Callable[[str, str], None] = lambda host, incarnation: None
        self._calls: dict[str, asyncio.Event] = {}
        self.states: dict[str, str] = {}  # host -> text for people
        self.errors: dict[str, Exception] = {}  # host -> why our own link to it is not up
        self.latency: dict[str, float] = {}
        self.acked: dict[str, float] = {}  # host -> when the newest unit that it has taken was sent, on this link
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
            self.errors.pop(host, None)
        for host, ip in wanted.items():
            if host not in self._tasks:
                self._tasks[host] = (ip, asyncio.create_task(self._talk_to(host), name=f"tree to {host}"))

    async def taken(self, since: float, patience: float) -> None:
        """Returns when every host that our link to is up has acknowledged a unit that was sent after `since` (monotonic
        time), or after so many seconds."""
        end = time.monotonic() + patience
        while any(self.acked.get(host, 0.0) < since for host in self.reachable) and time.monotonic() < end:
            await asyncio.sleep(TAKEN_STEP_S)

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
                link, hello = await self._dial(host, SERVICE)
                pause = RETRY_MIN
                if hello is not None:
                    self.incarnations[host] = hello.incarnation
                    self.on_real(host, hello.incarnation)
                queue: asyncio.Queue[list[str]] = asyncio.Queue()
                try:
                    await self._push(host, link, queue)
                finally:
                    self._hang_up(host, queue)
                    with contextlib.suppress(PeerError, OSError):
                        await link.close()
            except PeerError as err:
                self.errors[host] = err
                self._state(host, f"NOT connected {host}: {err.text}")
            except (OSError, MarsError) as err:
                self.errors[host] = err
                self._state(host, f"NOT connected {host}: {err}")
            except Exception as err:
                self.errors[host] = err
                LOG.exception("the link to %s failed", host)
                self._state(host, f"NOT connected {host}: unexpected error: {err!r}")
            self._answered(host)
            called = self._calls.setdefault(host, asyncio.Event())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await called.wait()
            called.clear()
            pause = min(pause * 2, RETRY_MAX)

    def _answered(self, host: str) -> None:
        if host not in self.answered:
            self.answered.add(host)
            self._on_peers()

    def _hang_up(self, host: str, queue: asyncio.Queue[list[str]]) -> None:
        """This link is over; a link to another address of the host may be up already."""
        if self._queues.get(host) is queue:
            del self._queues[host]
            self.acked.pop(host, None)
            self.incarnations.pop(host, None)
            self.reachable.discard(host)
            self._on_peers()

    def _state(self, host: str, text: str) -> None:
        if self.states.get(host) != text:
            self.states[host] = text
            LOG.info(text)

    async def _push(self, host: str, link: Link, queue: asyncio.Queue[list[str]]) -> None:
        self._queues[host] = queue
        acks = asyncio.create_task(self._take_acks(host, link))
        try:
            seq = await self._send(link, Type.TREE_FULL, 0, self._store.entries())
            self.reachable.add(host)
            self.errors.pop(host, None)
            self._state(host, f"CONNECTED {host}")
            self._on_peers()
            while True:
                rels = await self._next_changes(host, queue, acks)
                found = [e for rel in dict.fromkeys(rels) if (e := self._store.entry(rel)) is not None]
                if found:
                    found.sort(key=lambda entry: entry.stamp)
                    seq = await self._send(link, Type.TREE_BATCH, seq, found)
        finally:
            await ended([acks])

    async def _next_changes(self, host: str, queue: asyncio.Queue[list[str]], acks: asyncio.Task[None]) -> list[str]:
        """Names of all that has changed since; at least one."""
        get = asyncio.create_task(queue.get())
        try:
            await asyncio.wait({get, acks}, return_when=asyncio.FIRST_COMPLETED)
            if acks.done():
                acks.result()
                raise PeerError(Reason.LOST, f"{host} ended the connection")
            rels = list(get.result())
        finally:
            get.cancel()
        while not queue.empty():
            rels += queue.get_nowait()
        return rels

    async def _send(self, link: Link, kind: Type, seq: int, entries: list[Entry]) -> int:
        """One unit; the sequence number of the next one's first frame."""
        for body, more in pack(entries):
            header = {"seq": seq, "real_ns": time.time_ns(), "more": more, "sent": time.monotonic()}
            await link.send(kind, header, body)
            seq += 1
        return seq

    async def _take_acks(self, host: str, link: Link) -> None:
        while True:
            frame = wire.expect(await link.recv(), Type.TREE_ACK)
            sent = frame.header.get("sent")
            if isinstance(sent, float):
                self.latency[host] = max(0.0, time.monotonic() - sent)
                self.acked[host] = sent

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
        for host, queue in self._queues.items():
            if news := [rel for rel in out if not self._intake.is_echo(host, rel)]:
                queue.put_nowait(news)
        if any(rel.startswith("ips/") for rel in rels):
            self.update_peers()

    # ---- inbound ----

    async def service(self, link: Link, peer: Peer) -> None:
        """The `tree` service of the server."""
        host, expected = peer.host, 0
        unit: list[Entry] = []
        self._intake.begin(host)
        self.guests.setdefault(host, {})[id(link)] = peer, link
        self._calls.setdefault(host, asyncio.Event()).set()  # it is up: no need to wait before we call
        try:
            while True:
                frame = wire.expect(await link.recv(), Type.TREE_FULL, Type.TREE_BATCH)
                seq = wire.take_int(frame.header, "seq", 0, 2**62)
                if seq != expected:
                    raise wire.WireError(f"tree batch {seq} came where {expected} is due")
                expected += 1
                unit += unpack(frame.body)
                self._heard(host, frame)
                if len(unit) > UNIT_MAX:
                    raise wire.WireError(f"more than {UNIT_MAX} tree entries in one unit")
                if frame.header.get("more") is not True:
                    self._intake.take(host, unit)
                    unit = []
                    self._answered(host)
                await link.send(Type.TREE_ACK, {"seq": seq, "sent": frame.header.get("sent")})
        finally:
            del self.guests[host][id(link)]
            self._intake.end(host)

    def _heard(self, host: str, frame: wire.Frame) -> None:
        real = frame.header.get("real_ns")
        self._store.lamport.peer_clock(host, real if type(real) is int else None)
        self.heard[host] = time.monotonic()

    def ages(self) -> dict[str, float]:
        """host -> seconds since its last own word, on our clock (rule 25)."""
        now = time.monotonic()
        return {host: now - then for host, then in self.heard.items()}
