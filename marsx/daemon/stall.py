"""No stall is silent: what is switched on and should move, does not for `stuck_seconds`, and why.

    every few seconds: works (what is wanted and has something to do, and how far it is) -> Watch (what stands still)
    -> clues of it -> the table CAUSES (the first that fits) -> message, fact `stalled`

Said of a resource: `actual-H/stalled` (ACTIVITY=CAUSE,..., `-` for none) and one message for each activity that stands
still, `err-stall-ACTIVITY` where something is broken, `wrn-stall-ACTIVITY` where somebody has to decide. Said of the
host: `unreachable` (HOST=REASON,..., at once) and `err-stall-connect`. A message is taken back as soon as it moves.

| activity | has something to do while | moves |
|---|---|---|
| attach | the data device cannot be opened | - |
| resource | it is stopped by a trouble | when it is another one |
| primary | designated, and not primary | with replay and fetch |
| write | on the primary: writers wait for room | - |
| writeback | on the primary: the log holds what is not on the disk | with the disk position |
| fetch | a member that can be reached has more log, or none can be reached | with the end of the copy |
| replay | the copy goes on behind the disk position | with the disk position |
| sync | not everything is synced | with each span |
| delete | old logs are here that only some members still need | with what these have done |

Invariants: what a switch has off is never called a stall; the reason is only looked for after the time is over.
"""
from __future__ import annotations

import errno
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from marsx.base import messages
from marsx.base.errors import DamagedError
from marsx.base.position import LogPos
from marsx.peer.wire import PeerError, Reason
from marsx.tree import paths
from marsx.tree.distance import LogMap
from marsx.tree.view import View
from marsx.volume.env import NoRoomError

if TYPE_CHECKING:
    from marsx.daemon.resource import Runner
    from marsx.daemon.worker import Worker

LOG = messages.get("daemon.stall")
ACTIVITIES = ("attach", "resource", "primary", "write", "writeback", "fetch", "replay", "sync", "delete")
DEAD_S = 30.0
LOOK_MOST_S = 5.0
FULL = (errno.ENOSPC, errno.EDQUOT)
UNREACHABLE_MAX = 1000  # characters of the fact

# What a failed connection or stream means.
MEANINGS = {
    Reason.PROTO: "version",
    Reason.TIMEOUT: "peer-silent", Reason.SILENT: "peer-silent", Reason.STALLED: "peer-silent",
    Reason.REFUSED: "peer-down", Reason.UNREACHABLE: "peer-down", Reason.LOST: "peer-down", Reason.CLOSED: "peer-down",
    Reason.TLS: "peer-refuses", Reason.UUID: "peer-refuses", Reason.NAME: "peer-refuses", Reason.AUTH: "peer-refuses",
    Reason.NOT_MEMBER: "peer-refuses", Reason.OUTCAST: "peer-refuses",
    Reason.CERTIFICATE: "peer-refuses", Reason.SERVICE: "version",
    Reason.BUSY: "peer-refuses", Reason.GARBAGE: "version", Reason.FAILED: "peer-failed",
    Reason.SPLIT: "split-brain", Reason.MISSING: "log-missing", Reason.BEHIND: "source-behind",
}


class Holder(NamedTuple):
    """A member whose replica still needs logs that the others do not need. `kind`: see `_holder`."""

    host: str
    kind: str
    text: str


@dataclass(frozen=True)
class Clues:
    """What is known about something that stands still."""

    room: str = ""
    """Who waits for room in /mars."""
    missing: str = ""
    damage: str = ""
    trouble: str = ""
    error: Exception | None = None
    """Why the connection or stream that it needs failed last."""
    why: str = ""
    """Why the planner does not want it to run."""
    limits: str = ""
    """Limits of bandwidth in force."""
    source: str = ""
    """From whom it comes, when that host is connected."""
    disk: str = ""
    """The data device that it writes to, and nothing else is known to hinder it."""
    after: str = ""
    """The activity that has to come first."""
    holders: tuple[Holder, ...] = ()


class Cause(NamedTuple):
    """One row of the table: `text` says it, "" when it is not this. `urgent`: something is broken."""

    code: str
    urgent: bool
    text: Callable[[Clues], str]
    hint: str


def meaning(error: Exception | None) -> str:
    """The cause that an error shows, "" for none."""
    if error is None:
        return ""
    if isinstance(error, PeerError):
        return MEANINGS[error.reason]
    if isinstance(error, DamagedError):
        return "log-corrupt"
    full = isinstance(error, NoRoomError) or (isinstance(error, OSError) and error.errno in FULL)
    return "no-room" if full else "failed"


def _shows(code: str) -> Callable[[Clues], str]:
    def text(clues: Clues) -> str:
        return getattr(clues.error, "text", str(clues.error)) if meaning(clues.error) == code else ""
    return text


