"""split-brain and log-export: what has parted, and what a discarded branch holds.

Reads the tree and the logs of this host, asks nobody, changes nothing. What another host has written after the parting
is known by its version links (how much); which ranges that were, only that host's own logs say.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from marsx.admin import state
from marsx.admin.context import Context, require_member
from marsx.admin.logs import list_aside
from marsx.admin.table import Command
from marsx.base import durable
from marsx.base.errors import MarsError, NotFoundError, PreconditionError, UsageError
from marsx.base.position import LogPos
from marsx.log import chain
from marsx.log.reader import Written, written
from marsx.tree import paths
from marsx.tree.view import View

SHOWN = 20


@dataclass
class Side:
    """One host's branch: where it ends, bytes of log behind the parting (None: its links do not reach back so far),
    times (ns, 0: not known) and device ranges of what was written there (None: its logs are not here)."""

    host: str
    end: str
    bytes: int | None = None
    since: int = 0
    until: int = 0
    ranges: list[tuple[int, int]] | None = None


@dataclass
class Report:
    """What is known about the split brain of a resource. `at`: the last common position of all, "" if not known."""

    resource: str
    split: bool
    at: str = ""
    pairs: list[tuple[str, str, str]] = field(default_factory=list)
    sides: list[Side] = field(default_factory=list)
    aside: list[str] = field(default_factory=list)


def merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges (offset, length) by offset, what touches as one."""
    found: list[tuple[int, int]] = []
    for offset, length in sorted(ranges):
        if found and offset <= found[-1][0] + found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], offset + length - found[-1][0])
        else:
            found.append((offset, length))
    return found


def behind(history: chain.History, at: LogPos) -> int | None:
    """Bytes of log that a history has behind a position of its own; None: its links do not lead back to it."""
    total = 0
    for point in chain.points(history):
        if point.at.nr == at.nr:
            return total + point.at.pos - at.pos
        if point.at.nr < at.nr:
            return None
        total += point.at.pos
    return None


def look(ctx: Context, view: View, resource: str) -> Report:
    """All that can be found here."""
    histories = state.histories(view, resource)
    verdict = chain.split_brain(histories)
    report = Report(resource, verdict is not None, aside=list_aside(ctx, resource))
    if verdict is None:
        return report
    report.at = str(verdict.at or "")
    report.pairs = [(a, b, str(at or "")) for a, b, at in verdict.pairs]
    for host in verdict.hosts:
        side = Side(host, str(state.tip(view, resource, host) or ""))
        if verdict.at is not None:
            side.bytes = behind(histories[host], verdict.at)
            if host == ctx.host:
                _read_own(ctx, view, resource, histories[host], verdict.at, side)
        report.sides.append(side)
    return report


def _read_own(ctx: Context, view: View, resource: str, history: chain.History, at: LogPos, side: Side) -> None:
    directory = os.path.join(ctx.paths.mars_dir, paths.resource_dir(resource))
    found: list[Written] = []
    try:
        for point in sorted(chain.points(history), key=lambda point: point.at.nr):
            if point.at.nr >= at.nr:
                start = at.pos if point.at.log == at.log else 0
                found += written(os.path.join(directory, point.at.log), view.log_uuid(resource), resource, start)
    except MarsError as error:
        ctx.warn(f"{resource}: {error.text}")
        return
    side.ranges = merged((one.offset, one.length) for one in found)
    if found:
        side.since, side.until = found[0].real_ns, found[-1].real_ns


def split_brain(ctx: Context, resource: str, args: tuple[str, ...]) -> None:
    """split-brain RES: where the histories part, since when, how much each side wrote after, which ranges."""
    view = ctx.view()
    require_member(view, resource, ctx.host)
    report = look(ctx, view, resource)
    if ctx.options.json:
        ctx.say(json.dumps(asdict(report)))
    else:
        ctx.say("\n".join(text_of(report, ctx.host)))


