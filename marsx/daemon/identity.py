"""Who is who: hosts that are not (any more) whom they say (rules 21, 22, 26).

    certificate, host name    marsd starts only under the name of its certificate (`peer.tls.check_name`): one
                              that was renamed, or has the /mars of another one, takes nobody's role
    two hosts, one identity   (a cloned host) real is who answers at the address of the tree. While our own link to it
                              is up, a session of another incarnation from another address is refused, and ended if
                              it came first: facts of the two do not mix
    removed hosts             are refused by name
    clocks                    that are too far apart are named on both sides (rule 25)

Both sides say so: who refuses as `wrn-refused-host`, who is refused as `err-outcast`; and who is refused so begins no
log that it would begin as the designated primary of an old tree. Force may: people have looked then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from marsx.daemon.exchange import Exchange
from marsx.peer.server import Peer
from marsx.peer.wire import PeerError, Reason
from marsx.tree import paths
from marsx.tree.store import Store

FORGET_S = 60.0
HINT = "If it belongs here: marsd stop there, move its /mars and /etc/mars/tls away, marsadm join-cluster"


class Identity:
    """See the module. `say(key, text)`: a message of this host. On the loop."""

    def __init__(self, store: Store, exchange: Exchange, say: Callable[[str, str], None],
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._exchange = exchange
        self._say = say
        self._clock = clock
        self._refused: dict[tuple[str, str], tuple[float, str]] = {}
        exchange.on_real = self.is_real

    def check(self, peer: Peer) -> str:
        """Why a verified host gets no session, ""; PeerError if it is not (any more) whom it says."""
        member, removed = self._store.get(paths.host_member(peer.host)), self._store.get(paths.host_removed(peer.host))
        if removed and removed == (member or removed):
            self._refuse(peer, f"{peer.host} was removed from the cluster")
        real = self._exchange.incarnations.get(peer.host, "")
        address = self._store.get(paths.ip(peer.host))
        if real and real != peer.incarnation and peer.address != address:
            self._refuse(peer, f"another host is {peer.host}, at {address}: this one has its identity (a copy?)")
        self._refused.pop((peer.host, peer.address), None)
        # who is known as a member only lost its address here: it says it itself
        return "" if address or member else f"{peer.host} is not in the address book of {self._store.host}"

    def is_real(self, host: str, incarnation: str) -> None:
        """This one answers at the address of `host`: sessions of others with its identity end."""
        for peer, link in list(self._exchange.guests.get(host, {}).values()):
            if peer.incarnation != incarnation:
                try:
                    self.check(peer)
                except PeerError as err:
                    link.abort(err.reason, err.text)

    def _refuse(self, peer: Peer, text: str) -> None:
        self._refused[peer.host, peer.address] = self._clock(), text
        raise PeerError(Reason.OUTCAST, text)

    def tick(self) -> None:
        """Say what stands, take back what is over."""
        now = self._clock()
        self._refused = {who: what for who, what in self._refused.items() if now - what[0] < FORGET_S}
        texts = [f"{host} from {address} is refused: {text}" for (host, address), (_, text) in
                 sorted(self._refused.items())]
        self._say("wrn-refused-host", f"{'; '.join(texts)}. {HINT}" if texts else "")
        self._say("err-outcast", outcast(self._exchange.errors))
        self._say("err-clock", self._clocks())

    def _clocks(self) -> str:
        """What is wrong with the clocks (rule 25): who is too far ahead is not believed, who is too far behind begins
        no role."""
        lamport = self._store.lamport
        texts = [f"the clock of {host} differs from the one here by {days} days" for host, days in
                 sorted(lamport.far_peers().items())]
        if own := lamport.clock_problem():
            texts.insert(0, f"{own}. If it is right and was ahead before: the stamps of that time are in /mars here: "
                            "move /mars and /etc/mars/tls away, marsadm join-cluster")
        return "; ".join(texts)


def outcast(errors: Mapping[str, Exception]) -> str:
    """Why others do not take this host for whom it says that it is, "" if nobody says so."""
    texts = [f"{host} refuses this host ({err.text})" for host, err in sorted(errors.items())
             if isinstance(err, PeerError) and err.reason is Reason.OUTCAST]
    return f"{'; '.join(texts)}: it begins no log by itself. If it is to be a member: marsd stop, move /mars and " \
           "/etc/mars/tls away, marsadm join-cluster" if texts else ""
