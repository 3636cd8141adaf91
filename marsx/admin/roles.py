"""Roles: primary and secondary, the marsadm side of design 3.8.

A planned `primary` on B never takes the role, it asks for it: it writes the wish `want-primary` and `primary` := (none)
with a weak stamp, waits for the grant of the last producer (rule 18), and only then writes `primary` := B. marsd on
both hosts does the work and checks again.

Invariants:
* `primary` := B is written only with a grant for B at the newest log, when B is the last producer itself, or by force.
* What fails before the grant is taken back by compare-and-swap on the own (none) entry, with that stamp + 1 ns: as weak
  as the (none) was, so every genuine `primary` wins over it (rule 24).
* After the grant nothing is taken back: the old primary has given the role away.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from marsx.admin import state
from marsx.admin.context import Context, require_member
from marsx.admin.switches import UP, check_unused, reasons, set_switches, wait_unused
from marsx.admin.table import Command, Phases
from marsx.admin.waits import until
from marsx.base.errors import DamagedError, PreconditionError, UsageError
from marsx.base.position import LogPos
from marsx.tree import paths
from marsx.tree.paths import NONE
from marsx.tree.roles import gap_ahead
from marsx.tree.store import Entry
from marsx.tree.view import View

ALIVE_WINDOW_NS = 30 * 1_000_000_000


def primary(ctx: Context, resource: str, args: tuple[str, ...]) -> Phases:
    """primary RES: take the role over, planned or by force."""
    view = ctx.view()
    require_member(view, resource, ctx.host)
    serves = view.actual(resource, ctx.host, "is-primary") == "1"
    waits = ctx.options.force and not serves and not view.todo(resource, ctx.host, "connect")
    if view.designated(resource) == ctx.host and not waits:
        _check_attach(view, resource, ctx.host)
        return _wait_device(ctx, resource)
    if ctx.options.force:
        return _forced(ctx, resource)
    return _planned(ctx, resource)


def _check_attach(view: View, resource: str, host: str) -> None:
    if not view.todo(resource, host, "attach"):
        raise PreconditionError(f"{resource}: the switch attach is off here", f"first: marsadm attach {resource}")


def _planned(ctx: Context, resource: str) -> Iterator[None]:
    view = ctx.view()
    check_planned(ctx, view, resource)
    want, given = paths.want_primary(resource, ctx.host), _Given(ctx, resource)
    try:
        # First for whom, then (none): whoever sees (none) also sees who waits.
        ctx.wish((want, os.urandom(8).hex()))
        given.give()
        yield
        _wait_grant(ctx, resource)
        ctx.wish((paths.primary(resource), ctx.host))
    finally:
        given.take_back()  # without effect once `primary` is no longer our own (none)
        ctx.wish((want, "0"))
    yield
    yield from _wait_device(ctx, resource)


class _Given:
    """The link `primary`, given up to (none) by this call, and the way back (rule 24)."""

    def __init__(self, ctx: Context, resource: str) -> None:
        self._ctx, self._resource = ctx, resource
        self._link = paths.primary(resource)
        self._old = ""
        self._none: Entry | None = None

    def give(self) -> None:
        """`primary` := (none), with a weak stamp."""
        store = self._ctx.store
        self._old = store.get(self._link)
        if self._old not in ("", NONE) and store.put_weak(self._link, NONE, durable=True):
            self._none = store.entry(self._link)

    def take_back(self) -> None:
        """Compare-and-swap on the own (none), one ns later: as weak as that was."""
        if self._none is None:
            return
        stamp = self._none.stamp + 1
        if self._ctx.store.put(self._link, self._old, durable=True, stamp=stamp, expect=self._none):
            self._ctx.note(f"  {self._resource}: taken back, the designated primary is {self._old} again")
        self._none = None


def _wait_grant(ctx: Context, resource: str) -> None:
    """Until the last producer has granted the role to this host, or this host is the last producer."""

    def probe(view: View) -> str:
        holder = state.role_holder(view, resource)
        if holder == ctx.host:
            return ""
        taken = view.designated(resource)
        if taken and taken != ctx.host:
            raise PreconditionError(f"{resource}: {taken} was made primary meanwhile", f"see: marsadm view {resource}")
        return _why_no_grant(view, resource, ctx.host, holder)

    until(
        ctx,
        probe,
        f"primary {resource}",
        hint="see mars-status; if the old primary is lost: disconnect, then primary --force",
    )


def _why_no_grant(view: View, resource: str, host: str, holder: str) -> str:
    if not holder:
        return f"{resource}: nobody is known to hold the primary role"
    users = view.open_count(resource, holder)
    if users:
        text = f"{resource}: {holder} still uses the device ({users} times), umount it there"
        return text + reasons(view, resource, holder)
    if view.actual(resource, holder, "is-primary") == "1":
        return f"{resource}: {holder} still is primary{reasons(view, resource, holder)}"
    return f"{resource}: {holder} has not yet granted the primary role to {host}{reasons(view, resource, holder)}"


def _wait_device(ctx: Context, resource: str) -> Iterator[None]:
    """Until marsd has made the device; then all switches are on."""
    device = f"{ctx.paths.dev_dir}/{ctx.view().device(resource, ctx.host) or resource}"

    def probe(view: View) -> str:
        taken = view.designated(resource)
        if taken != ctx.host:
            raise PreconditionError(
                f"{resource}: {taken or 'nobody'} was made primary meanwhile", f"see: marsadm view {resource}"
            )
        if view.actual(resource, ctx.host, "is-primary") == "1":
            return ""
        text = f"{resource}: {device} is not there yet{_replay_text(view, resource, ctx.host)}"
        return text + reasons(view, resource, ctx.host)

    until(ctx, probe, f"primary {resource}", hint="mars-status shows what marsd waits for")
    set_switches(ctx, resource, UP, [ctx.host], quiet=True)
    ctx.say(f"{resource}: {ctx.host} is primary, the device is {device}")
    yield


def _replay_text(view: View, resource: str, host: str) -> str:
    rest = state.fetch_rest(view, resource, host) + state.replay_rest(view, resource, host)
    return f", {rest} bytes of log are not replayed" if rest else ""


def check_planned(ctx: Context, view: View, resource: str) -> None:
    """Facts 5.2 phase 0: what must hold before the role is asked for."""
    host = ctx.host
    old = view.designated(resource)
    for name in ("attach", "connect", "allow-replay"):
        if not view.todo(resource, host, name):
            raise PreconditionError(f"{resource}: the switch {name} is off here", f"first: marsadm up {resource}")
    if view.actual(resource, host, "has-emergency") == "1":
        raise PreconditionError(f"{resource}: {host} is in emergency mode", "make room in /mars here first")
    if clock := view.host_messages(host).get("err-clock"):
        raise PreconditionError(f"{resource}: the clocks are too far apart: {clock}",
                                "what this host says would not be believed; set its clock first, then try again")
    _check_own_data(ctx, view, resource)
    _check_other_syncs(ctx, view, resource)
    _check_gap(view, resource, host)
    split = state.split_brain(view, resource)
    if split:
        raise PreconditionError(
            f"{resource}: split brain, {split}",
            "decide whose data count; on each other host: marsadm invalidate (or there: disconnect, primary --force)",
        )
    for holder in sorted({old, *view.actual_primaries(resource)} - {"", host}):
        wait_unused(ctx, resource, holder, f"on {holder}", f"umount it on {holder} first")


def _check_own_data(ctx: Context, view: View, resource: str) -> None:
    """The own replica is consistent, and its replay did not end in an error."""
    code = view.actual(resource, ctx.host, "replay-code").partition(",")[0]
    if code.startswith("-") and not ctx.options.force:
        raise PreconditionError(
            f"{resource}: replay here has stopped with error {code}",
            f"see mars-status; then: marsadm invalidate {resource}",
        )
    if not view.consistent(resource, ctx.host) and not ctx.options.ignore_sync:
        rest = view.sync_rest(resource, ctx.host)
        what = f"{rest} bytes are not synced" if rest else "replay has not passed the end of the sync"
        raise PreconditionError(
            f"{resource}: the replica here is not consistent, {what}",
            f"wait for it: marsadm wait-resource {resource} is-consistent",
        )


def _check_gap(view: View, resource: str, host: str) -> None:
    """Who is primary, or was it last, has written past the log, and that is not here (rule 27)."""
    for holder in sorted({view.designated(resource), state.role_holder(view, resource)} - {"", host}):
        if gap_ahead(view, resource, host, holder):
            serves = view.actual(resource, holder, "is-primary") == "1"
            raise PreconditionError(
                f"{resource}: what {holder} wrote past the log, in emergency mode, is not here yet",
                f"make room in /mars on {holder}, then wait: it heals by itself" if serves else
                f"first on {holder}: marsadm primary {resource}",
            )


def _check_other_syncs(ctx: Context, view: View, resource: str) -> None:
    """With more than two replicas, no living member is in the middle of a sync from the old primary. Where nobody is
    primary no sync goes on, and somebody has to become it."""
    members = view.members(resource)
    if len(members) <= 2 or ctx.options.ignore_sync or not view.actual_primaries(resource):
        return
    for other in (member for member in members if member != ctx.host):
        rest = view.sync_rest(resource, other)
        if rest > 0 and view.alive(other, ctx.clock_ns(), ALIVE_WINDOW_NS):
            raise PreconditionError(
                f"{resource}: the sync of {other} is not finished ({rest} bytes to go)", "wait, or give --ignore-sync"
            )


def _forced(ctx: Context, resource: str) -> Iterator[None]:
    """Take the role without grant: for when the old primary is lost."""
    view = ctx.view()
    check_forced(ctx, view, resource)
    old = view.designated(resource)
    if old and old != ctx.host:
        ctx.warn(f"{resource}: {old} is not asked. If it has data that are not here, the result is a split brain")
    said = view.messages(resource, ctx.host)
    if view.sound(resource, ctx.host):
        ctx.warn(f"{resource}: {said.get('err-resource', 'the logs here are damaged')}")
        ctx.warn(f"{resource}: {said.get('inf-log-sound', 'what lies behind the damage is given up')}")
    whole = view.consistent(resource, ctx.host) and not _mixture(view, resource, ctx.host)
    want = (paths.FORCE if whole else paths.IGNORE_SYNC) + os.urandom(8).hex()
    if not whole:
        ctx.warn(f"{resource}: the disk here is not a whole state, and no other member has what is on it: on each of "
                 f"them: marsadm invalidate {resource}")
    ctx.wish((paths.primary(resource), ctx.host), (paths.want_primary(resource, ctx.host), want))
    yield
    yield from _wait_device(ctx, resource)
    lost = ctx.view().messages(resource, ctx.host).get("wrn-log-lost", "")
    if lost and lost != said.get("wrn-log-lost"):
        ctx.say(f"{resource}: {lost}")


def _mixture(view: View, resource: str, host: str) -> str:
    """Do the sound logs end where the disk is a mixture of states (rule 12)? Up to where it is, "" if they do not."""
    until, sound = view.mixed_until(resource, host), view.sound(resource, host)
    return str(until) if until and sound and sound.pos.order < until.order else ""


def check_forced(ctx: Context, view: View, resource: str) -> None:
    """Rule 23, and what --force does not override."""
    host = ctx.host
    if view.todo(resource, host, "connect"):
        raise PreconditionError(
            f"{resource}: primary --force needs a disconnected replica", f"first: marsadm disconnect {resource}"
        )
    _check_attach(view, resource, host)
    _check_own_data(ctx, view, resource)
    if (until := _mixture(view, resource, host)) and not ctx.options.ignore_sync:
        raise PreconditionError(
            f"{resource}: the disk here is a mixture of states up to {until}, and the logs hold only up to "
            f"{state.fetched(view, resource, host)}",
            f"marsadm connect {resource} heals them where another host has them; to use half a state: --ignore-sync",
        )
    accepted = _accepted(ctx.options.accept_position)
    here = state.fetched(view, resource, host)
    if accepted is not None and here is not None and accepted == here:
        return
    for other in (member for member in view.members(resource) if member != host):
        if not view.alive(other, ctx.clock_ns(), ALIVE_WINDOW_NS):
            continue
        more = state.has_more(view, resource, other, host)
        if more:
            raise PreconditionError(
                f"{resource}: {other} has more of the same history ({more}, here {here or 'nothing'})",
                f"marsadm connect {resource} fetches it; to give it up: --force --accept-position={here}",
            )


def _accepted(text: str) -> LogPos | None:
    if not text:
        return None
    try:
        return LogPos.parse(text)
    except DamagedError as exc:
        raise UsageError(
            f"--accept-position={text[:80]}: not a log position", "example: log-000000005-alpha,4096"
        ) from exc


def secondary(ctx: Context, resource: str, args: tuple[str, ...]) -> Phases:
    """secondary RES: give the role up; nobody is primary then."""
    view = ctx.view()
    require_member(view, resource, ctx.host)
    designated = view.designated(resource)
    if designated != ctx.host and view.actual(resource, ctx.host, "is-primary") != "1":
        ctx.say(f"{resource}: {ctx.host} is secondary already, the primary is {designated or 'nobody'}")
        return None
    check_unused(ctx, view, resource)
    return _give_up(ctx, resource, designated)


def _give_up(ctx: Context, resource: str, designated: str) -> Iterator[None]:
    given, done = _Given(ctx, resource), False

    def probe(view: View) -> str:
        if view.actual(resource, ctx.host, "is-primary") == "1":
            return f"{resource}: the device is still there{reasons(view, resource, ctx.host)}"
        return ""

    try:
        if designated == ctx.host:
            given.give()
        yield
        until(ctx, probe, f"secondary {resource}", hint="what uses the device? mars-status shows it")
        done = True
    finally:
        if not done:
            given.take_back()
    ctx.say(f"{resource}: {ctx.host} is secondary, nobody is primary")


COMMANDS = (
    Command(
        "primary", "RES", primary, "make this host the primary of the resource", "roles",
        needs="""The replica here is consistent, attach, connect and allow-replay are switched on.
        Nobody uses the device on the old primary, which gives the role up and grants it to this host.
        With more than two replicas no other sync runs (--ignore-sync).
        --force, when the old primary is lost: the replica is disconnected here (marsadm disconnect RES), and no member
        that can be reached has more of the same history (--accept-position=POS gives that up).""",
        effect="""The other host need not be told: its marsd takes the device away, ends its log, grants the role.
        When nothing is granted within --timeout everything is as before.
        --force over damaged logs takes over up to the last valid group, says what is lost, and keeps it aside.""",
        example="marsadm primary data", options="--force --ignore-sync --accept-position=POS --timeout=SECONDS",
    ),
    Command(
        "secondary", "RES", secondary, "give the primary role up; nobody is primary then", "roles",
        needs="""The device is not in use here.
        Not needed for a handover: `marsadm primary RES` on the other host does all of it.""",
        example="marsadm secondary data", options="--timeout=SECONDS",
    ),
)  # fmt: skip
