"""Who is refused, who is ended, what is said of it (rules 21, 22, 26)."""
from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from marsx.base.lamport import Lamport
from marsx.daemon.comeback import Comeback
from marsx.daemon.identity import FORGET_S, Identity, outcast
from marsx.peer.server import Peer
from marsx.peer.wire import PeerError, Reason
from marsx.tree import paths


class Rig:
    """Host a with b in its tree, at 10.0.0.2, member id m."""

    def __init__(self) -> None:
        self.tree = {paths.ip("b"): "10.0.0.2", paths.host_member("b"): "m"}
        self.exchange: Any = SimpleNamespace(incarnations={}, guests={}, errors={})
        self.messages: dict[str, str] = {}
        self.now = 0.0
        self.real = 10**18
        self.lamport = Lamport(lambda: self.real)
        store: Any = SimpleNamespace(get=lambda rel: self.tree.get(rel, ""), host="a", lamport=self.lamport)
        self.identity = Identity(store, self.exchange, lambda key, text: self.messages.update({key: text}),
                                 lambda: self.now)

    def comes(self, incarnation: str = "1", address: str = "10.0.0.2", host: str = "b") -> str:
        """Why it is refused for good, else what `check` answers."""
        try:
            return self.identity.check(Peer(host, incarnation, (), address, True))
        except PeerError as err:
            assert err.reason is Reason.OUTCAST
            return f"outcast: {err.text}"

    def said(self) -> str:
        self.identity.tick()
        return self.messages["wrn-refused-host"]


def test_a_removed_host_is_named():
    """Rule 26: by the removal itself, with and without the rest of its entries; it is forgotten after a while."""
    rig = Rig()
    assert rig.comes() == "" and rig.said() == ""
    rig.tree[paths.host_removed("b")] = "m"
    assert "was removed" in rig.comes()
    del rig.tree[paths.host_member("b")], rig.tree[paths.ip("b")]
    assert "was removed" in rig.comes() and "b from 10.0.0.2" in rig.said() and "join-cluster" in rig.said()
    rig.now = FORGET_S
    assert rig.said() == ""
    rig.tree |= {paths.host_member("b"): "another", paths.ip("b"): "10.0.0.2"}
    assert rig.comes() == "" and "not in the address book" in rig.comes(host="c")


def test_a_copy_of_a_living_host_is_refused():
    """Rule 22: who answers at the address is real; a host that was started anew comes from there too."""
    rig = Rig()
    assert rig.comes("2", "10.0.0.9") == "", "the real one cannot be reached: nothing is known"
    rig.exchange.incarnations["b"] = "1"
    assert rig.comes("1", "10.0.0.7") == "", "another address of the real one"
    assert rig.comes("2") == "", "it was just started anew"
    assert "has its identity" in rig.comes("2", "10.0.0.9") and "from 10.0.0.9" in rig.said()
    assert "from 10.0.0.9" in rig.said()


def test_a_copy_that_came_first_is_ended():
    """Rule 22: as soon as the real one answers."""
    rig = Rig()
    ended: list[tuple[str, str]] = []

    def guest(incarnation: str, address: str) -> tuple[Peer, Any]:
        return Peer("b", incarnation, (), address, True), SimpleNamespace(
            abort=lambda reason, text: ended.append((incarnation, reason)))
    rig.exchange.guests["b"] = {1: guest("copy", "10.0.0.9"), 2: guest("real", "10.0.0.2"), 3: guest("old", "10.0.0.2")}
    rig.exchange.incarnations["b"] = "real"
    rig.exchange.on_real("b", "real")
    assert ended == [("copy", Reason.OUTCAST)]


def test_who_is_refused_says_so():
    """Rule 21: also to people, with what to do; another error of a connection is nothing of that kind."""
    rig = Rig()
    rig.exchange.errors = {"b": PeerError(Reason.REFUSED, "nobody listens"), "c": OSError(5, "no"),
                           "d": PeerError(Reason.NAME, "another host answers there")}
    assert outcast(rig.exchange.errors) == ""
    rig.exchange.errors["e"] = PeerError(Reason.OUTCAST, "a was removed")
    rig.identity.tick()
    assert "e refuses this host (a was removed)" in rig.messages["err-outcast"]


@pytest.mark.parametrize("text", ["", "b refuses this host"])
def test_an_outcast_begins_no_log(text):
    """Rule 21: the designated primary of an old tree waits, and says why, before it asks anybody anything."""
    site: Any = SimpleNamespace(outcast=lambda: text, host="a", settings=SimpleNamespace(get=lambda name: 0.0),
                                started=0, answered=set, reachable=set, store=None, say=lambda *_: None)
    back = Comeback(site, "r", "/nowhere", lambda: None)
    back._is_own = lambda view: True  # type: ignore[method-assign]
    back._is_older = lambda view: "clear"  # type: ignore[method-assign]
    view: Any = SimpleNamespace(members=lambda resource: ("a",))
    assert back.holds(view, SimpleNamespace(at=None))[0] == (text or "clear")  # type: ignore[arg-type]


@pytest.mark.parametrize(("days", "words"), [(3650, "of b differs from the one here by 3650 days"),
                                             (-3650, "ahead of all connected hosts"), (1, ""), (-1, "")])
def test_clocks_that_are_too_far_apart_are_named(days, words):
    """Rule 25: on both sides; a day is nothing."""
    rig = Rig()
    rig.lamport.peer_clock("b", rig.real + days * 86_400 * 10**9)
    rig.identity.tick()
    assert words in rig.messages["err-clock"] and bool(words) == bool(rig.messages["err-clock"])
    rig.lamport.peer_clock("b", None)
    rig.identity.tick()
    assert rig.messages["err-clock"] == ""
    rig.lamport.now()
    rig.real -= 40 * 86_400 * 10**9
    rig.identity.tick()
    assert "behind the stamps" in rig.messages["err-clock"] and "join-cluster" in rig.messages["err-clock"]
