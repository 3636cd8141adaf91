"""What should run now: a pure function of the tree's view and of what this host knows about itself.

    plan(view, resource, host, local) -> Plan(wanted activities, with the reason for each one that is not wanted)

Nothing here opens, waits or writes. The runner (`resource.py`) starts and stops activities until reality matches the plan, and
publishes the reasons, so that no stall is silent.

Who may append the next log (rule 18), as a table over the newest log N that any version link knows, its producer P and P's grant:

    P == host   grant for (N) to another host          no: the right is with that host
    P == host   no grant, or to the own host           yes
    P != host   grant (host, N, end, digest), and the own replayed end is just that     yes
    P != host   the same, own end not there yet        not yet: fetch and replay
    P != host   no such grant                          no; only by force: designated primary with connect off (facts 5.2)
    no log at all                                      yes if this host is the designated primary and created the resource
"""
from __future__ import annotations

from dataclasses import dataclass, field

from marsx.base.position import LogPos
from marsx.tree import paths
from marsx.tree.view import View

NONE = "(none)"


@dataclass(frozen=True)
class Local:
    """What the host knows about itself beyond the tree. `at`, `digest`: disk position; `fetched`: end of the verified local log."""

    attached: bool = False
    primary: bool = False               # the volume serves, or could
    recovered: bool = False             # disk position is known
    at: LogPos | None = None
    digest: str = ""
    fetched: LogPos | None = None
    fetched_digest: str = ""
    trouble: str = ""                   # an error that stops the resource until somebody acts
    shutdown: bool = False
    connected: frozenset[str] = frozenset()
    sync_slots: int = 1                 # free ones for this resource
    role_durable: bool = True           # `primary` is durable in the own tree (rule 21)
    never_had_log: bool = False


@dataclass
class Plan:
    """Wanted activities; `why` explains each that is not (key -> text for people)."""

    attach: bool = False
    primary: bool = False
    keep_primary: bool = False          # device in use or no grant possible: do not take it away yet
    grant_to: str = ""                  # give the right away to this host now
    fetch_from: str = ""
    replay: bool = False
    sync_from: str = ""
    why: dict[str, str] = field(default_factory=dict)


def newest_log(view: View, resource: str) -> tuple[int, str]:
    """(number, producer) of the newest log that any version link knows; (0, "") if none. An empty log counts: its producer took the right."""
    best = (0, "")
    for host, links in view.version_texts(resource).items():
        for nr in links:
            version = view.version(resource, host, nr)
            if version is not None and version.end.pos.nr > best[0]:
                best = (version.end.pos.nr, version.end.pos.producer)
    return best


def may_produce(view: View, resource: str, host: str, local: Local) -> tuple[bool, str]:
    """May `host` append the next log now? (yes, or why not). The table on top."""
    nr, producer = newest_log(view, resource)
    if nr == 0:
        return local.never_had_log, "" if local.never_had_log else "no log of this resource is known"
    grant = view.granted(resource, producer)
    valid = grant is not None and grant.mark.pos.nr == nr and grant.mark.pos.producer == producer
    if producer == host:
        if valid and grant is not None and grant.host not in ("", host):
            return False, f"the right to write was given to {grant.host}"
        return True, ""
    if valid and grant is not None and grant.host == host:
        if local.at is not None and local.at.order >= grant.mark.pos.order and local.digest == grant.mark.digest:
            return True, ""
        if local.at is not None and local.at.producer != producer and local.at.pos == 0 and grant.mark.pos.pos == 0:
            return True, ""
        return False, f"log up to {grant.mark.pos} is not replayed yet"
    if view.designated(resource) == host and not view.todo(resource, host, "connect"):
        return True, ""
    return False, f"{producer} has not granted the right to write to this host"


