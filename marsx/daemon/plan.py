"""What should run now: a pure function of the tree's view and of what this host knows about itself.

    plan(view, resource, host, local) -> Plan(wanted activities, with the reason for each one that is not wanted)

Nothing here opens, waits or writes. The runner (`resource.py`) starts and stops activities until reality matches the
plan, and publishes the reasons, so that no stall is silent.

Who may append the next log (rule 18): the holder of the right (`tree.roles`), as a table:

    holder  by              own replayed end                    may append
    me      producing N     (he knows it)                       yes
    me      a grant         is just the granted end             yes
    me      a grant         not there yet                       not yet: fetch and replay; by force yes
    other   -               -                                   no; by force yes
    nobody  no log is known resource was created here           yes
    (by force: designated, and connect is off; facts 5.2)

Who passes the right on, and to whom: the holder that is not primary, to the designated primary, else to the host with
the newest wish (an old one may be that of a marsadm that was killed); only to a host that can hear it, only from the
true end of the log (a producer: when its own log is replayed to its end; a grantee: the end that was granted to it). A
grantee that wants the role itself keeps the right until somebody asks anew, else two hosts that want would hand it to
and fro.
"""
from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from marsx.base.position import LogPos
from marsx.daemon.space import STOP_SYNC
from marsx.tree import paths
from marsx.tree.roles import Right, gap_ahead, right_holder
from marsx.tree.view import Mark, View


@dataclass(frozen=True)
class Local:
    """What the host knows about itself beyond the tree. `at`, `digest`: disk position; `fetched`: end of the verified
    local log."""

    attached: bool = False
    primary: bool = False  # the volume serves, or could
    recovered: bool = False  # disk position is known
    at: LogPos | None = None
    digest: str = ""
    fetched: LogPos | None = None
    fetched_digest: str = ""
    trouble: str = ""  # an error that stops the resource until somebody acts
    replay_trouble: str = ""  # an error of the data device: the log is still fetched, nothing rests on the disk
    shutdown: bool = False
    connected: frozenset[str] = frozenset()
    sync_slots: int = 1  # free ones for this resource
    role_durable: bool = True  # `primary` is durable in the own tree (rule 21)
    never_had_log: bool = False
    clock_problem: str = ""  # why the own clock cannot be trusted (rule 25)
    hold: str = ""  # what has to be cleared up before this host writes or grants (rule 22)
    ahead: str = ""  # who has more of this host's own log


@dataclass
class Plan:
    """Wanted activities; `why` explains each that is not (key -> text for people)."""

    attach: bool = False
    primary: bool = False
    grant_to: str = ""  # give the right away to this host now
    fetch_from: str = ""
    replay: bool = False
    sync_from: str = ""
    why: dict[str, str] = field(default_factory=dict)


def may_produce(view: View, resource: str, host: str, local: Local) -> tuple[bool, str]:
    """May `host` append the next log now? (yes, or why not). The table on top."""
    right = right_holder(view, resource)
    if right is None:
        return local.never_had_log, "" if local.never_had_log else "no log of this resource is known"
    if forced(view, resource, host):
        return True, ""
    if right.host == host:
        if right.mark is None:
            return True, ""
        if _is_at(view, resource, host, local, right.mark):
            return True, ""
        return False, f"the log up to {right.mark.pos} is not replayed yet"
    return False, f"{right.host} has not granted the right to write to this host"


def _is_at(view: View, resource: str, host: str, local: Local, mark: Mark) -> bool:
    """Is the disk at this position? The beginning of an empty log is the end of the log before it (rule 7)."""
    if local.at is None:
        return False
    if local.at.pos == 0 and local.at.nr == mark.pos.nr + 1:
        version = view.version(resource, host, local.at.nr)
        return version is not None and version.end.pos == local.at and version.previous == mark
    return (local.at, local.digest) == (mark.pos, mark.digest)


def waiting_hosts(view: View, resource: str, host: str) -> list[str]:
    """Who wants to become primary, the newest wish first; before all the designated primary."""
    members = view.members(resource)
    order = [other for other in members if other != host and view.want_primary(resource, other)]
    order.sort(key=lambda other: (view.stamp(paths.want_primary(resource, other)), other), reverse=True)
    designated = view.designated(resource)
    if designated in members and designated != host:
        order = [designated, *[other for other in order if other != designated]]
    return order


