"""What has to be cleared up after a start: who has more of the own log, what others remember (rules 21, 22)."""
from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from marsx.base.errors import DamagedError
from marsx.base.position import LogPos
from marsx.daemon import heal
from marsx.daemon.comeback import Comeback
from marsx.peer.fetch import Offer, Start
from marsx.tree import paths
from marsx.tree.store import Entry
from marsx.tree.view import Mark, View
from tests.unit.daemon.small_logs import make_log, position, write

R, D = "r", "d" * 32
ONE = make_log(1, groups=6)
TWO = make_log(2, pred=ONE, groups=3)


@dataclass
class FakeStore:
    """What is written."""

    values: dict[str, str]
    said: dict[str, str] = field(default_factory=dict)

    def get(self, rel: str) -> str:
        return self.values.get(rel, "")

    def put_many(self, items: list[tuple[str, str]], restamp: bool = False) -> None:
        assert restamp
        self.said.update(items)


class FakeSite:
    """A site whose other hosts are what a test says. It is `a`, its patience is 5 s."""

    host = "a"

    def __init__(self, values: dict[str, str]) -> None:
        self.values = values
        self.store = FakeStore(values)
        self.settings = {"start_patience_s": 5}
        self.started = time.monotonic()
        self.there: set[str] = {"b", "c"}
        self.messages: dict[str, str] = {}

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    def view(self) -> View:
        return View([(rel, value, 10) for rel, value in self.values.items()], {})

    def reachable(self) -> set[str]:
        return self.there

    answered = reachable
    outcast = staticmethod(str)

    def say(self, resource: str, key: str, text: str) -> None:
        self.messages[key] = text


@dataclass
class Copy:
    """As far as a LogCopy is asked here."""

    at: LogPos

    def where(self) -> Start:
        return Start(self.at.nr, self.at.producer, self.at.pos, "0" * 32, D)


def tree(**changes: str) -> dict[str, str]:
    """a, b, c; a has written log 1 up to 8192."""
    end = LogPos(1, "a", 8192)
    found = {paths.version(R, 1, host): f"{D},{end}:" for host in "abc"}
    found |= {paths.data(R, host): "/dev/x" for host in "abc"}
    found |= {paths.replay(R, host): f"{end},0" for host in "abc"}
    return found | changes


