"""What may enter the tree: pure rules about single entries, and the checks of the directory they lie in.

The rules answer with a reason, or with "" for "nothing against it":

* `entry_problem`: name, form of the value, legal stamp (rule 25), for entries from disk and from peers alike;
* `refusal`: may this sender say this (rule 22: facts from their owner, or relayed while it is away; rule 26: not about
  an incarnation that is over);
* `check_own`: may this host write this.

When an incarnation is over (rule 26). `member-P` holds the incarnation of P's membership; it is written before P's
first fact, and never again with a new stamp. `removed-P` holds the incarnation that is out. A fact about P is stale if
the two are equal, or if only `removed-P` is there, or if the fact is older than `member-P`: P cannot have said anything
in its new life before it joined. `ips/member-P` and `ips/removed-P` say the same about P in the whole cluster. The rule
looks only at entries, so all hosts with the same entries drop and refuse the same facts.
"""
from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Collection

from marsx.base import durable
from marsx.base.errors import MarsError, PermissionDeniedError, PreconditionError, TimeoutExpired
from marsx.base.lamport import Lamport
from marsx.tree import paths
from marsx.tree.paths import DELETED

LOCK_PATIENCE_S = 10.0
_PROBE_STAMP = 1_234_567_890_123_456_789

Lookup = Callable[[str], "tuple[str, str, int] | None"]


def is_fact_of(rel: str, host: str, resource: str | None = None) -> bool:
    """True for a fact that speaks of `host` (in `resource`, if given)."""
    name = paths.parse(rel)
    return (name is not None and name.writer == "fact" and name.host == host
            and (resource is None or name.resource == resource))


def is_wish(rel: str) -> bool:
    """True for a name that any member may write."""
    name = paths.parse(rel)
    return name is not None and name.writer == "wish"


def entry_problem(rel: object, value: object, stamp: object, lamport: Lamport) -> str:
    """Why this cannot be an entry at all, or ""."""
    if not (isinstance(rel, str) and isinstance(value, str) and isinstance(stamp, int) and type(stamp) is not bool):
        return "not an entry"
    name = paths.parse(rel)
    if name is None or not name.propagated:
        return "not a name of the tree"
    return link_problem(name, value, stamp, lamport)


def link_problem(name: paths.Name, value: str, stamp: int, lamport: Lamport) -> str:
    """Why this cannot be the value and stamp of an entry of that name, or ""."""
    if not value.isascii() or not 0 < len(value) <= durable.VALUE_MAX or "\0" in value:
        try:
            durable.check_value(value)
        except ValueError as err:
            return str(err)
    problem = paths.value_problem(name, value)
    if problem:
        return problem
    if not lamport.legal(stamp):
        return f"its stamp {stamp} is too far in the future (max_lamport_future), or no stamp"
    return ""


def refusal(rel: str, stamp: int, sender: str, relay_ok: Collection[str], lookup: Lookup) -> str:
    """Why `sender` must not be believed about this legal name, or "". Facts about the own host never come here."""
    if _over(lookup, paths.host_member(sender), paths.host_removed(sender)):
        return f"{sender} was removed from the cluster"
    name = paths.parse(rel)
    if name is None or name.writer != "fact":
        return ""
    if name.host != sender and name.host not in relay_ok:
        return f"{sender} must not speak about {name.host}"
    if is_stale(rel, stamp, lookup):
        return f"said by an incarnation of {name.host} that is over"
    return ""


def is_stale(rel: str, stamp: int, lookup: Lookup) -> bool:
    """Rule 26: true for a fact of a membership that is over. Wishes are never stale."""
    name = paths.parse(rel)
    if name is None or name.writer != "fact":
        return False
    if _over(lookup, paths.host_member(name.host), paths.host_removed(name.host), stamp):
        return True
    return bool(name.resource) and _over(lookup, paths.member(name.resource, name.host),
                                         paths.removed(name.resource, name.host), stamp)


def check_own(rel: str, value: str, host: str) -> None:
    """ValueError if this host must not write this entry."""
    name = paths.parse(rel)
    if name is None or not name.propagated:
        raise ValueError(f"not a name of the tree: {rel[:120]!r}")
    if name.writer == "fact" and name.host != host:
        raise ValueError(f"{rel} is a fact about {name.host}: only {name.host} itself writes it")
    durable.check_value(value)
    problem = paths.value_problem(name, value)
    if problem:
        raise ValueError(problem)


