"""The tree on disk with its picture in memory, and the merge rule.

An entry is a symlink: its path is the name, its target the value, its mtime (ns) the Lamport stamp. `.deleted` as value
is a tombstone: the entry does not exist, and that travels like a value.

Invariants
    of two entries with one name the greater in `order` (stamp, then kind and text of the value) counts on every host,
        so hosts that have seen the same entries have the same tree, whatever the order of arrival (rule 25)
    the cache never shows less than the disk did; a disk entry smaller than the cached one is written over
    while marsd runs (`heals`) no entry vanishes: entries are deleted by tombstones, so one that is gone, or has
        something else in its place, was damaged, and is written again; what was there is put aside
    no entry about this host comes from another host (rule 22), no fact of a removed or earlier incarnation is kept
        about another host (rule 26), no entry has a stamp that no healthy clock can have made (rule 25)
    `put_many` and `merge` change disk and cache in the order given and wake the listeners once, at the end (rule 19)

Several processes write (marsd, marsadm). Who writes holds a flock on the directory for the few microseconds between
looking at the disk and renaming, so nobody's newer entry is overwritten by an older one; syncs happen outside of it.

No space (rule 28): an entry that cannot be written for lack of space is kept in memory, told to peers, named in
`problems` and written by `retry`; but a caller who asked for `durable` gets the error. No other failure is kept.

The order of values with one stamp: `.deleted` < `(none)` < all others by text. Two hosts can only make the same stamp
for different values when both follow a clock that runs ahead; then a name beats nobody, a thing beats its deletion.
"""
from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from marsx._ext.marstree import links as list_links
from marsx.base import durable as disk
from marsx.base.config import Paths
from marsx.base.errors import MarsError, PermissionDeniedError, PreconditionError
from marsx.base.lamport import MAX_FUTURE_NS, HighWater, Lamport
from marsx.tree import guard, paths
from marsx.tree.paths import DELETED, NONE, Name

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_MEMBERSHIP = frozenset({"member", "removed", "host-member", "host-removed"})
_TEMP_AGE_NS = 3600 * 1_000_000_000
SECOND_NS = 1_000_000_000

Links = list[tuple[str, str | None, int, int]]


class Entry(NamedTuple):
    """One entry of the tree, as it stands on disk and travels."""

    rel: str
    value: str
    stamp: int


class LogFile(NamedTuple):
    """A log file that lies in a resource directory."""

    nr: int
    producer: str
    size: int


@dataclass(slots=True)
class Merged:
    """What became of a batch."""

    accepted: list[str] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    foreign_own: list[Entry] = field(default_factory=list)


def open_lamport(paths_: Paths, host: str, clock: Callable[[], int] = time.time_ns,
                 max_future: int = MAX_FUTURE_NS) -> Lamport:
    """The clock for marsd, with its high-water file on the tree's disk (rule 25). Other programs only look at it."""
    guard.check_root(paths_.mars_dir, writable=True)
    try:
        disk.make_dir(f"{paths_.mars_dir}/{paths.local_dir(host)}", 0o700, durable=True)
        mark = HighWater(f"{paths_.mars_dir}/{paths.lamport_file(host)}", writable=True)
    except OSError as err:
        raise _failure("the Lamport high-water mark cannot be opened", err) from err
    return Lamport(clock, high_water=mark, max_future=max_future)


def order(entry: Entry | None) -> tuple[int, int, str]:
    """The total order of entries with the same name (rule 25); no entry is the least."""
    if entry is None:
        return (0, 0, "")
    rank = {DELETED: 0, NONE: 1}.get(entry.value, 2)
    return (entry.stamp, rank, entry.value)


