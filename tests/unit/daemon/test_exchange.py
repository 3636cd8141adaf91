"""The tree between hosts: real Exchanges over lines in memory, which count and can be cut at any frame."""
from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from marsx.base.config import Paths
from marsx.base.lamport import Lamport
from marsx.daemon import exchange as exchange_module
from marsx.daemon.exchange import Exchange, Intake, pack, unpack
from marsx.peer import wire
from marsx.peer.server import Peer
from marsx.peer.wire import Frame, PeerError, Reason, Type
from marsx.tree import paths
from marsx.tree.store import Entry, Store


class End:
    """One end of a line: the part of `peer.link.Link` that the exchange uses."""

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[Frame | None] = asyncio.Queue()
        self.other: End
        self.sent: list[tuple[Type, int, int]] = []  # (type, sequence number, entries)
        self.cut_after: int | None = None
        self.closed = ""

    async def send(self, kind: Type, header: dict[str, Any], body: bytes = b"") -> None:
        if self.closed or self.other.closed:
            raise PeerError(Reason.LOST, "the line is down")
        self.sent.append((kind, header["seq"], len(json.loads(body)) if body else 0))
        self.other.inbox.put_nowait(Frame(kind, json.loads(json.dumps(header)), memoryview(body)))
        await asyncio.sleep(0)
        if self.cut_after is not None and len(self.sent) >= self.cut_after:
            self.end("cut")
            raise PeerError(Reason.LOST, "cut")

    async def recv(self) -> Frame:
        frame = await self.inbox.get()
        if frame is None:
            raise PeerError(Reason.LOST, "the line is down")
        return frame

    def end(self, why: str) -> None:
        for one in (self, self.other):
            one.closed = one.closed or why
            one.inbox.put_nowait(None)

    async def close(self) -> None:
        self.end("closed")


def line() -> tuple[End, End]:
    left, right = End(), End()
    left.other, right.other = right, left
    return left, right


class Net:
    """Hosts with their stores and exchanges."""

    def __init__(self, root: str, names: str, *, meet: bool = True) -> None:
        self.down: set[tuple[str, str]] = set()
        self.ends: dict[tuple[str, str], list[End]] = {}
        self.sessions: list[asyncio.Task[None]] = []
        self.errors: list[PeerError] = []
        self.foreign: list[tuple[str, str, Entry]] = []
        self.stores: dict[str, Store] = {}
        self.hosts: dict[str, Exchange] = {}
        self.cut_after: int | None = None
        for name in names:
            store = Store(Paths(mars_dir=f"{root}/{name}"), name, Lamport())
            import os
            os.makedirs(store.root)
            store.load()
            self.stores[name] = store
            if meet:
                store.put_many([(paths.ip(other), f"10.0.0.{ord(other)}") for other in names])
            self.hosts[name] = Exchange(store, self._dialer(name), lambda: None, self._foreign(name))

    def _foreign(self, me: str) -> Callable[[str, list[Entry]], None]:
        return lambda sender, entries: self.foreign.extend((me, sender, entry) for entry in entries)

    def _dialer(self, me: str) -> Callable[[str, str], Coroutine[Any, Any, tuple[End, None]]]:
        async def dial(host: str, service: str) -> tuple[End, None]:
            assert service == "tree"
            if (me, host) in self.down:
                raise PeerError(Reason.REFUSED, f"{host}: nobody listens there")
            near, far = line()
            near.cut_after, self.cut_after = self.cut_after, None
            self.ends.setdefault((me, host), []).append(near)
            self.sessions.append(asyncio.create_task(self._serve(me, host, far)))
            return near, None
        return dial

    async def _serve(self, me: str, host: str, far: End) -> None:
        try:
            await self.hosts[host].service(far, Peer(me, "", (), "", True))  # type: ignore[arg-type]
        except PeerError as err:
            self.errors.append(err)
        finally:
            far.end("closed")

    def cut(self, a: str, b: str) -> None:
        """The line from a to b, for good."""
        self.down.add((a, b))
        for end in self.ends.get((a, b), []):
            end.end("cut")

    def frames(self, kind: Type = Type.TREE_BATCH) -> int:
        return sum(one[0] is kind for ends in self.ends.values() for end in ends for one in end.sent)

    def tree(self, host: str) -> dict[str, str]:
        return {rel: self.stores[host].get(rel) for rel in self.stores[host].names()}

    async def close(self) -> None:
        for one in self.hosts.values():
            await one.close()
        for task in self.sessions:
            task.cancel()
        await asyncio.gather(*self.sessions, return_exceptions=True)
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert not left, f"left running: {left}"


