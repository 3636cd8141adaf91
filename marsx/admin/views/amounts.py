"""Values that count: sync, fetch, replay and both together (work); rates, ages, log numbers and sizes.

Amounts of log are bytes from the beginning of the oldest log whose links this host has (`LogMap.base`): replay-pos is
applied, fetch-pos is here, fetch-size is known in the cluster; work is from replay-pos to fetch-size.
"""

from __future__ import annotations

from functools import partial

from marsx.admin.macro.numbers import Number, bounded, number, whole
from marsx.admin.views.look import Look
from marsx.admin.views.table import Value

KINDS = ("sync", "fetch", "replay", "work")
RATES = {"sync": "sync", "fetch": "file", "replay": "replay", "device": "if"}
NS = 1_000_000_000


def span(look: Look, resource: str, kind: str) -> tuple[int, int]:
    """(pos, size)"""
    if kind == "sync":
        return look.tree.syncstatus(resource, look.host), look.tree.size(resource)
    found = look.amounts(resource)
    return {"replay": (found.replayed, found.fetched), "fetch": (found.fetched, found.known),
            "work": (found.replayed, found.known)}[kind]  # fmt: skip


def rest(look: Look, resource: str, kind: str) -> int:
    """What is missing."""
    pos, size = span(look, resource, kind)
    return max(0, size - pos)


def reached(look: Look, resource: str, *args: str, kind: str, how: str = "") -> bool:
    """All of it, or nearly: by thousandths, or but for so many bytes."""
    pos, size = span(look, resource, kind)
    if how == "almost" and size > 0:
        part = whole(number(args[0])) if args else 990
        return pos * 1000 >= size * part
    if how == "threshold":
        from marsx.admin.cli import parse_size

        return size - pos <= (parse_size(args[0]) if args else look.ctx.options.threshold)
    return pos >= size


def part(look: Look, resource: str, kind: str, full: int) -> Number:
    """Percent or per mille, half a unit ahead as scripts know it; `full` stands only where nothing is missing."""
    pos, size = span(look, resource, kind)
    if pos >= size:
        return full
    return bounded(min(full - full / 10_000, (full + 0.5) * pos / size))


def rate(look: Look, resource: str, kind: str) -> int:
    """Bytes a second."""
    if kind == "work":
        return max(rate(look, resource, "fetch"), rate(look, resource, "replay"))
    return look.count(resource, f"amount-{RATES[kind]}_rate") * 1024


def ops_rate(look: Look, resource: str, kind: str) -> int:
    """Requests a second."""
    if kind == "work":
        return max(ops_rate(look, resource, "fetch"), ops_rate(look, resource, "replay"))
    return look.count(resource, f"ops-{RATES[kind]}_rate")


def remain(look: Look, resource: str, kind: str) -> int:
    """Seconds; 0: done, -1: not known."""
    if kind == "work":
        parts = [remain(look, resource, "fetch"), remain(look, resource, "replay")]
        return -1 if -1 in parts else sum(parts)
    left, speed = rest(look, resource, kind), rate(look, resource, kind)
    return 0 if not left else left // speed if speed else -1


def log_number(look: Look, resource: str, kind: str) -> int:
    """Number of the log that is worked on."""
    logs = look.logs(resource)
    found = {"replay": logs.replayed(look.host), "fetch": logs.fetched(look.host), "work": logs.newest}[kind]
    return found.nr if found else 0


def log_base(look: Look, resource: str) -> int:
    """Number of the log at which counting begins."""
    return look.logs(resource).base(look.host)


def log_count(look: Look, resource: str, kind: str) -> int:
    """Logs from the base to the one that is worked on."""
    last, base = log_number(look, resource, kind), log_base(look, resource)
    return last - base + 1 if last and base else 0


def syncpos(look: Look, resource: str) -> int | None:
    """The position that replay has to pass, counted like the others."""
    mark, logs = look.tree.syncpos(resource, look.host), look.logs(resource)
    replayed = logs.replayed(look.host)
    if mark is None or replayed is None:
        return None
    ahead = logs.distance(replayed, mark.pos) - logs.distance(mark.pos, replayed)
    return max(0, look.amounts(resource).replayed + ahead)


def stamp_ns(look: Look, resource: str, kind: str, host: str = "") -> int:
    """When a host last moved: heard of, newest version link, replay link; 0: never."""
    from marsx.tree import paths

    host = host or look.host
    if kind == "alive":
        age = look.tree.alive_age(look.peer(resource), look.now_ns)
        return 0 if age is None else look.now_ns - age
    numbers = look.tree.version_numbers(resource, host)
    fetched = look.tree.stamp(paths.version(resource, numbers[-1], host)) if numbers else 0
    replayed = look.tree.stamp(paths.replay(resource, host))
    return {"fetch": fetched, "replay": replayed, "work": min(fetched, replayed)}[kind]


def age(look: Look, resource: str, kind: str) -> int:
    """Seconds since then, 0 where nothing is missing; -1: not known."""
    if kind != "alive" and not rest(look, resource, kind):
        return 0
    stamp = stamp_ns(look, resource, kind)
    return max(0, look.now_ns - stamp) // NS if stamp else -1


