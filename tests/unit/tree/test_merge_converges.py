"""The merge as a whole: hosts that have seen the same entries have the same tree, and nobody believes others about
himself, whatever gets lost, doubled or late (rules 19, 22, 25, 26)."""
from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection
from itertools import permutations

from hypothesis import given, settings
from hypothesis import strategies as st

from marsx.base.config import Paths
from marsx.base.lamport import Lamport
from marsx.tree import guard, paths
from marsx.tree.store import Entry, Store, order

HOSTS = ("a", "b", "c", "d")
NOW = 1_795_000_000 * 10**9
WISHES = [(paths.primary("r"), ("a", "b", "(none)", ".deleted")),
          (paths.todo("r", "a", "sync"), ("0", "1", ".deleted")),
          (paths.size("r"), ("4096", "8192"))]


def fact_names(host: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(paths.syncstatus("r", host), ("0", "1", "2", ".deleted")),
            (paths.actual("r", host, "is-primary"), ("0", "1")), (paths.host_actual(host, "emergency"), ("0", "4"))]


class Cluster:
    """Some stores in one process, and a network that loses, doubles and delays batches."""

    def __init__(self, count: int, skew: list[int]) -> None:
        self.dir = tempfile.mkdtemp(prefix="marsx-merge-")
        self.hosts = HOSTS[:count]
        self.stores: dict[str, Store] = {}
        self.mail: list[tuple[str, str, list[Entry]]] = []
        self.own: dict[str, dict[str, Entry]] = {}
        for index, host in enumerate(self.hosts):
            root = f"{self.dir}/{host}"
            os.mkdir(root)
            store = Store(Paths(mars_dir=root), host, Lamport(lambda index=index: NOW + skew[index]))
            store.load()
            self.stores[host] = store
            self.own[host] = {}

    def write(self, host: str, rel: str, value: str) -> None:
        store = self.stores[host]
        store.put(rel, value)
        if guard.is_fact_of(rel, host):
            self.own[host][rel] = store.entry(rel)

    def send(self, source: str, target: str, full: bool) -> None:
        entries = self.stores[source].entries()
        self.mail.append((source, target, entries if full else entries[-2:]))

    def deliver(self, index: int, keep: bool, away: bool) -> None:
        if not self.mail:
            return
        source, target, batch = self.mail[index % len(self.mail)]
        if not keep:
            self.mail.remove((source, target, batch))
        relay = set(self.hosts) - {source, target} if away else set()
        self.merge(source, target, batch, relay)

    def merge(self, source: str, target: str, batch: list[Entry], relay: Collection[str] = ()) -> None:
        """What marsd does with a batch: take it, check that nothing own was touched, and stamp anew what others hold
        a newer version of (what it does not have, it denies)."""
        store = self.stores[target]
        result = store.merge(batch, source, relay_ok=relay)
        self.check_own(target)
        for entry in result.foreign_own:
            store.put(entry.rel, store.get(entry.rel) or paths.DELETED, restamp=True)
            self.own[target][entry.rel] = store.entry(entry.rel)

    def lie(self, about: str, target: str, rel: str, value: str, away: bool) -> None:
        """Somebody has a newer fact about a host than the host itself (a restored backup, or a liar)."""
        source = next(host for host in self.hosts if host != target)
        entry = Entry(rel, value, NOW + 5 * 10**9 + len(self.mail))
        self.merge(source, target, [entry], set(self.hosts) if away else ())

    def check_own(self, host: str) -> None:
        for rel, entry in self.own[host].items():
            assert self.stores[host].entry(rel) == entry, "a host's own fact was changed by others"

    def settle(self) -> None:
        """Everybody meets everybody, in full, each speaking for itself; often enough that all have heard of all."""
        for _ in range(3):
            for source, target in permutations(self.hosts, 2):
                self.merge(source, target, self.stores[source].entries())

    def close(self) -> None:
        for store in self.stores.values():
            store.close()
        shutil.rmtree(self.dir)