def text_of(report: Report, here: str) -> list[str]:
    """For people."""
    name = report.resource
    lines = [f"{name}: no split brain" if not report.split else f"{name}: SPLIT BRAIN"]
    for a, b, at in report.pairs:
        lines.append(f"  {a} and {b} have the same data up to {at or 'an unknown position'}")
    for side in report.sides:
        lines += _side_lines(side, name)
    if report.split:
        lines.append(f"  Decide whose data count. On each other host: marsadm invalidate {name}")
        lines.append("  What that host wrote after the parting is kept aside there (marsadm log-export), until it is "
                     "purged (marsadm log-purge-all)")
    if report.aside:
        lines.append(f"  {len(report.aside)} logs of discarded branches are kept on {here}: marsadm log-export {name} "
                     "DIRECTORY copies them")
    return lines


def _side_lines(side: Side, name: str) -> Iterator[str]:
    much = "an unknown amount" if side.bytes is None else f"{side.bytes} bytes"
    when = f", from {clock(side.since)} to {clock(side.until)}" if side.since else ""
    yield f"  {side.host}: {much} of log behind that, up to {side.end}{when}"
    if side.ranges is None:
        yield f"    which ranges: marsadm split-brain {name} on {side.host}"
        return
    total = sum(length for _, length in side.ranges)
    yield f"    {total} bytes of the device in {len(side.ranges)} ranges (OFFSET LENGTH):"
    yield from (f"      {offset} {length}" for offset, length in side.ranges[:SHOWN])
    if len(side.ranges) > SHOWN:
        yield f"      and {len(side.ranges) - SHOWN} more (--json has all)"


def clock(real_ns: int) -> str:
    """Local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(real_ns / 1e9))


def log_export(ctx: Context, resource: str, args: tuple[str, ...]) -> None:
    """log-export RES DIRECTORY: the logs that were set aside, and an index of what they wrote."""
    found = list_aside(ctx, resource)
    if not found:
        raise NotFoundError(f"{resource}: no logs of a discarded branch are kept here",
                            "invalidate and leave-resource set aside what no other host has")
    target = args[0]
    if not os.path.isabs(target):
        raise UsageError(f"{target[:80]}: the directory has to be given from / on")
    if os.path.lexists(target) and (not os.path.isdir(target) or os.listdir(target)):
        raise PreconditionError(f"{target} is there and not an empty directory", "name a new one")
    os.makedirs(target, mode=0o700, exist_ok=True)
    uuid = ctx.view().log_uuid(resource)
    index = [export_one(path, target, uuid, resource) for path in found]
    text = "".join(f"{line}\n" for lines in index for line in lines)
    durable.write_file(os.path.join(target, "index.txt"), text.encode())
    result: dict[str, Any] = {"resource": resource, "directory": target, "logs": len(found)}
    ctx.say(json.dumps(result) if ctx.options.json else f"{resource}: {len(found)} logs and index.txt are in {target}")


def export_one(path: str, target: str, uuid: str, resource: str) -> list[str]:
    """Copy one log; the lines of the index about it."""
    when, name = os.path.basename(os.path.dirname(path)), os.path.basename(path)
    copy = os.path.join(target, when, name)
    os.makedirs(os.path.dirname(copy), mode=0o700, exist_ok=True)
    shutil.copyfile(path, copy)
    lines = [f"# {when}/{name}: time, position of the group, what, offset, length"]
    try:
        lines += [f"{clock(one.real_ns)} {one.at} {one.what} {one.offset} {one.length}"
                  for one in written(path, uuid, resource)]
    except MarsError as error:
        lines.append(f"# {error.text}")
    return lines


COMMANDS = (
    Command(
        "split-brain", "RES", split_brain, "show where histories have parted, and what each side wrote after", "logs",
        effect="""Positions, times and device ranges out of the version links and the logs of this host.
        Which ranges another host wrote, that host tells. Nothing is changed.""",
        example="marsadm split-brain data", daemon=False, writes=False, options="--json",
    ),
    Command(
        "log-export", "RES DIRECTORY", log_export, "copy the logs of discarded branches, with a readable index", "logs",
        needs="""`invalidate` or `leave-resource` has set logs aside here, and log-purge-all has not removed them.
        DIRECTORY, given from / on, is not there or empty.""",
        effect="""The log files as they are, one directory for each time something was set aside, and index.txt with
        a line for each record: time, position, what, offset, length.""",
        example="marsadm log-export data /root/lost", scope="one", extra=(1, 1), daemon=False, writes=False,
        member=False, options="--json",
    ),
)  # fmt: skip