def lag(look: Look, resource: str, kind: str) -> int:
    """Seconds that the primary has moved on since this host did, 0 where nothing is missing; -1: not known."""
    if kind == "alive":
        return max(0, age(look, resource, kind))
    if not rest(look, resource, kind):
        return 0
    primary = next(iter(look.tree.actual_primaries(resource)), look.tree.designated(resource))
    own = stamp_ns(look, resource, kind)
    theirs = stamp_ns(look, resource, "fetch", primary) if primary else 0
    return max(0, theirs - own) // NS if own and theirs else -1


def timestamp(look: Look, resource: str, kind: str) -> int:
    """Seconds since the epoch; -1: never."""
    stamp = stamp_ns(look, resource, kind)
    return stamp // NS if stamp else -1


def deletable(look: Look, resource: str) -> int:
    """Bytes of log files that no replica needs any more."""
    needed = [look.tree.first_needed(resource, host) for host in look.members(resource)]
    files = look.files(resource)
    limit = min([*needed, max((file.nr for file in files), default=0)])
    return sum(file.size for file in files if file.nr < limit)


def possible_size(look: Look, resource: str) -> int:
    """What all disks have room for."""
    return min((look.tree.actsize(resource, host) for host in look.members(resource)), default=0)


def _spans() -> list[Value]:
    rows = []
    for kind in KINDS:
        what = {"sync": "of the device", "work": "from replay to the newest known position"}.get(kind, "of log")
        rows += [
            Value(f"{kind}-pos", "number", f"{kind}: bytes done, {what}",
                  lambda look, res, kind=kind: span(look, res, kind)[0]),
            Value(f"{kind}-size", "number", f"{kind}: bytes in all, {what}",
                  lambda look, res, kind=kind: span(look, res, kind)[1]),
            Value(f"{kind}-rest", "number", f"{kind}: bytes missing", partial(rest, kind=kind)),
            Value(f"{kind}-reached", "flag", f"{kind}: nothing is missing", partial(reached, kind=kind)),
            Value(f"{kind}-almost-reached", "flag", f"{kind}: 990 of 1000, or {{N}} of 1000, are done",
                  partial(reached, kind=kind, how="almost")),
            Value(f"{kind}-threshold-reached", "flag", f"{kind}: at most --threshold, or {{SIZE}}, is missing",
                  partial(reached, kind=kind, how="threshold")),
            Value(f"{kind}-percent", "number", f"{kind}: percent done", partial(part, kind=kind, full=100)),
            Value(f"{kind}-permille", "number", f"{kind}: thousandths done", partial(part, kind=kind, full=1000)),
            Value(f"{kind}-vector", "text", f"{kind}-pos:{kind}-size",
                  lambda look, res, kind=kind: ":".join(map(str, span(look, res, kind)))),
        ]
    return rows  # fmt: skip


def _rates() -> list[Value]:
    rows = []
    for kind in (*KINDS, "device"):
        rows += [
            Value(f"{kind}-rate", "number", f"{kind}: bytes a second", partial(rate, kind=kind)),
            Value(f"{kind}-amount-rate", "number", f"the same as {kind}-rate", partial(rate, kind=kind)),
            Value(f"{kind}-ops-rate", "number", f"{kind}: requests a second", partial(ops_rate, kind=kind)),
        ]
        if kind != "device":
            short = f"{kind}: seconds left; 0 done, -1 not known"
            rows.append(Value(f"{kind}-remain", "number", short, partial(remain, kind=kind)))
    return rows


def _logs() -> list[Value]:
    rows = []
    for kind in ("replay", "fetch", "work"):
        rows += [
            Value(f"{kind}-lognr", "number", f"{kind}: number of the log", partial(log_number, kind=kind)),
            Value(f"{kind}-basenr", "number", "number of the log at which counting begins", log_base),
            Value(f"{kind}-logcount", "number", f"{kind}: number of logs from the base on",
                  partial(log_count, kind=kind)),
        ]
    return rows  # fmt: skip


def _times() -> list[Value]:
    rows = []
    for kind in ("alive", "fetch", "replay", "work"):
        what = "the primary was heard of" if kind == "alive" else f"{kind} of this host moved"
        rows += [
            Value(f"{kind}-timestamp", "number", f"when {what} last, in s; -1 never", partial(timestamp, kind=kind)),
            Value(f"{kind}-age", "number", f"seconds since {what}; -1 not known", partial(age, kind=kind)),
            Value(f"{kind}-lag", "number", f"{kind}: seconds behind the primary; -1 unknown", partial(lag, kind=kind)),
        ]
    return rows


VALUES = (
    *_spans(), *_rates(), *_logs(), *_times(),
    Value("summary-vector", "text", "replay-pos:fetch-pos:fetch-size",
          lambda look, res: ":".join(map(str, look.amounts(res)))),
    Value("syncpos-pos", "number", "where replay has to be for a sync to count", syncpos),
    Value("writeback-rest", "number", "bytes of log that are not on the primary's disk yet",
          lambda look, res: rest(look, res, "replay") if look.is_actual(res, "is-primary") else 0),
    Value("deletable-size", "number", "bytes of log files here that no replica needs", deletable),
    Value("occupied-size", "number", "bytes of all log files here",
          lambda look, res: sum(file.size for file in look.files(res))),
    Value("resource-size", "number", "size of the resource", lambda look, res: look.tree.size(res)),
    Value("resource-possible-size", "number", "size that all disks have room for", possible_size),
    Value("disk-size", "number", "size of the data device here", lambda look, res: look.tree.actsize(res, look.host)),
)  # fmt: skip
