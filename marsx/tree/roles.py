"""Who may append the next log of a resource (rule 18). Pure; planner, marsadm and displays ask here.

The producer of the newest log N holds the right. He passes it on by his fact `granted` = (host, end of N, digest);
the holder may pass it on again in the same way. Grants for other logs than N are used up. Of the grants for N the
chain is followed along rising stamps: a grant is always written after the one that it follows was seen, so a right
that came back is told from one that was given away.

The right is one of a history, not of a number. Where histories have parted (force), that of the designated primary
counts, however many logs others have: what he appends to it takes nothing from them, and he can go on after a restart.
Nobody is left out who may only be ahead, or of whom the links do not tell. Among logs with one number the designated
primary's counts, else the name decides, so that all hosts with the same tree have the same answer.
"""
from __future__ import annotations

from typing import NamedTuple

from marsx.tree import paths
from marsx.tree.view import DIGEST_LENGTH, Mark, View

NO_DIGEST = "0" * DIGEST_LENGTH  # where a gap is (rule 27)


class Right(NamedTuple):
    """`host` may append after log `nr` of `producer`, whose end is `mark` (None: the producer himself holds it and
    knows). `since`: stamp of the grant that brought it (0: none did)."""

    host: str
    nr: int
    producer: str
    mark: Mark | None
    since: int = 0


def newest_log(view: View, resource: str) -> tuple[int, str]:
    """(number, producer) of the newest log that any version link knows; (0, "") if none. An empty log counts, its
    producer took the right; but not when that host's own link is gone: then it was withdrawn (rule 7), and others only
    have its header yet."""
    best = (0, False, "")
    designated = view.designated(resource)
    for host, links in view.version_texts(resource).items():
        if _has_parted(view, resource, host, designated):
            continue
        for nr in links:
            version = view.version(resource, host, nr)
            if version is not None and nr >= best[0]:
                producer = version.end.pos.producer
                if version.end.pos.pos == 0 and host != producer and not is_there(view, resource, producer, nr):
                    continue
                best = max(best, (version.end.pos.nr, producer == designated, producer))
    return best[0], best[2]


def gap_ahead(view: View, resource: str, host: str, of: str) -> int:
    """Number of the log behind a gap in the history of `of` that `host` has not crossed yet; 0: there is none. Only a
    primary gets others across (rule 27), so he must not give the role to `host` before."""
    own = view.version_numbers(resource, host)
    for nr in view.version_numbers(resource, of):
        version = view.version(resource, of, nr)
        if version is not None and version.previous is not None and version.previous.digest == NO_DIGEST:
            if not own or own[-1] < nr:
                return nr
    return 0


def _has_parted(view: View, resource: str, host: str, designated: str) -> bool:
    """Is neither history a part of the other, for sure?"""
    if host == designated or designated not in view.members(resource):
        return False
    here, there = _tip(view, resource, host), _tip(view, resource, designated)
    return (here is not None and there is not None and view.in_history(resource, host, there) is False
            and view.in_history(resource, designated, here) is False)


def _tip(view: View, resource: str, host: str) -> Mark | None:
    """The end of its history; an empty log is none (rule 7)."""
    numbers = view.version_numbers(resource, host)
    version = view.version(resource, host, numbers[-1]) if numbers else None
    while version is not None and version.end.pos.pos == 0 and version.previous is not None:
        lower = view.version(resource, host, version.previous.pos.nr)
        if lower is None or version.previous.pos.pos:
            return version.previous
        version = lower
    return version.end if version is not None else None


def is_there(view: View, resource: str, producer: str, nr: int) -> bool:
    """Does the producer of this log still say so himself? He may have withdrawn it and follow another one of that
    number."""
    own = view.version(resource, producer, nr)
    return own is not None and own.end.pos.producer == producer


def right_holder(view: View, resource: str) -> Right | None:
    """Who holds the right now; None if no log is known."""
    key = f"right {resource}"
    if key not in view.memo:
        view.memo[key] = _find_holder(view, resource)
    found = view.memo[key]
    assert found is None or isinstance(found, Right)
    return found


def _find_holder(view: View, resource: str) -> Right | None:
    nr, producer = newest_log(view, resource)
    if not nr:
        return None
    holder, mark, stamp = producer, None, 0
    while True:
        grant = view.granted(resource, holder)
        given = view.stamp(paths.granted(resource, holder))
        if grant is None or not grant.host or given <= stamp:
            return Right(holder, nr, producer, mark, stamp)
        if (grant.mark.pos.nr, grant.mark.pos.producer) != (nr, producer):
            return Right(holder, nr, producer, mark, stamp)
        holder, mark, stamp = grant.host, grant.mark, given
