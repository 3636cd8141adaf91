"""What follows from a picture of the tree beyond single entries: positions of a replica, the role, a split brain."""

from __future__ import annotations

from contextlib import suppress

from marsx.base.position import LogPos
from marsx.log import chain
from marsx.tree.distance import LogMap
from marsx.tree.roles import right_holder
from marsx.tree.view import View


def histories(view: View, resource: str) -> dict[str, chain.History]:
    """The version links of every member by log number; a link that cannot be read is left out."""
    return chain.histories(view.version_texts(resource), view.members(resource))


def split_brain(view: View, resource: str) -> str:
    """Who has parted from whom, or ""."""
    verdict = chain.split_brain(histories(view, resource))
    return str(verdict) if verdict else ""


def tip(view: View, resource: str, host: str) -> LogPos | None:
    """The end of the newest log that `host` has a link for."""
    return LogMap(view, resource).tip(host)


def fetched(view: View, resource: str, host: str) -> LogPos | None:
    """How far `host` has the log, and it holds."""
    sound = view.sound(resource, host)
    return sound.pos if sound else LogMap(view, resource).fetched(host)


def fetch_rest(view: View, resource: str, host: str) -> int:
    """Bytes of log that are known in the cluster and not here."""
    return LogMap(view, resource).fetch_rest(host)


def replay_rest(view: View, resource: str, host: str) -> int:
    """Bytes of log that are here and not yet on the disk."""
    return LogMap(view, resource).replay_rest(host)


def up_to_date(view: View, resource: str, host: str) -> bool:
    """Consistent, and nothing known is missing."""
    logs = LogMap(view, resource)
    return (
        view.consistent(resource, host)
        and logs.replayed(host) is not None
        and not logs.fetch_rest(host)
        and not logs.replay_rest(host)
    )


def role_holder(view: View, resource: str) -> str:
    """Who may append the next log (rule 18); "" if nobody is known."""
    right = right_holder(view, resource)
    return right.host if right else ""


def has_more(view: View, resource: str, other: str, host: str) -> str:
    """Up to where `other` continues the history of `host` (rule 23), or ""; what it was synced to counts too. Of logs
    that are damaged only what holds counts."""
    known = histories(view, resource)
    for one in (host, other):
        sound = view.sound(resource, one)
        with suppress(ValueError):  # of another host: it may be anything
            known[one] = chain.ending_at(known[one], chain.Point(sound.digest, sound.pos)) if sound else known[one]
    if chain.relation(known[host], known[other]).verdict == "b_ahead":
        return str(chain.end_of(known[other]))
    here, bound = fetched(view, resource, host), view.syncpos(resource, other)
    if bound and here and bound.pos > here:
        return f"{bound.pos}, the end of its sync"
    return ""