STEP = st.one_of(
    st.tuples(st.just("wish"), st.integers(0, 3), st.integers(0, len(WISHES) - 1), st.integers(0, 3)),
    st.tuples(st.just("fact"), st.integers(0, 3), st.integers(0, 2), st.integers(0, 3)),
    st.tuples(st.just("send"), st.integers(0, 3), st.integers(0, 3), st.booleans()),
    st.tuples(st.just("mail"), st.integers(0, 50), st.booleans(), st.booleans()),
    st.tuples(st.just("lose"), st.integers(0, 50), st.just(0), st.just(0)),
    st.tuples(st.just("lie"), st.integers(0, 15), st.integers(0, 2), st.booleans()),
    st.tuples(st.just("member"), st.integers(0, 3), st.integers(0, 3), st.integers(1, 3)))


def play(cluster: Cluster, steps) -> None:
    count = len(cluster.hosts)
    for what, one, two, three in steps:
        host = cluster.hosts[one % count]
        if what == "wish":
            rel, values = WISHES[two]
            cluster.write(host, rel, values[three % len(values)])
        elif what == "fact":
            rel, values = fact_names(host)[two]
            cluster.write(host, rel, values[three % len(values)])
        elif what == "send" and cluster.hosts[two % count] != host:
            cluster.send(host, cluster.hosts[two % count], three)
        elif what == "mail":
            cluster.deliver(one, two, three)
        elif what == "lose" and cluster.mail:
            cluster.mail.pop(one % len(cluster.mail))
        elif what == "lie":
            about, target = cluster.hosts[one % count], cluster.hosts[one // 4 % count]
            rel, values = fact_names(about)[two]
            cluster.lie(about, target, rel, values[0], three)
        elif what == "member":
            about = cluster.hosts[two % count]
            name = paths.member("r", about) if three != 2 else paths.removed("r", about)
            cluster.write(host, name, f"life{three}" if three != 2 else "life1")


def visible(store: Store) -> dict[str, Entry]:
    """What must be equal everywhere: all but the host's own facts of a life that is over (it drops them itself)."""
    return {entry.rel: entry for entry in store.entries()
            if not (guard.is_fact_of(entry.rel, store.host) and guard.is_stale(entry.rel, entry.stamp, store.entry))}


@settings(max_examples=80, deadline=None)
@given(st.integers(3, 4), st.lists(st.integers(-10**9, 10**9), min_size=4, max_size=4), st.lists(STEP, max_size=40))
def test_all_hosts_agree_in_the_end(count, skew, steps):
    """rules 22, 25, 26: after any schedule, once everybody met everybody, all trees are equal, in memory and on disk,
    and each host still says about itself what it said."""
    cluster = Cluster(count, skew)
    try:
        play(cluster, steps)
        cluster.settle()
        trees = [visible(store) for store in cluster.stores.values()]
        assert all(tree == trees[0] for tree in trees[1:])
        for host, store in cluster.stores.items():
            cluster.check_own(host)
            before = store.entries()
            assert store.load() == [] and store.entries() == before
    finally:
        cluster.close()


ENTRY = st.builds(Entry, st.just(WISHES[0][0]), st.sampled_from(WISHES[0][1]), st.integers(NOW, NOW + 3))


@given(st.lists(ENTRY, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_order_of_arrival_and_repetition_do_not_matter(entries, random):
    """rule 25: the result of merging a set of entries is its maximum, however it arrives."""
    results = set()
    for _ in range(3):
        arrival = [*entries, *random.choices(entries, k=2)]
        random.shuffle(arrival)
        root = tempfile.mkdtemp(prefix="marsx-merge-")
        try:
            store = Store(Paths(mars_dir=root), "z", Lamport(lambda: NOW))
            store.load()
            for entry in arrival:
                store.merge([entry], "b")
            results.add(store.entry(entries[0].rel))
            store.close()
        finally:
            shutil.rmtree(root)
    assert results == {max(entries, key=order)}


@given(ENTRY, ENTRY, ENTRY)
def test_the_order_is_total(one, two, three):
    """rule 25: different entries never tie, and the order is transitive."""
    assert (order(one) == order(two)) == (one == two)
    assert order(None) < order(one)
    if order(one) < order(two) < order(three):
        assert order(one) < order(three)