def waiting_hosts(view: View, resource: str, host: str) -> list[str]:
    """Who wants to become primary, in the order of the wishes; the designated primary first."""
    wanting = [(view.stamp(paths.want_primary(resource, other)), other) for other in view.members(resource)
               if other != host and view.want_primary(resource, other) not in ("", "0")]
    order = [other for _, other in sorted(wanting)]
    designated = view.designated(resource)
    if designated and designated != host and designated in view.members(resource):
        order = [designated, *[other for other in order if other != designated]]
    return order


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
    if local.trouble:
        want.why["trouble"] = local.trouble
        return want
    _plan_role(view, resource, host, local, want)
    if want.attach and not want.primary and not local.primary:
        _plan_secondary(view, resource, host, local, want)
    return want


def _plan_role(view: View, resource: str, host: str, local: Local, want: Plan) -> None:
    designated = view.designated(resource)
    if designated == host and want.attach:
        allowed, why = (True, "") if local.primary else may_produce(view, resource, host, local)
        if not allowed:
            want.why["primary"] = why
        elif not local.role_durable:
            want.why["primary"] = "the role is not durable here yet"
        elif not local.primary and not view.consistent(resource, host) and not _forced(view, resource, host):
            want.why["primary"] = "this replica is not consistent"
        else:
            want.primary = True
        return
    if designated != host and not local.primary and local.attached and not local.role_durable:
        return
    if not local.primary:
        waiting = waiting_hosts(view, resource, host)
        if waiting and designated in ("", waiting[0]):
            nr, producer = newest_log(view, resource)
            grant = view.granted(resource, host)
            given = grant is not None and grant.mark.pos.nr == nr and grant.host not in ("", host)
            if producer == host and not given and local.recovered:
                want.grant_to = waiting[0]
        if designated == "":
            want.why["primary"] = "no primary is designated"


def _forced(view: View, resource: str, host: str) -> bool:
    return view.designated(resource) == host and not view.todo(resource, host, "connect")


def _plan_secondary(view: View, resource: str, host: str, local: Local, want: Plan) -> None:
    if not local.attached or not local.recovered:
        want.why["replay"] = "not attached yet"
        return
    source = _fetch_source(view, resource, host, local)
    if not view.todo(resource, host, "connect"):
        want.why["fetch"] = "switched off (marsadm connect)"
    elif not source:
        want.why["fetch"] = "no connected host offers this log"
    else:
        want.fetch_from = source
    if view.todo(resource, host, "allow-replay"):
        want.replay = True
    else:
        want.why["replay"] = "switched off (marsadm resume-replay)"
    _plan_sync(view, resource, host, local, want)


def _fetch_source(view: View, resource: str, host: str, local: Local) -> str:
    """The preferred connected host (facts 7.5): the list of connect-H, else the primary, else the producer of the newest log, else anyone."""
    members = [other for other in view.members(resource) if other != host and other in local.connected]
    listed = [other for other in view.connect_pref(resource, host) if other in members]
    if listed:
        return listed[0]
    primaries = [other for other in view.actual_primaries(resource) if other in members]
    _, producer = newest_log(view, resource)
    for other in (view.designated(resource), *primaries, producer):
        if other in members:
            return other
    return members[0] if members else ""


def _plan_sync(view: View, resource: str, host: str, local: Local, want: Plan) -> None:
    if view.sync_rest(resource, host) <= 0:
        return
    primary = view.designated(resource)
    if not view.todo(resource, host, "sync"):
        want.why["sync"] = "switched off (marsadm resume-sync)"
    elif not primary or primary == host:
        want.why["sync"] = "no primary is designated that could be the source"
    elif view.actual(resource, primary, "is-primary") != "1":
        want.why["sync"] = f"{primary} is not primary yet"
    elif primary not in local.connected:
        want.why["sync"] = f"{primary} is not connected"
    elif local.sync_slots <= 0:
        want.why["sync"] = "waits for a free slot (sync limit)"
    elif not view.todo(resource, host, "connect"):
        want.why["sync"] = "waits for the log: fetch is switched off (marsadm connect)"
    else:
        want.sync_from = primary