def cannot_follow(view: View, resource: str, host: str) -> str:
    """Why the primary `host` must not give its role to who waits for it, "" if it may. Who is designated without having
    waited was forced."""
    waiting = "" if view.designated(resource) else next(iter(waiting_hosts(view, resource, host)), "")
    if waiting and gap_ahead(view, resource, waiting, host):
        return (f"{waiting} waits for the primary role, but what went past the log here is not there yet: make room in "
                "/mars if it is full; it heals by itself")
    return ""


def grant_to(view: View, resource: str, host: str, local: Local) -> str:
    """To whom `host`, which is not primary, passes the right to write on now; "" for nobody. See the module."""
    right, designated = right_holder(view, resource), view.designated(resource)
    if right is None or right.host != host or designated == host or local.hold or not _at_the_end(right, local):
        return ""
    waiting = waiting_hosts(view, resource, host)
    if designated:
        waiting = waiting[:1]
    elif view.want_primary(resource, host):
        waiting = [other for other in waiting if view.stamp(paths.want_primary(resource, other)) > right.since]
    return next((other for other in waiting if other in local.connected), "")


def _at_the_end(right: Right, local: Local) -> bool:
    """Is the end of the log known here? After a crash the disk position lies before it. A right that came by a grant
    (also by one to oneself, on stepping down) carries the end with it: it can be passed on while detached."""
    if right.mark is not None:
        return True
    if not local.recovered:
        return False
    return (local.at is not None and (local.at.nr, local.at.producer) == (right.nr, right.producer)
            and local.at == local.fetched and bool(local.digest) and local.digest == local.fetched_digest)


def plan(view: View, resource: str, host: str, local: Local) -> Plan:
    """See the module."""
    want = Plan()
    if host not in view.members(resource):
        want.why["member"] = "this host is not a member"
        return want
    if local.shutdown:
        want.why["attach"] = "marsd is shutting down"
        return want
    want.attach = view.todo(resource, host, "attach")
    if not want.attach:
        want.why["attach"] = "switched off (marsadm attach)"
    if local.trouble or local.replay_trouble:
        # What serves goes on serving: only the role's end, or people, take a device away.
        want.primary = local.primary and want.attach and view.designated(resource) == host
        if local.trouble:
            want.why["trouble"] = local.trouble
        elif want.attach and not local.primary and local.attached and local.recovered:
            want.why["replay"] = local.replay_trouble
            _plan_fetch(view, resource, host, local, want)
        return want
    _plan_role(view, resource, host, local, want)
    if want.attach and not want.primary and not local.primary:
        _plan_secondary(view, resource, host, local, want)
    return want


def _plan_role(view: View, resource: str, host: str, local: Local, want: Plan) -> None:
    designated = view.designated(resource)
    if not local.role_durable:
        want.primary = local.primary and want.attach
        want.why["primary"] = "the role is not durable here yet"
    elif designated != host:
        want.grant_to = "" if local.primary else grant_to(view, resource, host, local)
        if not designated:
            want.why["primary"] = "no primary is designated"
    elif want.attach:
        want.why["primary"] = "" if local.primary else _why_not(view, resource, host, local)
        want.primary = not want.why["primary"]
        if want.primary:
            del want.why["primary"]


def _why_not(view: View, resource: str, host: str, local: Local) -> str:
    """Why the designated primary cannot begin yet, or ""."""
    if local.clock_problem:
        return local.clock_problem
    if local.hold and not forced(view, resource, host):
        return local.hold
    allowed, why = may_produce(view, resource, host, local)
    if not allowed:
        return why
    if ignores_sync(view, resource, host) or _has_taken(view, resource, host):
        return ""
    if not view.consistent(resource, host):
        return "this replica is not consistent"
    if _is_mixture(view, resource, host, local):
        return "the disk is a mixture of states behind which the logs end"
    return ""


