"""What follows from a picture of the tree beyond single entries: how far a replica is, who holds the role, split brain.

Amounts are bytes of log. They are counted along the version links: log N ends where the links say, so the distance from
(5, 1000) to (7, 200) is the rest of 5, all of 6 and 200 bytes of 7.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from marsx.base.errors import DamagedError
from marsx.base.position import LogPos
from marsx.log import chain
from marsx.tree.roles import right_holder
from marsx.tree.view import View


def histories(view: View, resource: str) -> dict[str, chain.History]:
    """The version links of every member by log number; a link that cannot be read is left out."""
    texts = view.version_texts(resource)
    return {host: _parsed(texts.get(host, {})) for host in view.members(resource)}


def _parsed(texts: Mapping[int, str]) -> dict[int, chain.VersionLink]:
    found = {}
    for nr, text in texts.items():
        with contextlib.suppress(DamagedError):
            found[nr] = chain.VersionLink.parse(text)
    return found


def split_brain(view: View, resource: str) -> str:
    """Who has parted from whom, or ""."""
    verdict = chain.split_brain(histories(view, resource))
    return str(verdict) if verdict else ""


def ends(view: View, resource: str) -> dict[int, int]:
    """Where each log ends, as far as any member knows it."""
    known: dict[int, int] = {}
    for host in view.members(resource):
        for nr in view.version_numbers(resource, host):
            link = view.version(resource, host, nr)
            if link is not None:
                known[nr] = max(known.get(nr, 0), link.end.pos.pos)
    return known


def distance(known: Mapping[int, int], start: LogPos | None, end: LogPos | None) -> int:
    """Bytes of log from `start` to `end`; 0 when there is nothing between them or one is not known."""
    if start is None or end is None or start >= end:
        return 0
    if start.nr == end.nr:
        return end.pos - start.pos
    between = sum(pos for nr, pos in known.items() if start.nr < nr < end.nr)
    return max(0, known.get(start.nr, start.pos) - start.pos) + between + end.pos


def newest(view: View, resource: str) -> LogPos | None:
    """The newest position that any member has."""
    return max((pos for host in view.members(resource) if (pos := tip(view, resource, host))), default=None)


def tip(view: View, resource: str, host: str) -> LogPos | None:
    """The end of the newest log that `host` has a link for."""
    numbers = view.version_numbers(resource, host)
    link = view.version(resource, host, numbers[-1]) if numbers else None
    return link.end.pos if link else None


def replayed(view: View, resource: str, host: str) -> LogPos | None:
    """Everything before it is on the disk of `host`."""
    found = view.replay(resource, host)
    return found.pos if found else None


def fetched(view: View, resource: str, host: str) -> LogPos | None:
    """How far `host` has the log: what it says, else what its links and its replay show."""
    said = view.fetched(resource, host)
    candidates = [said.pos if said else None, tip(view, resource, host), replayed(view, resource, host)]
    return max((pos for pos in candidates if pos), default=None)


def fetch_rest(view: View, resource: str, host: str) -> int:
    """Bytes of log that are known in the cluster and not here."""
    return distance(ends(view, resource), fetched(view, resource, host), newest(view, resource))


def replay_rest(view: View, resource: str, host: str) -> int:
    """Bytes of log that are here and not yet on the disk."""
    return distance(ends(view, resource), replayed(view, resource, host), fetched(view, resource, host))


def up_to_date(view: View, resource: str, host: str) -> bool:
    """Consistent, and nothing known is missing."""
    return (
        view.consistent(resource, host)
        and replayed(view, resource, host) is not None
        and not fetch_rest(view, resource, host)
        and not replay_rest(view, resource, host)
    )


def role_holder(view: View, resource: str) -> str:
    """Who may append the next log (rule 18); "" if nobody is known."""
    right = right_holder(view, resource)
    return right.host if right else ""


def has_more(view: View, resource: str, other: str, host: str) -> str:
    """Up to where `other` continues the history of `host` (rule 23), or ""; what it was synced to counts too."""
    known = histories(view, resource)
    if chain.relation(known[host], known[other]).verdict == "b_ahead":
        return str(tip(view, resource, other))
    here, bound = fetched(view, resource, host), view.syncpos(resource, other)
    if bound and here and bound.pos > here:
        return f"{bound.pos}, the end of its sync"
    return ""
