"""Values that say yes or no, and who is who: is-*, todo-*, nr-*, roles, split brain, waiting for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from marsx.admin.views.look import Look
from marsx.admin.views.table import Value

FACTS = {
    "attach": "is-attached", "sync": "is-syncing", "fetch": "is-copying", "replay": "is-replaying",
    "primary": "is-primary",
}  # fmt: skip
HOLE = "0" * 32 + ","  # how the link of a hole begins
WISHES = {"attach": "attach", "sync": "sync", "fetch": "connect", "replay": "allow-replay", "connect": "connect"}
WORDS = {
    "attach": "the disk is in use by marsd", "sync": "a sync runs", "fetch": "logs are fetched",
    "replay": "logs are replayed", "primary": "the device is there",
}  # fmt: skip


def is_fact(look: Look, resource: str, *args: str, key: str) -> bool:
    """A switch among the facts, of a named host or this one."""
    return look.is_actual(resource, key, args[0] if args else "")


def is_wish(look: Look, resource: str, *args: str, key: str) -> bool:
    """A switch among the wishes, of a named host or this one."""
    return look.tree.todo(resource, args[0] if args else look.host, key)


def is_emergency(look: Look, resource: str) -> bool:
    """This host's replica wants or has emergency mode."""
    return look.tree.has_emergency(resource, look.host)


def primary_emergency(look: Look, resource: str) -> bool:
    """A primary of the resource is in emergency mode."""
    return any(look.tree.has_emergency(resource, host) for host in look.tree.actual_primaries(resource))


def is_primary(look: Look, resource: str) -> bool:
    """By fact."""
    return look.is_actual(resource, "is-primary")


def todo_primary(look: Look, resource: str) -> str:
    """1 or nothing, as scripts know it."""
    return "1" if look.tree.designated(resource) == look.host else ""


def todo_secondary(look: Look, resource: str) -> bool:
    """A member that is not to be primary."""
    return look.is_member(resource) and look.tree.designated(resource) != look.host


def split_brain(look: Look, resource: str) -> bool:
    """The histories of two members have parted."""
    texts = look.tree.version_texts(resource)
    known: dict[int, str] = {}
    # Equal links under equal numbers cannot have parted, unless one goes on in other numbers behind a gap (rule 27).
    if all(known.setdefault(nr, text) == text and not text.startswith(HOLE)
           for links in texts.values() for nr, text in links.items()):
        return False
    from marsx.admin import state

    return bool(state.split_brain(look.tree, resource))


def is_consistent(look: Look, resource: str) -> bool:
    """Sync is over and replay has passed its end; on a primary its disk too."""
    whole = look.tree.disk_consistent if is_primary(look, resource) else look.tree.consistent
    return whole(resource, look.host)


def is_orphan(look: Look, resource: str) -> bool:
    """A secondary whose next log is gone here, while more is known elsewhere."""
    replay = look.tree.replay(resource, look.host)
    if replay is None or is_primary(look, resource):
        return False
    if not look.logs(resource).fetch_rest(look.host):
        return False
    return min((file.nr for file in look.files(resource)), default=0) > replay.pos.nr


def is_responsive(look: Look, resource: str) -> bool:
    """marsd of this host has said something within --window."""
    return look.alive(look.host)


def _count(look: Look, resource: str, key: str, wanted: bool = True) -> int:
    return sum(look.is_actual(resource, key, host) is wanted for host in look.members(resource))


def _wait(look: Look, resource: str, condition: str) -> None:
    from marsx.admin import waits

    waits.until(look.ctx, waits.condition_probe(look.ctx, resource, condition), f"wait for {condition}")


def _wait_designated(look: Look, resource: str, wanted: bool) -> None:
    from marsx.admin import waits

    def probe(tree: object) -> str:
        now = look.ctx.view().designated(resource) == look.host
        return "" if now is wanted else f"{resource}: todo-primary is {'on' if now else 'off'}"

    waits.until(look.ctx, probe, "wait for todo-primary")


def _waits() -> list[Value]:
    rows = []
    for kind in ("is", "todo"):
        for word in FACTS:
            for switch in ("on", "off"):
                of: Callable[..., None] = partial(_wait, condition=f"{kind}-{word}-{switch}")
                if (kind, word) == ("todo", "primary"):
                    of = partial(_wait_designated, wanted=switch == "on")
                rows.append(Value(f"wait-{kind}-{word}-{switch}", "wait", f"wait until {kind}-{word} is {switch}", of))
    return rows


VALUES = (
    *(Value(f"is-{word}", "flag", WORDS[word], partial(is_fact, key=key)) for word, key in FACTS.items()),
    Value("is-secondary", "flag", "the device is not there", lambda look, res: not is_primary(look, res)),
    Value("is-emergency", "flag", "logging has stopped, or has to, for lack of space", is_emergency),
    Value("is-primary-emergency", "flag", "is-emergency of the primary", primary_emergency),
    Value("is-consistent", "flag", "the replica is a state that the primary once had", is_consistent),
    Value("is-almost-consistent", "flag", "the same, but for a window that is being written",
          lambda look, res: look.tree.consistent(res, look.host)),
    Value("is-split-brain", "flag", "the histories of two members have parted", split_brain),
    Value("is-orphan", "flag", "the next log is gone here, and more is known elsewhere", is_orphan),
    Value("is-alive", "flag", "the designated primary, or a named host, was heard of within --window",
          lambda look, res, *args: look.alive(look.peer(res, *args)), "host"),
    Value("is-member", "flag", "this host has a replica", lambda look, res: look.is_member(res)),
    Value("is-guest", "flag", "this host has only a device; there are no such hosts here", lambda look, res: False),
    Value("is-started", "flag", "marsd has said something about the replica",
          lambda look, res: bool(look.actual(res, "is-attached"))),
    Value("is-module-loaded", "flag", "marsd runs here", lambda look, res: look.daemon_there(), "host"),
    Value("is-responsive", "flag", "marsd of this host has said something within --window", is_responsive, "host"),
    *(Value(f"todo-{word}", "flag", f"the switch is on: {'fetch' if word == 'connect' else word}",
            partial(is_wish, key=key)) for word, key in WISHES.items()),
    Value("todo-primary", "text", "1 if this host is designated primary, else nothing", todo_primary),
    Value("todo-secondary", "flag", "this host is a member and not designated primary", todo_secondary),
    *(Value(f"nr-{word}", "number", f"number of members where is-{word}", partial(_count, key=key))
      for word, key in FACTS.items()),
    Value("nr-secondary", "number", "number of members where is-secondary",
          partial(_count, key="is-primary", wanted=False)),
    Value("nr-emergency", "number", "number of members where is-emergency", partial(_count, key="has-emergency")),
    Value("get-primary", "text", "the designated primary", lambda look, res: look.tree.designated(res)),
    Value("actual-primary", "text", "the first host whose device is there",
          lambda look, res: next(iter(look.tree.actual_primaries(res)), "")),
    *_waits(),
)  # fmt: skip