def _has_taken(view: View, resource: str, host: str) -> bool:
    """Was this disk made a device by --ignore-sync, and does the newest log come from here? Then what was written on it
    is the newest there is: it goes on after a restart."""
    right = right_holder(view, resource)
    return bool(view.actual(resource, host, "taken")) and right is not None and right.host == host == right.producer


def _is_mixture(view: View, resource: str, host: str, local: Local) -> bool:
    """Do the logs end inside of a window that was being written to the disk (rule 12)?"""
    until = view.mixed_until(resource, host)
    return until is not None and local.fetched is not None and local.fetched.order < until.order


def forced(view: View, resource: str, host: str) -> bool:
    """Only where `primary --force` has said so itself: a designated host that is disconnected may just be waiting."""
    return (view.designated(resource) == host and not view.todo(resource, host, "connect")
            and is_force(view.want_primary(resource, host)))


def is_force(wish: str) -> bool:
    """A want-primary of `primary --force`."""
    return wish.startswith((paths.FORCE, paths.IGNORE_SYNC))


def stale_force(view: View, resource: str, host: str) -> bool:
    """The wish of `primary --force` is over: another host is designated, or this one is connected again."""
    return is_force(view.want_primary(resource, host)) and not forced(view, resource, host)


def ignores_sync(view: View, resource: str, host: str) -> bool:
    """Force alone does not make half a disk a device."""
    return (forced(view, resource, host)
            and view.want_primary(resource, host).startswith(paths.IGNORE_SYNC))


def _plan_secondary(view: View, resource: str, host: str, local: Local, want: Plan) -> None:
    if not local.attached or not local.recovered:
        want.why["replay"] = "not attached yet"
        return
    _plan_fetch(view, resource, host, local, want)
    if view.todo(resource, host, "allow-replay"):
        want.replay = True
    else:
        want.why["replay"] = "switched off (marsadm resume-replay)"
    _plan_sync(view, resource, host, local, want)


def _plan_fetch(view: View, resource: str, host: str, local: Local, want: Plan) -> None:
    source = _fetch_source(view, resource, host, local)
    if not view.todo(resource, host, "connect"):
        want.why["fetch"] = "switched off (marsadm connect)"
    elif not source:
        want.why["fetch"] = "no connected host offers this log"
    else:
        want.fetch_from = source


def _fetch_source(view: View, resource: str, host: str, local: Local) -> str:
    """Who has more of our own log; else the preferred connected host (facts 7.5): the list of connect-H, else the
    primary, else the producer of the newest log, else anyone."""
    members = [other for other in view.members(resource) if other != host and other in local.connected]
    if local.ahead in members:
        return local.ahead
    listed = [other for other in view.connect_pref(resource, host) if other in members]
    if listed:
        return listed[0]
    primaries = [other for other in view.actual_primaries(resource) if other in members]
    right = right_holder(view, resource)
    for other in (view.designated(resource), *primaries, right.producer if right else ""):
        if other in members:
            return other
    return members[0] if members else ""


def _plan_sync(view: View, resource: str, host: str, local: Local, want: Plan) -> None:
    if view.sync_rest(resource, host) <= 0:
        return
    source, why = sync_source(view, resource, host, local.connected)
    if source and local.sync_slots <= 0:
        source, why = "", "waits for a free slot (sync limit)"
    want.sync_from = source
    if why:
        want.why["sync"] = why


def sync_source(view: View, resource: str, host: str, connected: Collection[str]) -> tuple[str, str]:
    """(whom `host` would sync from, or why from nobody), if there were slots without end."""
    primary = view.designated(resource)
    if not view.todo(resource, host, "sync"):
        return "", "switched off (marsadm resume-sync)"
    if not primary or primary == host:
        return "", "no primary is designated that could be the source"
    if view.actual(resource, primary, "is-primary") != "1":
        return "", f"{primary} is not primary yet"
    if primary not in connected:
        return "", f"{primary} is not connected"
    if view.has_emergency(resource, primary):
        return "", f"{primary} is in emergency mode: /mars is full there"
    if view.emergency(host) >= STOP_SYNC:
        return "", "/mars is too full here"
    if not view.todo(resource, host, "connect"):
        return "", "waits for the log: fetch is switched off (marsadm connect)"
    return primary, ""