def _or(attribute: str, code: str) -> Callable[[Clues], str]:
    def text(clues: Clues) -> str:
        return str(getattr(clues, attribute)) or _shows(code)(clues)
    return text


def _held(kind: str) -> Callable[[Clues], str]:
    def text(clues: Clues) -> str:
        return "; ".join(holder.text for holder in clues.holders if holder.kind == kind)
    return text


def _waits(starts: str) -> Callable[[Clues], str]:
    return lambda clues: clues.why if clues.why.startswith(starts) else ""


NO_SLOT = "waits for a free slot"
CAUSES = (
    Cause("no-room", True, _or("room", "no-room"),
          "make room in /mars: marsadm log-delete-all; mars-status --history shows what holds logs back"),
    Cause("log-missing", True, _or("missing", "log-missing"),
          "start a member that has that log, or: marsadm invalidate"),
    Cause("log-corrupt", True, _or("damage", "log-corrupt"),
          "start a member that has that log whole; if nobody has: marsadm invalidate"),
    Cause("stopped", True, lambda clues: clues.trouble, "after repair: marsadm detach, then attach"),
    Cause("split-brain", True, _shows("split-brain"), "decide whose data count, on the others: marsadm invalidate"),
    Cause("version", True, _shows("version"), "run the same mars.pyz on all hosts"),
    Cause("peer-refuses", True, _shows("peer-refuses"), "see the text; often: marsadm join-cluster again"),
    Cause("peer-silent", True, _shows("peer-silent"), "look at marsd there (marsd status), and at the network between"),
    Cause("peer-down", True, _shows("peer-down"), "start the host or marsd there"),
    Cause("peer-failed", True, _shows("peer-failed"), "see mars-status and marsd.log there"),
    Cause("source-behind", False, _shows("source-behind"), "connect the member that has the newest log"),
    Cause("no-slot", False, _waits(NO_SLOT), "marsadm set-sync-limit-value raises the limit"),
    Cause("member-dead", True, _held("member-dead"), "start that host, or give its replica up: marsadm leave-resource"),
    Cause("member-stuck", True, _held("member-stuck"), "see what is said of it there"),
    Cause("member-paused", False, _held("member-paused"), "switch it on there, or give the replica up"),
    Cause("rate-limit", False, lambda clues: clues.limits, "raise or remove the limit (0 = none)"),
    Cause("waits", False, lambda clues: clues.why, ""),
    Cause("after", False, lambda clues: clues.after and f"waits for the {clues.after}", ""),
    Cause("failed", True, _shows("failed"), "see marsd.log"),
    Cause("peer-silent", True, lambda clues: clues.source and f"{clues.source} is connected but sends nothing",
          "look at marsd.log there"),
    Cause("device", True, lambda clues: clues.disk and f"{clues.disk} takes no writes", "look at that device (dmesg)"),
    Cause("unknown", True, lambda clues: "this host cannot see why", "see marsd.log here and on the primary"),
)


def judge(clues: Clues) -> tuple[Cause, str]:
    """(cause, what is wrong)."""
    return next((cause, text) for cause in CAUSES if (text := cause.text(clues)))