async def quiet() -> None:
    """All that was said has been heard."""
    for _ in range(300):
        await asyncio.sleep(0)


Work = Callable[[Net], Coroutine[Any, Any, Any]]


@pytest.fixture
def play(tmp_path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """play("ab", work): hosts a and b, connected, then `work(net)`."""
    monkeypatch.setattr(exchange_module, "RETRY_MIN", 0.001)

    def run(names: str, work: Work, start: str | None = None, **more: Any) -> Any:
        async def main() -> Any:
            net = Net(str(tmp_path), names, **more)
            try:
                for name in names if start is None else start:
                    net.hosts[name].update_peers()
                await quiet()
                return await asyncio.wait_for(work(net), 60)
            finally:
                await net.close()
        return asyncio.run(main())
    return run


def fact(host: str, pos: int = 0) -> tuple[str, str]:
    return paths.replay("r", host), f"log-000000001-a,{pos},0"


def test_everything_on_connect(play) -> None:
    """What was written before the line was there arrives with it, also what is deleted."""
    async def work(net: Net) -> None:
        net.cut("a", "b")
        a = net.stores["a"]
        a.put_many([fact("a", 4096), (paths.size("r"), "4096"), (paths.maxnr("r"), "7")])
        a.delete(paths.maxnr("r"))
        await quiet()
        assert net.stores["b"].get(paths.size("r")) == ""
        net.down.clear()
        while net.tree("a") != net.tree("b"):
            await asyncio.sleep(0.001)
        assert net.stores["b"].entry(paths.maxnr("r")).value == ".deleted"
        assert net.hosts["a"].reachable == {"b"} and net.hosts["b"].heard.keys() == {"a"}
    play("ab", work)


def test_changes_come_in_order_and_as_units(play) -> None:
    """Rule 19: each listener call on b shows a state that a really had."""
    async def work(net: Net) -> list[tuple[str, str]]:
        seen: list[tuple[str, str]] = []
        b = net.stores["b"]
        b.on_change(lambda rels: seen.append((b.get(fact("a")[0]), b.get(paths.syncstatus("r", "a")))))
        for pos in range(0, 20 * 4096, 4096):
            net.stores["a"].put_many([fact("a", pos), (paths.syncstatus("r", "a"), str(pos))])
            if pos % 3 == 0:
                await asyncio.sleep(0)
        await quiet()
        return seen
    seen = play("ab", work)
    assert seen and all(f"log-000000001-a,{status},0" == replay for replay, status in seen)
    order = [int(status) for _, status in seen]
    assert order == sorted(order) and order[-1] == 19 * 4096


def test_a_batch_collapses(play) -> None:
    """While a frame is under way, only the newest value of each name waits."""
    async def work(net: Net) -> int:
        before = net.frames()
        for pos in range(0, 1000 * 4096, 4096):
            net.stores["a"].put_many([fact("a", pos)])
        await quiet()
        assert net.stores["b"].get(fact("a")[0]) == fact("a", 999 * 4096)[1]
        return net.frames() - before
    assert play("ab", work) <= 3


def test_taken_means_that_the_others_have_it(play) -> None:
    """Whoever is connected has what was written before; who is cut off, or takes nothing, is not waited for in vain."""
    async def work(net: Net) -> None:
        a, now = net.hosts["a"], asyncio.get_running_loop().time
        began = now()
        net.stores["a"].put(*fact("a", 4096))
        await a.taken(began, 20)
        assert [net.stores[host].get(fact("a")[0]) for host in "bc"] == [fact("a", 4096)[1]] * 2
        net.cut("a", "c")
        await quiet()
        began = now()
        net.stores["a"].put(*fact("a", 8192))
        await a.taken(began, 20)
        assert net.stores["b"].get(fact("a")[0]) == fact("a", 8192)[1]
        await a.taken(now() + 1000, 0.05)
    play("abc", work)


@pytest.mark.parametrize(("seqs", "error"), [((0, 2), "2 came where 1"), ((0, 1, 1), "1 came where 2"),
                                             ((1,), "1 came where 0"), ((0, -1), "seq"), ((0, True), "seq")])
def test_a_gap_is_refused(play, seqs: tuple[int, ...], error: str) -> None:
    """Rule 19: a batch that does not follow ends the line (and a new line begins with everything)."""
    async def work(net: Net) -> str:
        near, far = line()
        net.sessions.append(asyncio.create_task(net._serve("c", "a", far)))
        for seq in seqs:
            body = json.dumps([[*fact("c", 4096 * (seq + 2)), 1000 + seq]]).encode()
            near.other.inbox.put_nowait(Frame(Type.TREE_BATCH, {"seq": seq}, memoryview(body)))
        await quiet()
        return net.errors[0].text
    assert error in play("ab", work)


@pytest.mark.parametrize("body", [b"{}", b"[1]", b'[["a","b"]]', b'[["a","b","c"]]', b'[["a",1,2]]', b"[", b"\xff",
                                  b'[["a","b",true]]'])
def test_garbage_ends_the_line(play, body: bytes) -> None:
    """A body that is no list of entries."""
    async def work(net: Net) -> bool:
        near, far = line()
        net.sessions.append(asyncio.create_task(net._serve("b", "a", far)))
        near.other.inbox.put_nowait(Frame(Type.TREE_FULL, {"seq": 0}, memoryview(body)))
        await quiet()
        return bool(net.errors) and isinstance(net.errors[0], wire.WireError)
    assert play("ab", work)


def test_a_unit_of_many_frames_is_seen_as_one(play, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 19: a full exchange that needs many frames is merged when its last frame is here; a line that breaks before
    leaves nothing of it."""
    monkeypatch.setattr(exchange_module, "BATCH_MAX", 50)
    many = [(paths.userspace(f"key{i}", "r"), str(i)) for i in range(1000)]

    async def work(net: Net) -> None:
        seen: list[int] = []
        b = net.stores["b"]
        b.on_change(lambda rels: seen.append(len(b.names("resource-r/userspace"))))
        net.stores["a"].put_many(many)
        net.cut_after = 7
        net.hosts["a"].update_peers()
        while len(net.ends.get(("a", "b"), [])) < 2:
            assert b.names("resource-r/userspace") == []
            await asyncio.sleep(0)
        while len(b.names("resource-r/userspace")) < 1000:
            await asyncio.sleep(0)
        assert set(seen) == {1000}
        assert sum(kind is Type.TREE_FULL for kind, *_ in net.ends["a", "b"][1].sent) >= 20
    play("ab", work, start="")


def test_many_changes_at_once(play, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of more than BATCH_MAX entries goes out in several frames, and is seen as one."""
    async def work(net: Net) -> list[int]:
        seen: list[int] = []
        b = net.stores["b"]
        b.on_change(lambda rels: seen.append(len(rels)))
        net.stores["a"].put_many([(paths.userspace(f"key{i}", "r"), "x" * 500) for i in range(5000)])
        while not seen:
            await asyncio.sleep(0.001)
        sizes = [count for kind, _, count in net.ends["a", "b"][0].sent if kind is Type.TREE_BATCH]
        assert sum(sizes) == 5000 and max(sizes) <= exchange_module.BATCH_MAX
        return seen
    assert play("ab", work) == [5000]


def test_frames_are_bounded_by_bytes() -> None:
    """The longest values fit as well; what is packed is what is unpacked."""
    entries = [Entry(f"userspace/key{i}", "\x01\u20ac" * 250, i) for i in range(3000)]
    parts = list(pack(entries))
    assert len(parts) > 2 and max(len(body) for body, _ in parts) <= exchange_module.BODY_MAX + 3
    assert [more for _, more in parts] == [True] * (len(parts) - 1) + [False]
    assert [entry for body, _ in parts for entry in unpack(body)] == entries
    assert list(pack([])) == [(b"[]", False)]


def test_an_endless_unit_is_refused(play, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer cannot fill our memory with a unit that never ends."""
    monkeypatch.setattr(exchange_module, "UNIT_MAX", 10)

    async def work(net: Net) -> str:
        near, far = line()
        net.sessions.append(asyncio.create_task(net._serve("b", "a", far)))
        for seq in range(20):
            frame = Frame(Type.TREE_FULL, {"seq": seq, "more": True}, memoryview(b'[["x","y",1]]'))
            near.other.inbox.put_nowait(frame)
        await quiet()
        return net.errors[0].text
    assert "more than 10" in play("ab", work, start="")


def test_no_echo_storm(play) -> None:
    """N changes among 4 hosts: at most (own line + relay) for each, nothing comes back, and then it is quiet."""
    changes = 20

    async def work(net: Net) -> int:
        before = net.frames()
        for turn in range(changes):
            for host in "abcd":
                net.stores[host].put_many([fact(host, 4096 * turn), (paths.userspace(f"from-{host}", "r"), str(turn))])
            await quiet()
        trees = [net.tree(host) for host in "abcd"]
        assert all(tree == trees[0] for tree in trees)
        frames = net.frames() - before
        await quiet()
        assert net.frames() - before == frames
        return frames
    assert play("abcd", work) <= changes * 4 * (3 + 3 * 2)


def test_heartbeats_are_not_relayed(play) -> None:
    """`alive` of each host goes once to each other host."""
    async def work(net: Net) -> list[int]:
        before = net.frames()
        for _ in range(10):
            net.stores["a"].put_many([(paths.host_actual("a", "alive"), "1")], restamp=True)
            await quiet()
        return [net.frames() - before]
    assert play("abcd", work) == [30]


def test_relay_for_hosts_without_session(play) -> None:
    """Rule 26c: a and c have no line; what a says comes to c over b, and c's words to a."""
    async def work(net: Net) -> None:
        for a, b in (("a", "c"), ("c", "a")):
            net.cut(a, b)
        await quiet()
        for host in "ac":
            net.stores[host].put_many([fact(host, 8192)])
        await quiet()
        assert net.stores["c"].get(fact("a")[0]) == fact("a", 8192)[1]
        assert net.stores["a"].get(fact("c")[0]) == fact("c", 8192)[1]
    play("abc", work)


def test_words_about_a_host_with_session_wait_until_it_ends(play) -> None:
    """Rules 19 and 26c: a's line to c dies with a fact in it; b has told c about it before c noticed. It is kept."""
    async def work(net: Net) -> None:
        net.cut("c", "a")
        end = net.ends["a", "c"][0]
        net.down.add(("a", "c"))
        swallowed = asyncio.Queue()  # the line is dead, and nobody knows
        end.other.inbox, lost = swallowed, end.other.inbox
        net.stores["a"].put_many([fact("a", 4096)])
        await quiet()
        assert net.stores["b"].get(fact("a")[0]) and not net.stores["c"].get(fact("a")[0])
        lost.put_nowait(None)
        await quiet()
        assert net.stores["c"].get(fact("a")[0]) == fact("a", 4096)[1]
        net.stores["a"].put_many([fact("a", 8192)])
        await quiet()
        assert net.stores["c"].get(fact("a")[0]) == fact("a", 8192)[1]
    play("abc", work)


def test_others_are_not_believed_about_a_host_that_is_here(play) -> None:
    """Rule 26: b invents a newer fact of c, whose session is here; c itself is believed."""
    async def work(net: Net) -> str:
        a = net.stores["a"]
        rel = fact("c")[0]
        net.hosts["a"]._intake.take("b", [Entry(rel, fact("c", 4096 * 99)[1], a.lamport.now())])
        assert a.get(rel) == ""
        net.stores["c"].put_many([fact("c", 4096)])
        await quiet()
        return a.get(rel)
    assert play("abc", work) == fact("c", 4096)[1]


def test_own_facts_of_others_are_reported(play) -> None:
    """Rule 22: a newer fact about a at b is told, not taken; the clock is past it."""
    async def work(net: Net) -> None:
        net.cut("a", "b")
        net.cut("b", "a")
        await quiet()
        stamp = net.stores["b"].lamport.now() + 10**9
        net.stores["b"].merge([(*fact("a", 4096 * 50), stamp)], "a")
        net.down.clear()
        while not net.foreign:
            await asyncio.sleep(0.001)
        assert net.foreign[0] == ("a", "b", Entry(*fact("a", 4096 * 50), stamp))
        assert net.stores["a"].get(fact("a")[0]) == "" and net.stores["a"].lamport.now() > stamp
    play("ab", work)


def test_a_local_change_found_while_merging_goes_back_too(play, tmp_path) -> None:
    """marsadm wrote a wish on a that marsd has not seen yet; a batch of b about the same name comes in. b must hear a's
    newer wish: nothing will tell it later."""
    async def work(net: Net) -> str:
        a, b = net.stores["a"], net.stores["b"]
        rel = paths.maxnr("r")
        older = b.lamport.now()
        other = Store(Paths(mars_dir=a.root), "a", Lamport(floor=older + 1))  # marsadm's own view of the tree
        other.load()
        other.put(rel, "9")
        b.put(rel, "5", stamp=older)
        await quiet()
        assert a.get(rel) == "9"
        return b.get(rel)
    assert play("ab", work) == "9"


def test_the_address_changes(play) -> None:
    """A new address: the old line ends, a new one is dialled, and the end of the old one takes nothing from it."""
    async def work(net: Net) -> None:
        net.stores["a"].put(paths.ip("b"), "10.0.9.9")
        await quiet()
        assert [bool(end.closed) for end in net.ends["a", "b"]] == [True, False]
        assert net.hosts["a"].reachable == {"b"}
        net.stores["a"].put_many([fact("a", 4096)])
        await quiet()
        assert net.stores["b"].get(fact("a")[0]) == fact("a", 4096)[1]
        net.stores["a"].delete(paths.ip("b"))
        await quiet()
        assert net.hosts["a"].reachable == set() and net.ends["a", "b"][-1].closed
    play("ab", work)


def test_a_stranger_gets_in_by_the_address_book(play) -> None:
    """Who is put into the address book is dialled at once."""
    async def work(net: Net) -> None:
        assert ("a", "b") not in net.ends
        net.stores["a"].put(paths.ip("b"), "10.0.0.2")
        await quiet()
        assert net.hosts["a"].reachable == {"b"} and net.stores["b"].get(paths.ip("b")) == "10.0.0.2"
    play("ab", work, meet=False)


@pytest.mark.expect_messages("the link to b failed")
def test_an_unexpected_error_does_not_end_the_dialling(play, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug costs one connection, not the host for ever."""
    async def work(net: Net) -> None:
        a = net.hosts["a"]
        dial, failed = a._dial, []

        async def buggy(host: str, service: str) -> Any:
            if not failed:
                failed.append(1)
                raise ZeroDivisionError("bug")
            return await dial(host, service)
        a._dial = buggy
        a.update_peers()
        while not a.reachable:
            await asyncio.sleep(0.001)
    play("ab", work, start="")


def test_the_clock_of_a_host_that_left_counts_no_more(tmp_path) -> None:
    """Rule 25: only clocks of connected peers are a measure."""
    now = 10**18
    lamport = Lamport(lambda: now, max_future=1000)
    store = Store(Paths(mars_dir=str(tmp_path)), "a", lamport)
    store.load()
    intake = Intake(store, lambda sender, entries: None)
    intake.begin("b")
    intake.begin("b")
    lamport.peer_clock("b", now + 10_000)
    intake.end("b")
    assert lamport.legal(now + 10_500)
    intake.end("b")
    assert not lamport.legal(now + 10_500) and not intake.sessions


def test_what_is_held_is_bounded(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hostile member cannot fill our memory with words about others; what the host itself says frees the place."""
    monkeypatch.setattr(exchange_module, "HELD_MAX", 3)
    store = Store(Paths(mars_dir=str(tmp_path)), "a", Lamport())
    store.load()
    intake = Intake(store, lambda sender, entries: None)
    intake.begin("c")
    rels = [paths.version("r", nr, "c") for nr in range(1, 9)]
    value, stamp = f"{'d' * 32},log-000000001-c,0:", store.lamport.now()
    intake.take("b", [Entry(rel, value, stamp) for rel in rels])
    assert len(intake._held["c"]) == 3
    intake.take("b", [Entry(rels[0], value, stamp + 1)])
    assert intake._held["c"][rels[0]][0].stamp == stamp + 1
    intake.take("c", [Entry(rels[0], value, stamp + 2)])
    assert len(intake._held["c"]) == 2 and store.stamp(rels[0]) == stamp + 2