def _over(lookup: Lookup, member_rel: str, removed_rel: str, stamp: int | None = None) -> bool:
    member, removed = lookup(member_rel), lookup(removed_rel)
    joined = member if member is not None and member[1] != DELETED else None
    if removed is not None and removed[1] != DELETED and (joined is None or removed[1] == joined[1]):
        return True
    return joined is not None and stamp is not None and stamp < joined[2]


def put_aside(root: str, host: str, rel: str) -> str:
    """What stands in the place of an entry and is no link, or in that of a directory and is none, goes out of the way;
    where it is now, "" if there was nothing."""
    path = f"{root}/{rel}"
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ""
    if stat.S_ISLNK(mode) and not paths.is_directory(rel) or stat.S_ISDIR(mode) and paths.is_directory(rel):
        return ""
    aside = f"{root}/{paths.local_dir(host)}/misplaced"
    os.makedirs(aside, mode=0o700, exist_ok=True)
    aside += f"/{time.time_ns()}-{rel.replace('/', '-')}"
    os.rename(path, aside)
    return aside


def root_identity(root: str) -> tuple[int, int]:
    """Which directory this is: another one under the same name means that the file system was unmounted."""
    try:
        status = os.stat(root)
    except OSError as err:
        raise PreconditionError(f"{root}: {err.strerror}", "create it and mount its file system there") from err
    return status.st_dev, status.st_ino


def check_root(root: str, writable: bool) -> None:
    """MarsError if the directory of the tree cannot serve: it must be there and keep ns time stamps (rule 25)."""
    try:
        mode = os.stat(root).st_mode
    except OSError as err:
        raise PreconditionError(f"{root}: {err.strerror}", "create it and mount its file system there") from err
    if not stat.S_ISDIR(mode):
        raise PreconditionError(f"{root} is not a directory")
    if not os.access(root, os.R_OK | os.X_OK):
        raise PermissionDeniedError(f"{root} is not readable for this user", "run this as root")
    if not writable:
        return
    probe = f"{root}/{durable.TEMP_PREFIX}{os.getpid()}.0.probe"
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(probe)
        os.symlink("probe", probe)
        os.utime(probe, ns=(_PROBE_STAMP, _PROBE_STAMP), follow_symlinks=False)
        kept = os.lstat(probe).st_mtime_ns
        os.unlink(probe)
    except OSError as err:
        if err.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise PermissionDeniedError(f"{root} is not writable: {err.strerror}", "run this as root") from err
        raise MarsError(f"{root} is not writable: {err.strerror}", f"check the file system of {root}") from err
    if kept != _PROBE_STAMP:
        raise PreconditionError(f"the file system of {root} does not keep time stamps in nanoseconds",
                                "make it anew, for example as ext4 with 256-byte inodes or as xfs")


def remove_leftovers(root: str, before_ns: int) -> None:
    """Remove temporary links of dead writers that are older than `before_ns`, and directories that became empty."""
    for directory, subdirs, files in os.walk(root, topdown=False):
        rel = os.path.relpath(directory, root) if directory != root else ""
        if not paths.is_directory(rel):
            continue
        for name in filter(durable.is_temp, files + subdirs):
            path = os.path.join(directory, name)
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(path)
                if stat.S_ISLNK(status.st_mode) and status.st_ctime_ns < before_ns:
                    os.unlink(path)
        if rel:
            with contextlib.suppress(OSError):
                os.rmdir(directory)


class TreeLock:
    """The flock on the tree's directory that keeps writers apart; may be taken again by its holder."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._fd = -1
        self._depth = 0

    def __enter__(self) -> None:
        if self._depth == 0:
            self._take()
        self._depth += 1

    def __exit__(self, *exc: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _take(self) -> None:
        if self._fd < 0:
            try:
                self._fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as err:
                raise PreconditionError(f"{self._root}: {err.strerror}",
                                        "create it and mount its file system there") from err
        deadline = time.monotonic() + LOCK_PATIENCE_S
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutExpired(f"another program holds the lock of {self._root} for more than "
                                         f"{LOCK_PATIENCE_S:g} s", "look for a stopped marsadm (fuser, ps)") from None
                time.sleep(0.0005)