class Watch:
    """Remembers since when each thing stands where it stands. Pure but for the clock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[Hashable, float]] = {}

    def stuck(self, marks: Mapping[str, Hashable], seconds: float) -> dict[str, float]:
        """Name -> for how long, of what has not moved for `seconds` (0: nothing ever is)."""
        now = self._clock()
        self._seen = {name: self._seen[name] if name in self._seen and self._seen[name][0] == mark else (mark, now)
                      for name, mark in marks.items()}
        return {name: now - since for name, (_, since) in self._seen.items() if 0 < seconds <= now - since}


# ---- what should move ----

def works(runner: Runner) -> dict[str, Hashable]:
    """Activity -> mark, of all that is wanted and has something to do now."""
    view, resource, host = runner.site.view(), runner.resource, runner.site.host
    if host not in view.members(resource) or not view.todo(resource, host, "attach"):
        return {}
    found: dict[str, Hashable] = {}
    if runner.trouble or runner.replay_trouble:
        found["resource"] = runner.trouble or runner.replay_trouble
    elif runner.disk_fd < 0:
        found["attach"] = 0
    if runner.producer is not None:
        found.update(_primary_works(runner))
    elif runner.consumer is not None and not runner.trouble:
        found.update(_secondary_works(view, runner))
        if view.designated(resource) == host:
            found["primary"] = (runner.consumer.at, found.get("fetch"))
    held = holders(view, runner)
    if held:
        found["delete"] = tuple(_progress(view, resource, holder.host) for holder in held)
    return found


def _primary_works(runner: Runner) -> Iterator[tuple[str, Hashable]]:
    assert runner.producer is not None
    volume = runner.producer.primary.volume
    state = volume.state if volume is not None else {}
    if state.get("stalled_ns"):
        yield "write", state["stalled_ns"]
    if state.get("writeback_rest"):
        yield "writeback", (state["nr"], state["appended"] - state["writeback_rest"])


def _secondary_works(view: View, runner: Runner) -> Iterator[tuple[str, Hashable]]:
    consumer, resource, host = runner.consumer, runner.resource, runner.site.host
    assert consumer is not None
    copy, others = consumer.copy, [other for other in view.members(resource) if other != host]
    if copy is None:
        return
    if others and view.todo(resource, host, "connect") and _may_fetch(view, runner, others, copy.at):
        yield "fetch", copy.at
    if view.todo(resource, host, "allow-replay") and consumer.at is not None and consumer.at < copy.at:
        if LogMap(view, resource).distance(consumer.at, copy.at):
            yield "replay", consumer.at
    if view.todo(resource, host, "sync") and view.sync_rest(resource, host) > 0:
        yield "sync", (view.syncstatus(resource, host), consumer.count.total.get("sync"))


def _may_fetch(view: View, runner: Runner, others: list[str], at: LogPos) -> bool:
    """Somebody who can be reached has more, or nobody can be reached."""
    reachable = [other for other in others if other in runner.site.reachable()]
    logs = LogMap(view, runner.resource)
    return not reachable or any(logs.distance(at, logs.tip(other)) for other in reachable)


# ---- logs that cannot be deleted ----

def holders(view: View, runner: Runner) -> tuple[Holder, ...]:
    """The members for whose sake old logs are kept here that nobody else needs, this host neither."""
    resource, host = runner.resource, runner.site.host
    numbers = sorted(log.nr for log in runner.site.store.log_files(resource))
    needed = {member: view.first_needed(resource, member) for member in view.members(resource)}
    if len(numbers) < 2 or not needed:
        return ()
    lowest = min(needed.values())
    then = min((nr for nr in (*needed.values(), numbers[-1]) if nr > lowest), default=lowest)
    if needed.get(host) == lowest or not any(lowest <= nr < then for nr in numbers):
        return ()
    heard = {**runner.site.heard(), host: 0.0}
    return tuple(_holder(view, resource, member, heard) for member, nr in needed.items() if nr == lowest)


def _holder(view: View, resource: str, host: str, heard: Mapping[str, float]) -> Holder:
    for switch, what in (("attach", "is detached"), ("allow-replay", "has its replay switched off"),
                         ("connect", "has its fetch switched off")):
        if not view.todo(resource, host, switch):
            on = {"attach": "attach", "allow-replay": "resume-replay", "connect": "connect"}[switch]
            return Holder(host, "member-paused",
                          f"{host} {what} and still needs old logs, which cannot be deleted (marsadm {on} {resource})")
    if heard.get(host, DEAD_S) >= DEAD_S:
        return Holder(host, "member-dead", f"{host} was not heard of for a long time and still needs old logs")
    stalled = view.actual(resource, host, "stalled").strip("-")
    return Holder(host, "member-stuck", f"{host} still needs old logs and does not get on"
                                        + (f" ({stalled.replace('=', ': ')})" if stalled else ""))


def _progress(view: View, resource: str, host: str) -> Hashable:
    return host, view.replay(resource, host), view.fetched(resource, host), view.syncstatus(resource, host)


# ---- why it does not ----

def clues(runner: Runner, activity: str, errors: Mapping[str, Exception], stuck: Mapping[str, float]) -> Clues:
    """All that is known here about an activity that stands still. `errors`: of hosts that cannot be reached."""
    view, consumer = runner.site.view(), runner.consumer
    if activity == "delete":
        return Clues(holders=holders(view, runner))
    if activity in ("write", "writeback"):
        return Clues(room="writers wait for room for the log" if activity == "write" else runner.publisher.lacking,
                     disk=runner.device_path)
    damage, trouble = runner.back.damage, runner.trouble or runner.replay_trouble
    if activity in ("resource", "attach"):
        attach = runner.site.store.get(paths.message(runner.resource, runner.site.host, "err-attach"))
        missing = damage is not None and damage.header is None and not damage.pos and damage.unreadable < 0
        return Clues(missing=trouble if missing else "", damage=trouble if damage is not None else "",
                     trouble=trouble or attach.partition(" ")[2].partition(" ")[2])
    assert consumer is not None
    why = runner.why.get(activity, "")
    if activity == "replay":
        return Clues(room=runner.publisher.lacking, trouble=consumer.trouble, why=why, disk=runner.device_path,
                     after="sync" if "sync" in stuck else "")
    task = consumer.sync if activity == "sync" else consumer.fetch
    if activity == "primary":
        return Clues(why=why, after="fetch" if "fetch" in stuck else "replay" if "replay" in stuck else "")
    return Clues(
        room=runner.publisher.lacking, error=task.error if task.running else _peer_error(view, runner, errors),
        why=why, limits=_limits(view, runner, task.key), source=task.key,
        after="fetch" if activity == "sync" and "fetch" in stuck else "",
    )


def _peer_error(view: View, runner: Runner, errors: Mapping[str, Exception]) -> Exception | None:
    """Why whom this replica needs cannot be reached: the designated primary, else anybody."""
    order = (view.designated(runner.resource), *view.members(runner.resource))
    return next((errors[host] for host in order if host in errors), None)


def _limits(view: View, runner: Runner, source: str) -> str:
    own = runner.site.settings.get("traffic_tuning/client_role_traffic_ratelimit_kb")
    theirs = view.host_messages(source).get("inf-rate-limit", "") if source else ""
    mine = f"traffic_tuning/client_role_traffic_ratelimit_kb lets {own} KiB/s in" if own else ""
    return "; ".join(text for text in (mine, theirs and f"{source}: {theirs}") if text)


# ---- the collector ----

class Stalls:
    """Looks at all resources of the worker, and says what stands still. On the loop."""

    def __init__(self, worker: Worker, clock: Callable[[], float] = time.monotonic) -> None:
        self._worker = worker
        self._clock = clock
        self._watches: dict[str, Watch] = {}
        self._links = Watch(clock)
        self._next = 0.0

    def tick(self) -> None:
        """One look, when it is time: a twelfth of `stuck_seconds` is exact enough."""
        seconds, now = float(self._worker.settings.get("stuck_seconds")), self._clock()
        if now < self._next:
            return
        self._next = now + min(LOOK_MOST_S, seconds / 12)
        runners = self._worker.runners
        self._watches = {name: self._watches.get(name) or Watch(self._clock) for name in runners}
        for name, runner in runners.items():
            try:
                self._resource(runner, self._watches[name], seconds)
            except Exception:
                LOG.exception("%s: nobody watches whether it stands still", name)
        self._host(seconds)

    def _resource(self, runner: Runner, watch: Watch, seconds: float) -> None:
        stuck = watch.stuck(works(runner), seconds)
        said = {}
        for activity in ACTIVITIES:
            cause, text = None, ""
            if activity in stuck:
                cause, text = judge(clues(runner, activity, self._worker.exchange.errors, stuck))
                said[activity] = cause.code
                text = _sentence(activity, text, cause.hint)
            _say(runner, f"err-stall-{activity}", text if cause and cause.urgent else "")
            _say(runner, f"wrn-stall-{activity}", text if cause and not cause.urgent else "")
        rel = paths.actual(runner.resource, runner.site.host, "stalled")
        _fact(self._worker, rel, ",".join(f"{activity}={code}" for activity, code in said.items()))

    def _host(self, seconds: float) -> None:
        worker, errors = self._worker, self._worker.exchange.errors
        reasons = {host: error.reason if isinstance(error, PeerError) else "failed" for host, error in errors.items()}
        shown = [f"{host}={reason}" for host, reason in sorted(reasons.items())]
        while len(",".join(shown)) > UNREACHABLE_MAX:
            shown.pop()
        _fact(worker, paths.host_actual(worker.host, "unreachable"), ",".join(shown))
        stuck = self._links.stuck(reasons, seconds)
        texts = [getattr(errors[host], "text", str(errors[host])) for host in sorted(stuck)]
        worker.site.say("", "err-stall-connect", "; ".join(texts))
        limit = worker.settings.get("traffic_tuning/server_role_traffic_ratelimit_kb")
        worker.site.say("", "inf-rate-limit",
                        f"traffic_tuning/server_role_traffic_ratelimit_kb lets {limit} KiB/s out" if limit else "")


def _sentence(activity: str, text: str, hint: str) -> str:
    return f"{activity} stands still: {text.rstrip('.')}" + (f". {hint[:1].upper()}{hint[1:]}" if hint else "")


def _say(runner: Runner, key: str, text: str) -> None:
    site = runner.site
    had = site.store.get(paths.message(runner.resource, site.host, key))
    if text and (not had or had.startswith("OK")):
        LOG.info("%s: %s", runner.resource, text)
    if text or had:
        site.say(runner.resource, key, text)


def _fact(worker: Worker, rel: str, text: str) -> None:
    """`-` for nothing, and nothing at all where nothing was ever said."""
    had = worker.store.get(rel)
    if had != (text or "-") and (text or had):
        worker.store.put(rel, text or "-")
