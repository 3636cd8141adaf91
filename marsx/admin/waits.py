"""Waiting for the tree to say something, by events: inotify wakes us, nothing is polled.

A *probe* looks at a picture of the tree and returns "" when what is waited for is true, else a line that says what is
still missing; it raises to give up early. The line is shown whenever it changes: nobody waits without knowing for what.
Commands: wait-resource, wait-umount (on the local tree), wait-cluster (asked of marsd, which knows its peers).
"""

from __future__ import annotations

import select
from collections.abc import Callable

from marsx.admin.context import Context, require_cluster, require_member
from marsx.admin.table import Command, aliased
from marsx.base.errors import TimeoutExpired, UsageError
from marsx.tree.view import View
from marsx.tree.watch import Watch

Probe = Callable[[View], str]


class Events:
    """Changes of the tree on disk, brought into the store."""

    def __init__(self, ctx: Context) -> None:
        self._store = ctx.store
        self._watch = Watch(ctx.paths.mars_dir, self._changed)

    def wait(self, timeout: float) -> None:
        """Return after something changed, or after `timeout` seconds."""
        poll = select.poll()
        poll.register(self._watch.fileno(), select.POLLIN)
        if poll.poll(max(0, int(timeout * 1000) + 1)):
            self._watch.process()

    def close(self) -> None:
        """Stop watching."""
        self._watch.close()

    def _changed(self, names: list[str] | None) -> None:
        if names is None:
            self._store.load()
            return
        self._store.reread(names)


def until(
    ctx: Context,
    probe: Probe,
    goal: str,
    *,
    events: Callable[[Context], Events] | None = None,
    deadline: float | None = None,
    hint: str = "",
) -> View:
    """Wait until `probe` returns "", at most --timeout seconds (or until `deadline`); the picture that satisfied it.
    A dry run takes it as having come."""
    if ctx.dry:
        return ctx.view()
    end = ctx.monotonic() + ctx.options.timeout if deadline is None else deadline
    source = (events or ctx.events or Events)(ctx)
    try:
        ctx.store.load()  # what changed before the watch began
        while True:
            view = ctx.view()
            missing = probe(view)
            if not missing:
                return view
            ctx.progress(missing)
            left = end - ctx.monotonic()
            if left <= 0:
                raise TimeoutExpired(f"{goal}: timed out after {ctx.options.timeout:g} s, {missing}", hint)
            source.wait(left)
    finally:
        source.close()
        ctx.progress("")


_IS = {
    "attach": "is-attached", "attached": "is-attached", "fetch": "is-copying", "fetching": "is-copying",
    "copy": "is-copying", "copying": "is-copying", "replay": "is-replaying", "replaying": "is-replaying",
    "sync": "is-syncing", "syncing": "is-syncing", "primary": "is-primary", "device": "is-primary",
}  # fmt: skip
_TODO = {"attach": "attach", "fetch": "connect", "connect": "connect", "replay": "allow-replay", "sync": "sync"}
_ON_OFF = {"on": True, "1": True, "off": False, "0": False}


def condition(word: str) -> tuple[str, str, bool]:
    """(kind, name, wanted) of `[is-|has-|todo-]NAME[-on|-off|-1|-0]`; the defaults are todo and on."""
    rest, wanted = word, True
    for end, value in _ON_OFF.items():
        if rest.endswith("-" + end):
            rest, wanted = rest[: -len(end) - 1], value
            break
    kind = "todo"
    for prefix in ("is", "has", "todo"):
        if rest.startswith(prefix + "-"):
            kind, rest = ("todo" if prefix == "todo" else "is"), rest[len(prefix) + 1 :]
            break
    if kind == "todo" and rest in _TODO:
        return "todo", _TODO[rest], wanted
    if kind == "is" and rest in _IS:
        return "is", _IS[rest], wanted
    if kind == "is" and rest in ("consistent", "uptodate"):
        return "view", rest, wanted
    raise UsageError(f"'{word[:80]}' is not a condition", "marsadm wait-resource --help lists them")


def condition_probe(ctx: Context, resource: str, word: str) -> Probe:
    """The probe of one condition about this host."""
    from marsx.admin import state

    kind, name, wanted = condition(word)

    def probe(view: View) -> str:
        if kind == "todo":
            now = view.todo(resource, ctx.host, name)
        elif kind == "is":
            now = view.actual(resource, ctx.host, name) == "1"
        elif name == "consistent":
            now = view.consistent(resource, ctx.host)
        else:
            now = state.up_to_date(view, resource, ctx.host)
        if now == wanted:
            return ""
        return f"{resource}: {kind + '-' if kind == 'todo' else ''}{name} is {'on' if now else 'off'}"

    return probe


def wait_resource(ctx: Context, resource: str, args: tuple[str, ...]) -> None:
    """wait-resource RES COND."""
    require_member(ctx.view(), resource, ctx.host)
    if not args:
        return wait_cluster(ctx, (), resource)
    until(ctx, condition_probe(ctx, resource, args[0]), f"wait-resource {resource} {args[0]}")


def wait_umount(ctx: Context, resource: str, args: tuple[str, ...]) -> None:
    """wait-umount RES: nobody in the cluster has the device open."""
    require_member(ctx.view(), resource, ctx.host)

    def probe(view: View) -> str:
        users = [host for host in sorted(view.members(resource)) if view.open_count(resource, host)]
        return f"{resource}: the device is in use on {', '.join(users)}" if users else ""

    until(ctx, probe, f"wait-umount {resource}")


def wait_cluster(ctx: Context, args: tuple[str, ...], resource: str = "") -> None:
    """wait-cluster: marsd has exchanged the tree with every member after now."""
    require_cluster(ctx.view(), ctx.host)
    timeout = ctx.options.timeout

    def progress(state: dict[str, object]) -> None:
        ctx.progress(str(state.get("text") or state.get("missing") or ""))

    try:
        ctx.control.request(
            {"cmd": "wait", "resource": resource, "condition": "cluster", "timeout": timeout}, timeout + 5, progress
        )
    finally:
        ctx.progress("")


_CLUSTER = Command(
    "wait-cluster", "[RES]", lambda ctx, args: wait_cluster(ctx, (), args[0] if args else ""),
    "wait until every member has answered", "waits",
    effect="""With RES only the members of that resource. A member that has answered has seen all that was said before.
    Members that cannot be reached end it with status 5 after --timeout.""",
    example="marsadm wait-cluster --timeout=30", scope="none", extra=(0, 1), writes=False, options="--timeout",
)  # fmt: skip

COMMANDS = (
    _CLUSTER,
    aliased(_CLUSTER, "wait-connect"),
    aliased(
        _CLUSTER, "update-cluster", short="fetch what all members know; they tell it at once, so it is only waited for",
        example="marsadm update-cluster",
    ),
    Command(
        "wait-resource", "RES [COND]", wait_resource, "wait until a condition of this host's replica is true", "waits",
        needs="""COND is [is-|todo-]NAME[-on|-off], by default todo- and -on.
        is-: attach fetch replay sync primary device consistent uptodate;  todo-: attach fetch connect replay sync.
        Without COND: like wait-cluster.""",
        example="marsadm wait-resource data is-primary-off", extra=(0, 1), writes=False, options="--timeout",
    ),
    Command(
        "wait-umount", "RES", wait_umount, "wait until nobody uses the device of the resource", "waits",
        example="marsadm wait-umount data", writes=False, options="--timeout",
    ),
)  # fmt: skip
