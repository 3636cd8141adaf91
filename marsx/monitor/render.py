"""A report as text, in the layout of the manual's chapter 4.3. Pure: the same report gives the same text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from marsx.monitor.report import Bar, LinkLine, Node, Note, Report, Resource, VersionBlock

RULE = "-" * 79
TIB = 1 << 40
GIB = 1 << 30
BAR_WIDTH = 40


@dataclass(frozen=True)
class Style:
    """How to show it."""

    terminal: bool = False
    """Bars for what runs, and colours."""
    history: bool = False
    status: bool = False


def text(report: Report, style: Style) -> str:
    """Everything."""
    return "\n".join(_lines(report, style)) + "\n"


def head(report: Report) -> Iterator[str]:
    """Who and what."""
    only = f", Resource: {report.only}" if report.only else ""
    yield f"MARS Status - {report.host}, {report.program}{only}"
    yield f"MARS Admin  - marsadm {report.program}"
    yield f"MARS Module - {report.daemon or 'marsd does not run on this host'}"
    yield f"MARS Kernel - {report.kernel}"
    yield RULE


def _lines(report: Report, style: Style) -> Iterator[str]:
    yield from head(report)
    if not report.daemon:
        yield "---> TODO: marsd does not run here: what follows is the last known state (start it: marsd start)"
    yield from cluster(report)
    yield "---> Resources <---"
    if not report.resources:
        yield "---> HINT: no resources found"
    for resource in report.resources:
        yield ""
        yield from _resource(resource, style)


def cluster(report: Report) -> Iterator[str]:
    """The cluster line, with hosts that are short of space before it."""
    for host, level, rest in report.full:
        where = "Local Partition /mars" if host == report.host else f"Remotesystem {host}: /mars"
        yield f"\t-> HINT: {where} is full (emergency level {level}, {rest} GiB left) !!!"
    disk = "smoothly" if not report.full else "HINT"
    transactions = "smoothly" if report.emergency < 4 else "and Replication not running !!!"
    connects = "smoothly" if not report.silent else f"TODO ({', '.join(report.silent)})"
    limit = "smoothly" if not report.sync_limit else f"set to {report.sync_limit}"
    yield f"-> Cluster Diskspace: {disk} Transactions: {transactions} Connects: {connects} Synclimit: {limit}"


def _resource(resource: Resource, style: Style) -> Iterator[str]:
    yield (
        f"-> check resource {resource.name}, with {resource.size / TIB:.3f}TB, "
        f"Primary Node is {resource.primary or 'unknown'}"
    )
    for tag, note in resource.notes:
        yield f"---> {tag}: {note}"
    for node in resource.nodes:
        yield from _node(node, style)
    yield _summary(resource)
    if style.history:
        yield from _history(resource)
    if style.status:
        yield from _status(resource)


def _summary(resource: Resource) -> str:
    count = sum(node.joined for node in resource.nodes)
    here = any(node.local and node.joined for node in resource.nodes)
    mode = "remote" if not here else "standalone" if count == 1 else "clustered"
    return f"   -> modus for resource {resource.name} is {mode} ({count} node{'' if count == 1 else 's'})"


def _node(node: Node, style: Style) -> Iterator[str]:
    who = f"   -> {'local' if node.local else 'remote'} Node ({node.host} [{node.ip or 'no address'}]) as"
    if not node.joined:
        yield f"{who} not joined"
        yield "   -> Resource is not joined to this node"
        return
    yield f"{who} {'Primary' if node.primary else 'Secondary'}, {_alive(node)}"
    yield f"\tDevice  : Disk-Device {node.disk}{_enlarged(node)}" + (
        f", used as Mars-Device /dev/mars/{node.device}" if node.device_on else ""
    )
    yield from _notes(node.device_notes)
    yield f"\tSync    : {node.sync.done} bytes ({node.sync.done / TIB:.3f}TB) synced = {node.sync.percent}%" + _speed(
        "at", node.sync_rate, node.sync if node.sync_running else None
    )
    yield from _notes(node.sync_notes)
    yield from _bar(node.sync, style.terminal and node.sync_running)
    yield f"\tFetch   : {node.fetched} bytes ({node.fetched / GIB:.3f}GB) in log-{node.log:09d} active" + _speed(
        "received with", node.fetch_rate if node.fetching else 0, None
    )
    yield from _notes(node.fetch_notes)
    todo = node.replay.total - node.replay.done
    yield (
        f"\tReplay  : {node.replayed} bytes ({node.replayed / GIB:.3f}GB) now replayed, Todo {todo}, "
        f"completed {node.replay.percent}%" + _speed("at", node.replay_rate if todo else 0, node.replay)
    )
    yield from _notes(node.replay_notes)
    yield from _bar(node.replay, style.terminal and node.replay_running and todo > 0)
    yield from _verified(node)
    yield f"\tActual  : {_actual(node)}"
    yield f"\tSwitches: {_switches(node)}"
    yield from _notes(node.notes)


def _verified(node: Node) -> Iterator[str]:
    found = node.verified
    if found is None:
        return
    healed = f", {found.repaired} bytes repaired" if found.repaired else ""
    yield (
        f"\tVerify  : {found.done} bytes ({found.done / TIB:.3f}TB) compared, {found.differs} bytes differ{healed}, "
        f"{found.state} before {_duration(found.age_s)}"
    )
    yield from _notes(node.verify_notes)


def _alive(node: Node) -> str:
    if node.alive:
        return "System alive"
    since = "" if node.silent_s < 0 else f" (last message before {node.silent_s} sec)"
    return f"System unknown{since} !!!"


def _enlarged(node: Node) -> str:
    return ", enlarged" if node.actual_size // 4096 > node.size // 4096 else ", not enlarged"


def _actual(node: Node) -> str:
    attached = f"Attached={_on(node.attached)}"
    if node.primary:
        return f"Status=Primary, used Device={_on(node.device_on)}, {attached}"
    return f"Status=Secondary, Syncstatus={_on(node.sync_running)}, Logfileupdate={_on(node.fetching)}, {attached}"


def _switches(node: Node) -> str:
    names = (("connect", "Connect"), ("sync", "Sync"), ("allow-replay", "AllowReplay"))
    others = " ".join(f"{label}={_on(node.switches[key])}" for key, label in names)
    masked = f"[masked: {others}]" if node.primary else others
    return f"Attach={_on(node.switches['attach'])} {masked}"


def _on(value: bool) -> str:
    return "on" if value else "off"


def _notes(notes: tuple[Note, ...]) -> Iterator[str]:
    for tag, note in notes:
        yield f"\t\t---> {tag}: {note}"


def _speed(word: str, rate: int, bar: Bar | None) -> str:
    if rate <= 0:
        return ""
    rest = 0 if bar is None else bar.total - bar.done
    done = f" (done in {_duration(rest // rate)})" if rest > 0 else ""
    return f", {word} {rate / 1e6:.1f} MB/s{done}"


def _duration(seconds: int) -> str:
    if seconds < 120:
        return f"{seconds} sec"
    return f"{seconds // 60} min" if seconds < 7200 else f"{seconds // 3600} h {seconds % 3600 // 60} min"


def _bar(bar: Bar, wanted: bool, width: int = BAR_WIDTH) -> Iterator[str]:
    """[==========>.........]  52.11%"""
    if not wanted or not bar.total:
        return
    filled = width if bar.done >= bar.total else min(width - 1, width * bar.done // bar.total)
    shape = "=" * filled + (">" if filled < width else "") + "." * (width - filled - 1)
    yield f"\t\t[{shape}] {bar.percent:>6}%"


def _history(resource: Resource) -> Iterator[str]:
    yield "   -> History Replay/Status"
    for block in resource.history:
        yield "  |"
        yield f"  |-----> Vers.{block.nr:09d} -----> {_log_line(block)}"
        digests = {(link.digest, link.size) for link in block.links}
        for link in block.links:
            yield f"  |   |-----> {_link_line(link, len(digests) == 1)}"
        for note in _block_notes(block):
            yield f"  |   |-----> {note}"


def _log_line(block: VersionBlock) -> str:
    size = max(link.size for link in block.links)
    producers = sorted({link.producer for link in block.links})
    return f"Logfile Size: {size} bytes ({size / GIB:.3f}GB) by {', '.join(producers)}"


def _link_line(link: LinkLine, equal: bool) -> str:
    role = "Primary  " if link.producer == link.host else "Secondary"
    state = {"done": "replay OK", "waiting": "replay waiting for start", "incomplete": "replay incomplete"}[link.replay]
    verify = "verify OK" if equal else "verify open"
    return (
        f"{role} Node: {link.host:<20} Check: {link.digest} Size: {link.size} bytes ({link.size / GIB:.3f}GB) "
        f"---> {state}, {verify}"
    )


def _block_notes(block: VersionBlock) -> Iterator[str]:
    sizes = {link.size for link in block.links}
    digests = {link.digest for link in block.links}
    if len(block.links) < block.members:
        nodes = f"Cluster has {block.members} Nodes, but only find {len(block.links)}"
        yield f"HINT: Count of Logfiles different = ({nodes})"
    if len(digests) > 1 and len(sizes) < len(digests):
        yield "HINT: Logfiles have not equal Checksums and same size, check for SPLIT-BRAIN"
    if block.in_use:
        done = all(link.replay == "done" for link in block.links)
        yield f"WORK: Version is actual and used. {'Wait for more ...' if done else 'Replay in progress ...'}"
    elif len(digests) == 1 and all(link.replay == "done" for link in block.links):
        yield "TODO: Logfiles have all equal Sizes and Checksums, can be deleted ..."


def _status(resource: Resource) -> Iterator[str]:
    """Bars of all nodes on one scale: D the device, S synced, F fetched, R replayed."""
    joined = [node for node in resource.nodes if node.joined]
    yield f"   -> Cluster Status - Resource {resource.name}"
    widest = max((len(node.host) for node in joined), default=0)
    biggest = max((max(node.actual_size, node.size) for node in joined), default=0)
    newest = max((node.replay.total for node in joined), default=0)
    for node in joined:
        total = node.fetch_rest + (node.replay.total - node.fetch_rest)
        yield _scale(node.host, widest, node.actual_size or node.size, biggest, "D")
        yield _scale("", widest, node.sync.done, biggest, "S")
        yield _scale("", widest, total - node.fetch_rest, newest, "F")
        yield _scale("", widest, node.replay.done, newest, "R")


def _scale(name: str, widest: int, value: int, top: int, letter: str, width: int = 60) -> str:
    filled = width if value >= top else width * value // top
    return f"      {name:<{widest}} |{'>' * filled}{letter}"