class Store:
    """The tree of one host. Belongs to one thread."""

    def __init__(self, paths_: Paths, host: str, lamport: Lamport, *, readonly: bool = False) -> None:
        if not paths.is_host(host):
            raise PreconditionError(f"this host cannot take part under the name {host[:80]!r}",
                                    "a host name has letters, digits, - and _, no dots, and at most 63 characters")
        self.root = paths_.mars_dir
        self.host = host
        self.lamport = lamport
        self.readonly = readonly
        self.heals = False  # of marsd alone: what it forgets itself would come back from the cache of others
        self.healed: dict[str, str] = {}  # name -> what was wrong
        self.problems: dict[str, str] = {}
        self._cache: dict[str, Entry] = {}
        self._durable: dict[str, Entry] = {}
        self._durable_dirs: set[str] = set()
        self._pending: dict[str, Entry] = {}
        self._listeners: list[Callable[[list[str]], None]] = []
        self._purged_before = 0
        self._lock = guard.TreeLock(self.root)
        self._identity: tuple[int, int] | None = None

    # Reading

    def load(self) -> list[str]:
        """Read the whole tree; may be called again at any time. Names that changed since the last time."""
        if self._identity is None:
            guard.check_root(self.root, writable=not self.readonly)
            self._identity = guard.root_identity(self.root)
            try:
                self.lamport.trust(HighWater(self._path(paths.lamport_file(self.host))).limit)
            except OSError as err:
                raise _failure("the Lamport high-water mark cannot be read", err) from err
        elif guard.root_identity(self.root) != self._identity:
            raise MarsError(f"{self.root} is not the directory any more that it was",
                            "somebody unmounted it or mounted over it: mount it again and start marsd anew")
        if self.readonly and not self._cache:
            return self._first_look()
        found = self._scan("")
        changed = self._reconcile(found, [rel for rel in self._cache if rel not in found])
        self._notify(changed)
        return changed

    def reread(self, rels: str | Iterable[str]) -> list[str]:
        """Bring what another process did to these names (entries or directories) into the cache. Idempotent."""
        found: dict[str, Entry] = {}
        gone: list[str] = []
        for rel in dict.fromkeys([rels] if isinstance(rels, str) else rels):
            if paths.is_directory(rel):
                inside = self._scan(rel)
                found.update(inside)
                prefix = rel + "/" if rel else ""
                gone += [name for name in self._cache if name.startswith(prefix) and name not in inside]
            elif _known(rel):
                entry = self._read(rel)
                if entry is None:
                    gone.append(rel)
                else:
                    found[rel] = entry
        changed = self._reconcile(found, gone)
        self._notify(changed)
        return changed

    def entry(self, rel: str) -> Entry | None:
        """The entry as it is, tombstones included."""
        return self._cache.get(rel)

    def get(self, rel: str) -> str:
        """The value; "" if there is none or it was deleted."""
        entry = self._cache.get(rel)
        return "" if entry is None or entry.value == DELETED else entry.value

    def stamp(self, rel: str) -> int:
        """The stamp in ns, of a tombstone too; 0 if there is no entry."""
        entry = self._cache.get(rel)
        return 0 if entry is None else entry.stamp

    def names(self, prefix: str = "") -> list[str]:
        """Names of existing entries that begin with `prefix`, sorted."""
        return sorted(rel for rel, entry in self._cache.items() if entry.value != DELETED and rel.startswith(prefix))

    def entries(self) -> list[Entry]:
        """All entries, tombstones included, in the order of their stamps: the order in which they were written."""
        return sorted(self._cache.values(), key=lambda entry: (entry.stamp, entry.rel))

    def snapshot(self) -> list[Entry]:
        """The same in no order, which costs less."""
        return list(self._cache.values())

    def facts_of(self, host: str) -> list[Entry]:
        """What `host` said about itself, in the order it said it: the unit that is exchanged (rule 19)."""
        return [entry for entry in self.entries() if guard.is_fact_of(entry.rel, host)]

    def wishes(self) -> list[Entry]:
        """All wishes, in order."""
        return [entry for entry in self.entries() if guard.is_wish(entry.rel)]

    def log_files(self, resource: str) -> list[LogFile]:
        """The log files lying in a resource's directory now, by number and producer."""
        found = []
        try:
            directory = paths.resource_dir(resource)
            with os.scandir(self._path(directory)) as items:
                for item in items:
                    name = paths.parse(f"{directory}/{item.name}")
                    if name is not None and name.kind == "log" and item.is_file(follow_symlinks=False):
                        found.append(LogFile(name.nr, name.host, item.stat(follow_symlinks=False).st_size))
        except FileNotFoundError:
            return []
        return sorted(found)

    def on_change(self, callback: Callable[[list[str]], None]) -> None:
        """Call `callback(names)` once after every change or batch of changes, whoever made it."""
        self._listeners.append(callback)

    # Writing what this host says

    def put(self, rel: str, value: str, *, durable: bool = False, stamp: int | None = None, restamp: bool = False,
            expect: Entry | None = None) -> bool:
        """Write one entry with a new stamp; True if something was written.

        The value that is there already is not written again, unless `restamp`. An explicit `stamp` must win over what
        is there, else nothing is done; `expect` makes it a compare-and-swap on exactly that entry (rule 24)."""
        return bool(self._put([(rel, value)], durable, stamp, restamp, expect))

    def put_many(self, items: Iterable[tuple[str, str]], durable: bool = False, restamp: bool = False) -> list[str]:
        """Write entries in this order with one common stamp; names of those that were not there already."""
        return self._put(list(items), durable, None, restamp, None)

    def put_weak(self, rel: str, value: str, *, durable: bool = False) -> bool:
        """Write with the old stamp plus one second, so that a real decision taken elsewhere meanwhile wins."""
        old = self._cache.get(rel)
        return self.put(rel, value, durable=durable, stamp=old.stamp + SECOND_NS if old else None)

    def delete(self, rel: str, *, durable: bool = False) -> bool:
        """Leave a tombstone; True if there was something to delete."""
        return bool(self.get(rel)) and self.put(rel, DELETED, durable=durable)

    def make_durable(self, rels: Iterable[str]) -> None:
        """Return when the present values of these names are on stable storage (rules 18, 21)."""
        wanted = [self._cache[rel] for rel in dict.fromkeys(rels) if rel in self._cache]
        by_dir: dict[str, list[Entry]] = {}
        for entry in wanted:
            if entry.rel in self._pending:
                raise MarsError(f"{entry.rel} cannot be made durable: {self.problems.get(entry.rel, 'not written')}",
                                f"make space on {self.root}")
            if self._durable.get(entry.rel) != entry:
                by_dir.setdefault(os.path.dirname(entry.rel), []).append(entry)
        try:
            for directory, group in by_dir.items():
                disk.sync_links(self._path(directory), [entry.value for entry in group])
                self._make_dir_durable(directory)
                self._durable.update((entry.rel, entry) for entry in group)
        except OSError as err:
            raise _failure("cannot make the tree durable", err, "the disk of the tree reports errors: check it, then "
                           "start marsd anew") from err

    def is_durable(self, rel: str) -> bool:
        """True if the present value is known to be on stable storage."""
        entry = self._cache.get(rel)
        return entry is not None and self._durable.get(rel) == entry

    # Taking what others say

    def merge(self, entries: Iterable[Entry | tuple[str, str, int]], sender: str,
              relay_ok: Collection[str] = frozenset()) -> Merged:
        """Take a batch from the authenticated member `sender`, in its order; `relay_ok` are the hosts without a live
        session here, about whom it may speak too. Facts about this host are only reported (rule 22)."""
        result = Merged()
        changed: list[str] = []
        self._require_writable()
        try:
            with self._lock:
                for item in entries:
                    self._merge_one(item, sender, relay_ok, result, changed)
        finally:
            changed += self._drop_stale(changed)
            self._notify(changed)
        return result

    def retry(self) -> list[str]:
        """Write what had no space before; names that are still pending."""
        with self._lock:
            for rel, entry in list(self._pending.items()):
                if order(self._read(rel)) < order(entry):
                    self._write(entry)
                else:
                    self._pending.pop(rel)
        return list(self._pending)

    def drop_facts(self, resource: str, host: str) -> list[str]:
        """Remove, without tombstones, all facts of `host` in `resource` (rule 26: each host does it for itself)."""
        gone = [rel for rel in self._cache if guard.is_fact_of(rel, host, resource)]
        self._forget(gone)
        self._notify(gone)
        return gone

    def purge(self, older_than_ns: int) -> list[str]:
        """Remove tombstones with older stamps, empty directories and left-over temporary links. The caller knows that
        every member has acknowledged a later snapshot (rule 26). Older tombstones are not taken in again."""
        self._require_writable()
        gone = [rel for rel, entry in self._cache.items() if entry.value == DELETED and entry.stamp < older_than_ns]
        self._purged_before = max(self._purged_before, older_than_ns)
        self._forget(gone)
        with self._lock:
            guard.remove_leftovers(self.root, self.lamport.real() - _TEMP_AGE_NS)
        self._durable_dirs.clear()
        return gone

    def close(self) -> None:
        self._lock.close()

    # Inside

    def _path(self, rel: str) -> str:
        return f"{self.root}/{rel}" if rel else self.root

    def _require_writable(self) -> None:
        if self.readonly:
            raise PermissionDeniedError(f"the tree in {self.root} was opened for reading only")

    def _notify(self, changed: list[str]) -> None:
        if changed:
            names = list(dict.fromkeys(changed))
            for callback in list(self._listeners):
                callback(names)

    def _read(self, rel: str) -> Entry | None:
        """The entry on disk; None if there is no symlink under that name."""
        path = self._path(rel)
        try:
            while True:
                before = os.lstat(path)
                value = os.readlink(path)
                # Another process may have renamed in between: value and stamp must be of one link.
                if _identity(os.lstat(path)) == _identity(before):
                    return Entry(rel, value, before.st_mtime_ns)
        except FileNotFoundError:
            return None
        except OSError as err:
            if err.errno in (errno.EINVAL, errno.ENOTDIR):
                return None
            raise _failure(f"cannot read {path}", err) from err

    def _known_in(self, rel: str) -> list[tuple[Name, Entry]]:
        """Every known entry below a directory, one pass."""
        found: list[tuple[Name, Entry]] = []
        settled, is_propagated = time.time_ns() - SECOND_NS, paths.PROPAGATED.__contains__
        for directory, links in self._listed(rel):
            names = paths.parse_in(directory, [link[0] for link in links])
            for name, (_, value, stamp, changed) in zip(names, links, strict=True):
                if name is None or not is_propagated(name.writer):
                    continue
                # A link that was made before `settled` has not changed under our eyes, so value and stamp are of one
                # link without looking twice: good for displays, which are started often.
                if self.readonly and value is not None and changed < settled:
                    found.append((name, tuple.__new__(Entry, (name.rel, value, stamp))))
                elif (entry := self._read(name.rel)) is not None:
                    found.append((name, entry))
        return found

    def _listed(self, rel: str) -> Iterator[tuple[str, Links]]:
        """(directory, its links) of a directory and those below it, all of one depth read at once."""
        level = [rel]
        while level:
            below: list[str] = []
            for directory, (links, inner, error) in zip(level, list_links([*map(self._path, level)]), strict=True):
                if error and error not in (errno.ENOENT, errno.ENOTDIR):
                    raise _failure(f"cannot read {self._path(directory)}", OSError(error, os.strerror(error)))
                prefix = directory + "/" if directory else ""
                below += [prefix + name for name in inner if paths.is_directory(prefix + name)]
                yield directory, links
            level = below

    def _scan(self, rel: str) -> dict[str, Entry]:
        """Name -> entry, of all below a directory."""
        return {entry.rel: entry for _, entry in self._known_in(rel)}

    def _first_look(self) -> list[str]:
        """The first load of a display, which is started often: there is nothing yet to compare with. What
        `guard.link_problem` has nothing against, which is nearly everything, is told without asking it."""
        cache, matchers, limit, newest = self._cache, paths.MATCHERS, self.lamport.legal_up_to, 0
        for name, entry in self._known_in(""):
            rel, value, stamp = entry
            sound = 0 < stamp <= limit and value.isascii() and len(value) <= disk.VALUE_MAX
            if not (sound and matchers[name.form](value)):
                problem = guard.link_problem(name, value, stamp, self.lamport)
                if problem:
                    self.problems[rel] = problem
                    continue
            if stamp > newest:
                newest = stamp
            cache[rel] = entry
        self.lamport.see(newest)
        names = list(cache)
        self._notify(names)
        return names

    def _reconcile(self, found: dict[str, Entry], gone: Iterable[str]) -> list[str]:
        """Bring disk and cache together: the greater entry counts on both sides."""
        changed = []
        for rel in gone:
            if rel not in self._pending:
                self.problems.pop(rel, None)
            if rel in self._cache and rel not in self._pending:
                if self.heals:
                    self.healed[rel] = "was deleted"
                    self._write_if_greater(self._cache[rel])
                    continue
                del self._cache[rel]
                self._durable.pop(rel, None)
                changed.append(rel)
        for rel, entry in found.items():
            if self._cache.get(rel) != entry and self._adopt(entry):
                changed.append(rel)
        changed += self._drop_stale(changed)
        return changed

    def _adopt(self, entry: Entry) -> bool:
        """Take an entry from disk into the cache; True if the cache changed."""
        cached = self._cache.get(entry.rel)
        problem = guard.entry_problem(entry.rel, entry.value, entry.stamp, self.lamport)
        if problem:
            self.problems[entry.rel] = problem
        else:
            self.lamport.see(entry.stamp)
        if problem or order(entry) < order(cached):
            if cached is not None and not self.readonly:
                if problem:
                    self.healed[entry.rel] = problem
                self._write_if_greater(cached)
            return False
        if not problem and entry.rel not in self._pending:
            self.problems.pop(entry.rel, None)
        self._cache[entry.rel] = entry
        return entry != cached

    def _write_if_greater(self, entry: Entry) -> None:
        with self._lock:
            there = self._read(entry.rel)
            legal = there is not None and not guard.entry_problem(entry.rel, there.value, there.stamp, self.lamport)
            if not legal or order(there) < order(entry):
                self._write(entry)

    def _refresh(self, rel: str, changed: list[str]) -> Entry | None:
        """Under the lock: what the disk says now, taken into the cache."""
        there = self._read(rel)
        if there is not None and self._cache.get(rel) != there and self._adopt(there):
            changed.append(rel)
        return self._cache.get(rel)

    def _put(self, items: list[tuple[str, str]], durable: bool, stamp: int | None, restamp: bool,
             expect: Entry | None) -> list[str]:
        self._require_writable()
        for rel, value in items:
            guard.check_own(rel, value, self.host)
        changed: list[str] = []
        written: list[str] = []
        try:
            with self._lock:
                before = {rel: self._refresh(rel, changed) for rel, _ in items}
                if expect is None or before[expect.rel] == expect:
                    common = self.lamport.now() if stamp is None else stamp
                    for rel, value in items:
                        entry, old = Entry(rel, value, common), self._cache.get(rel)
                        same = stamp is None and not restamp and old is not None and old.value == value
                        if not same and order(old) < order(entry):
                            self._write(entry)
                            written.append(rel)
        finally:
            changed += written
            changed += self._drop_stale(changed)
            self._notify(changed)
        if durable:
            self.make_durable(rel for rel, _ in items)
        return written

    def _merge_one(self, item: Entry | tuple[str, str, int], sender: str, relay_ok: Collection[str], result: Merged,
                   changed: list[str]) -> None:
        try:
            entry = Entry(*item)
        except TypeError:
            result.refused.append(("", "not an entry"))
            return
        reason = guard.entry_problem(*entry, self.lamport)
        if not reason:
            self.lamport.see(entry.stamp)
            if guard.is_fact_of(entry.rel, self.host):
                if order(entry) > order(self._refresh(entry.rel, changed)):
                    result.foreign_own.append(entry)
                return
            reason = guard.refusal(entry.rel, entry.stamp, sender, relay_ok, self._cache.get)
        if reason:
            result.refused.append((str(entry.rel)[:120], reason))
            return
        current = self._refresh(entry.rel, changed)
        if current is None and entry.value == DELETED and entry.stamp < self._purged_before:
            return
        if order(current) < order(entry):
            self._write(entry)
            result.accepted.append(entry.rel)
            changed.append(entry.rel)

    def _write(self, entry: Entry) -> None:
        """Put an entry on disk and into the cache. Under the lock."""
        path = self._path(entry.rel)
        try:
            self._make_dirs(os.path.dirname(entry.rel))
            if self.heals and (aside := guard.put_aside(self.root, self.host, entry.rel)):
                self.healed[entry.rel] = f"was no link: what was there is in {aside}"
            disk.write_link(path, entry.value, entry.stamp, durable=False)
        except OSError as err:
            if err.errno not in _NO_SPACE:
                raise _failure(f"cannot write {path}", err) from err
            self._pending[entry.rel] = entry
            self.problems[entry.rel] = f"not written: {os.strerror(err.errno)}"
        else:
            self.problems.pop(entry.rel, None)
            self._pending.pop(entry.rel, None)
        self.lamport.see(entry.stamp)
        self._cache[entry.rel] = entry

    def _make_dirs(self, rel: str) -> None:
        if rel and not os.path.isdir(self._path(rel)):
            self._make_dirs(os.path.dirname(rel))
            if self.heals and (aside := guard.put_aside(self.root, self.host, rel)):
                self.healed[rel] = f"was no directory: what was there is in {aside}"
            if disk.make_dir(self._path(rel)):
                self._durable_dirs.discard(rel)

    def _make_dir_durable(self, rel: str) -> None:
        while rel and rel not in self._durable_dirs:
            parent = os.path.dirname(rel)
            disk.sync_dir(self._path(parent))
            self._durable_dirs.add(rel)
            rel = parent

    def _drop_stale(self, changed: Iterable[str]) -> list[str]:
        """After a change of membership: remove facts of other hosts that belong to an incarnation that is over."""
        kinds = {name.kind for name in map(paths.parse, changed) if name is not None}
        if self.readonly or not kinds & _MEMBERSHIP:
            return []
        gone = [rel for rel, entry in self._cache.items()
                if guard.is_stale(rel, entry.stamp, self._cache.get) and not guard.is_fact_of(rel, self.host)]
        self._forget(gone)
        return gone

    def _forget(self, rels: Iterable[str]) -> None:
        """Remove entries from disk and cache without leaving a tombstone, if they are still what the cache says."""
        with self._lock:
            for rel in rels:
                entry = self._cache.get(rel)
                try:
                    if self._read(rel) == entry:
                        os.unlink(self._path(rel))
                except OSError as err:
                    raise _failure(f"cannot remove {self._path(rel)}", err) from err
                for known in (self._cache, self._pending, self._durable, self.problems):
                    known.pop(rel, None)


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    # Inode numbers are used again at once; the change time tells the links apart.
    return status.st_ino, status.st_ctime_ns, status.st_mtime_ns


def _known(rel: str) -> bool:
    name = paths.parse(rel)
    return name is not None and name.propagated


def _failure(what: str, err: OSError, hint: str = "") -> MarsError:
    kind = PermissionDeniedError if err.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else MarsError
    return kind(f"{what}: {err.strerror or err}", hint)