@pytest.fixture
def back(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """back(answers) -> (Comeback, its site, times it was asked): the others answer this."""
    def make(answers: dict[str, Any], values: dict[str, str] | None = None) -> Any:
        write(tmp_path, ONE)
        site, asked = FakeSite(values or tree()), []

        async def ask_all(site: Any, resource: str, start: Start, hosts: Any) -> dict[str, Any]:
            asked.append((start.pos, sorted(hosts)))
            return {host: answers[host] for host in hosts if host in answers}
        monkeypatch.setattr(heal, "ask_all", ask_all)
        return Comeback(site, R, str(tmp_path), lambda: None), site, asked  # type: ignore[arg-type]
    return make


async def settled(one: Comeback, site: FakeSite, copy: Copy) -> tuple[str, str]:
    """What `holds` says when it has asked."""
    for _ in range(10):
        said = one.holds(site.view(), copy)  # type: ignore[arg-type]
        await asyncio.sleep(0.005)
        if not said[0].startswith("asks"):
            return said
    raise AssertionError(said)


def test_silent_hosts_are_waited_for_but_not_for_ever(back: Any) -> None:
    """Nothing is done before the others have spoken; a moment later without them."""
    async def main() -> None:
        one, site, asked = back({"b": "ends at 8192 here"})
        site.there = {"b"}
        said, _ = one.holds(site.view(), Copy(LogPos(1, "a", 8192)))
        assert "waits" in said and "c" in said and not asked
        site.started -= 5
        assert await settled(one, site, Copy(LogPos(1, "a", 8192))) == ("", "")
        assert asked == [(8192, ["b"])]
        assert one.holds(site.view(), None) == ("", ""), "once is enough"
    asyncio.run(main())


def test_who_has_more_is_fetched_from_first(back: Any) -> None:
    """Rule 22: the longest of all; until it is here nothing is written; then the others are asked again."""
    async def main() -> None:
        more = LogPos(2, "a", 4096)
        answers: dict[str, Any] = {"b": Offer(12288, LogPos(1, "a", 12288)), "c": Offer(20480, more)}
        one, site, asked = back(answers)
        copy = Copy(LogPos(1, "a", 8192))
        said, host = await settled(one, site, copy)
        assert host == "c" and str(more) in said
        copy.at = LogPos(1, "a", 20480)
        assert one.holds(site.view(), copy)[1] == "c"
        copy.at = more
        answers["c"] = Offer(4096, more)
        answers["b"] = "b: log-000000002-a is not here"
        assert await settled(one, site, copy) == ("", "") and [pos for pos, _ in asked] == [8192, 4096]
    asyncio.run(main())


def test_who_had_more_may_have_it_no_longer(back: Any) -> None:
    """Rule 7: what was offered is an empty log, and who had it withdraws it: it is not waited for, for ever."""
    async def main() -> None:
        answers: dict[str, Any] = {"b": Offer(8192, LogPos(2, "a", 0)), "c": Offer(8192, NEWEST)}
        one, site, asked = back(answers)
        said, host = await settled(one, site, Copy(NEWEST))
        assert host == "b" and "fetched first" in said
        answers["b"] = Offer(8192, NEWEST)
        assert one.holds(site.view(), Copy(NEWEST))[1] == "b", "not before it is time to ask again"
        one._ask_after = 0.0
        assert await settled(one, site, Copy(NEWEST)) == ("", "") and len(asked) == 2
    asyncio.run(main())


def test_a_branch_of_another_host_is_not_the_own_log(back: Any) -> None:
    """What b wrote after a forced start counts no further than where the own log ends there."""
    async def main() -> None:
        one, site, _ = back({"b": Offer(8192, LogPos(2, "b", 4096))})
        assert await settled(one, site, Copy(LogPos(1, "a", 8192))) == ("", "")
        one, site, _ = back({"b": Offer(12288, LogPos(2, "b", 4096))})
        said, host = await settled(one, site, Copy(LogPos(1, "a", 8192)))
        assert host == "b" and "12288" in said
    asyncio.run(main())


def test_a_newer_own_log_that_is_not_here_is_an_older_state(back: Any) -> None:
    """Rules 21, 22: no new log while others know a higher one of this host; it is asked for again, and it can come."""
    async def main() -> None:
        answers: dict[str, Any] = {}
        newer = LogPos(2, "a", 4096)
        link = {paths.version(R, 2, "b"): f"{'e' * 32},{newer}:{D},{LogPos(1, 'a', 8192)}"}
        one, site, asked = back(answers, tree(**link))
        copy = Copy(LogPos(1, "a", 8192))
        said, _ = await settled(one, site, copy)
        assert "older state" in said and "older state" in site.messages["err-memory"]
        answers["b"] = Offer(8192, newer)
        one._ask_after = 0.0
        said, host = await settled(one, site, copy)
        assert host == "b" and len(asked) == 2
    asyncio.run(main())


def test_not_asked_when_the_log_is_not_the_own_one(back: Any) -> None:
    """Another host wrote last, or a grant says where the log ended."""
    async def main() -> None:
        end = LogPos(2, "b", 4096)
        link = {paths.version(R, 2, "b"): f"{'e' * 32},{end}:{D},{LogPos(1, 'a', 8192)}"}
        one, site, asked = back({}, tree(**link))
        assert one.holds(site.view(), Copy(LogPos(1, "a", 8192))) == ("", "") and not asked
        one, site, asked = back({}, tree(**{paths.granted(R, "a"): f"a,{LogPos(1, 'a', 8192)},{D}"}))
        assert one.holds(site.view(), Copy(LogPos(1, "a", 8192))) == ("", "") and not asked
    asyncio.run(main())


VERSION, REPLAY = paths.version(R, 1, "a"), paths.replay(R, "a")
NEWEST = LogPos(1, "a", 8192)


@pytest.mark.parametrize(("rel", "value", "within"), [
    (VERSION, f"{D},{LogPos(1, 'a', 4096)}:", True),
    (VERSION, f"{D},{LogPos(1, 'a', 8192)}:", True),
    (VERSION, f"{D},{LogPos(1, 'a', 12288)}:", False),
    (VERSION, f"{D},{LogPos(1, 'b', 4096)}:", False),
    (paths.version(R, 2, "a"), f"{D},{LogPos(2, 'a', 4096)}:{D},{NEWEST}", False),
    (paths.version(R, 2, "a"), f"{D},{LogPos(2, 'a', 0)}:{D},{NEWEST}", True),
    (REPLAY, f"{LogPos(1, 'a', 4096)},0", True),
    (REPLAY, f"{LogPos(1, 'a', 4096)},4096", True),
    (REPLAY, f"{LogPos(1, 'a', 4096)},8192", False),
    (REPLAY, "nonsense", True),
])
def test_what_others_remember(back: Any, rel: str, value: str, within: bool) -> None:
    """Rule 22: said again as it is here when it lies within the own logs; else this host has lost memory, nothing is
    said again, and it stops; a primary that serves is only told."""
    async def main() -> None:
        one, site, _ = back({"b": "no"})
        one.claim(Entry(rel, value, 99))
        one.judge(site.view(), NEWEST)
        assert one.claims and not site.store.said, "not before the others were asked for the own tail"
        assert await settled(one, site, Copy(NEWEST)) == ("", "")
        if within:
            one.judge(site.view(), NEWEST)
            assert site.store.said == {rel: site.values.get(rel, paths.DELETED)} and not one.claims
            return
        with pytest.raises(DamagedError, match="lost memory"):
            one.judge(site.view(), NEWEST)
        one.judge(site.view(), NEWEST, serving=True)
        assert "lost memory" in site.messages["err-memory"] and not site.store.said
        await one.forget()
        assert site.store.said and not one.claims
    asyncio.run(main())


def test_what_was_before_the_membership_counts_for_nothing(back: Any) -> None:
    """A host that left and joined again is not what it was (rule 26)."""
    async def main() -> None:
        one, site, _ = back({"b": "no"}, tree(**{paths.member(R, "a"): "id"}))
        one.claim(Entry(paths.version(R, 7, "a"), f"{D},{LogPos(7, 'a', 4096)}:", 9))
        await settled(one, site, Copy(NEWEST))
        one.judge(site.view(), NEWEST)
        assert site.store.said == {paths.version(R, 7, "a"): paths.DELETED}
    asyncio.run(main())


def test_the_oldest_history_is_believed(back: Any) -> None:
    """An own log further back ends where the own link says; with no link left there is nothing to compare."""
    values = tree(**{paths.version(R, 2, "a"): f"{D},{position(TWO)}:{D},{NEWEST}"})

    async def main() -> None:
        for end, nr, within in ((8192, 1, True), (12288, 1, False), (4096, 0, True)):
            one, site, _ = back({"b": "no"}, values)
            one.claim(Entry(paths.version(R, nr or 1, "a"), f"{D},{LogPos(1, 'a', end)}:", 99))
            if nr == 0:
                del site.values[paths.version(R, 1, "a")]
            one.judge(site.view(), position(TWO), serving=True)
            assert (not one.claims) is within
    asyncio.run(main())


@pytest.mark.parametrize(("remembered", "kept"), [(8192, True), (4096, False), (12288, None)])
def test_a_link_that_a_power_cut_put_back(back: Any, remembered: int, kept: bool | None) -> None:
    """Rule 22: the own version link of log 1 says less than log 2 proves. Who remembers just that end is right, and it
    is said again; who remembers more still tells of lost memory."""
    values = tree(**{paths.version(R, 2, "a"): f"{D},{position(TWO)}:{D},{NEWEST}", VERSION: f"{D},log-000000001-a,0:"})

    async def main() -> None:
        one, site, _ = back({"b": "no"}, values)
        claim = f"{D},{LogPos(1, 'a', remembered)}:"
        one.claim(Entry(VERSION, claim, 99))
        one.judge(site.view(), position(TWO), serving=True)
        if kept is None:
            assert one.claims and not site.store.said
        else:
            assert not one.claims and site.store.said == {VERSION: claim if kept else values[VERSION]}
    asyncio.run(main())


def test_the_log_itself_proves_where_a_sync_ended(back: Any) -> None:
    """Rule 14: syncpos inside a log: version links cannot show its digest, the log can; not before it is here, and not
    when the log is gone."""
    async def main() -> None:
        one, site, _ = back({})
        site.values[paths.uuid()] = "u-test"

        async def blocking(call: Any, *args: Any) -> Any:
            return call(*args)
        site.blocking = blocking
        copy = Copy(position(ONE))
        for at, digest, parted in ((2, ONE.digests[2].hex(), False), (2, ONE.digests[3].hex(), True),
                                   (2, "0" * 32, True), (2, "", False)):
            mark = Mark(position(ONE, at), digest)
            assert await one.is_of_another_history(mark, copy) is parted, mark
        wrong = Mark(position(ONE, 3), "0" * 32)
        assert not await one.is_of_another_history(wrong, Copy(position(ONE, 2)))
        assert not await one.is_of_another_history(wrong, None)
        assert not await one.is_of_another_history(Mark(LogPos(1, "b", 4096), D), copy)
    asyncio.run(main())
