"""Values of hosts, and of the resource among them: members, lists, space, versions, algorithms."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from marsx.admin.macro.numbers import seconds
from marsx.admin.views.look import Look
from marsx.admin.views.messages import lines
from marsx.admin.views.table import Value
from marsx.tree import paths

ALGORITHMS = {16: "md5old", 17: "md5", 18: "crc32c", 19: "crc32", 20: "sha1", 24: "lzo", 25: "lz4", 26: "zlib"}
OWN_LOG_DIGEST = "xxh3"
NET_DIGESTS = ("xxh3", "sha256", "blake2b")


def resources(look: Look, resource: str, mine: bool, kind: str) -> list[str]:
    """Resources that there are, or that have a replica (here); nobody is a guest here."""
    if kind == "guests":
        return []
    if mine:
        return [name for name in look.tree.resources if look.host in look.tree.members(name)]
    return [name for name in look.tree.resources if kind == "resources" or look.tree.members(name)]


def cluster_peers(look: Look, resource: str) -> list[str]:
    """All hosts."""
    return list(look.tree.hosts)


def resource_peers(look: Look, resource: str) -> list[str]:
    """Hosts with a replica."""
    return list(look.members(resource))


def configured_peers(look: Look, resource: str) -> list[str]:
    """Hosts that have a device name for the resource."""
    return [host for host in look.tree.hosts if look.tree.device(resource, host)]


def names_of(mask: int, shift: int = 0) -> str:
    """The algorithms of a bit mask, joined with |; unknown bits in hex."""
    mask <<= shift
    known = [name for bit, name in ALGORITHMS.items() if mask >> bit & 1]
    rest = mask & ~sum(1 << bit for bit in ALGORITHMS)
    return "|".join([*known, hex(rest)] if rest else known)


def _decimal(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


def used(look: Look, resource: str, line: str, what: str) -> str:
    """The algorithm that marsd uses: the tree's word, else what its settings say."""
    said = look.tree.host_actual(look.host, f"used-{line}-{what}")
    if said:
        return names_of(_decimal(said))
    if what == "compression" or not look.tree.uuid:
        return ""
    if line == "log":
        return OWN_LOG_DIGEST
    from marsx.base.config import Settings

    return NET_DIGESTS[Settings(look.ctx.paths).get("sync_digest")]


def fact(look: Look, resource: str, *args: str, key: str) -> str:
    """What this host, or a named one, says of itself."""
    return look.tree.host_actual(args[0] if args else look.host, key)


def default_mask(look: Look, resource: str, key: str) -> str:
    """The algorithms of a cluster-wide switch."""
    text = look.tree.get(paths.default(key))
    return names_of(int(text, 16)) if text else ""


def lamport_slip(look: Look, resource: str) -> int:
    """Seconds that the Lamport time is ahead of the clock."""
    _ = look.ctx.store
    return max(0, look.ctx.lamport.high_water - look.now_ns) // 1_000_000_000


def comm_status(look: Look, resource: str) -> str:
    """Hosts that were not heard of within --window, and what hosts say of themselves."""
    found = []
    for host in look.tree.hosts:
        if not look.alive(host):
            age = look.tree.alive_age(host, look.now_ns)
            how = "never heard of" if age is None else f"last heard of {seconds(age // 1_000_000_000)} ago"
            found.append(f"  {host} {how}\n")
        found += [
            f"  {host} {line}\n"
            for line in lines(look, "", host, which="the", is_pretty=True, about="global", kind="")
        ]
    return "".join(found)


def names(look: Look, resource: str) -> list[str]:
    """All values and built-in macros."""
    from marsx.admin.views.macros import MACROS
    from marsx.admin.views.table import all_values

    return sorted([*MACROS, *all_values()])


def _counted(name: str, short: str, of: Callable[..., list[str]], scope: str) -> tuple[Value, Value]:
    return (Value(name, "list", short, of, scope),
            Value(f"count-{name}", "number", f"number of {short}",
                  lambda look, res: len(of(look, res)), scope))  # fmt: skip


PEERS: tuple[tuple[str, str, Callable[..., list[str]], str], ...] = (
    ("cluster", "hosts of the cluster", cluster_peers, "host"),
    ("resource", "hosts with a replica", resource_peers, "resource"),
    ("guest", "hosts that are guests (none)", lambda look, res: [], "resource"),
)


def _lists() -> list[Value]:
    rows: list[Value] = []
    for whose, words in (("my", "with a replica here"), ("all", "")):
        for kind in ("resources", "members", "guests"):
            short = {"resources": f"resources {words}", "members": f"resources with a replica {words and 'here'}",
                     "guests": "resources of guests (none)"}[kind].strip()  # fmt: skip
            of = partial(resources, mine=whose == "my", kind=kind)
            rows += _counted(f"{whose}-{kind}", short, of, "host")
    for name, short, of_peers, scope in PEERS:
        rows += _counted(f"{name}-peers", short, of_peers, scope)
        rows += _counted(f"{name}-members", short, of_peers, scope)
    return [*rows, *_counted("configured-peers", "hosts with a device name", configured_peers, "resource")]


VALUES = (
    *_lists(),
    Value("uuid", "text", "the cluster", lambda look, res: look.tree.uuid, "host"),
    *(Value(key, "text", short, partial(fact, key=key), "host") for key, short in (
        ("tree", "version of the tree"), ("features", "what marsd can"), ("usable", "what all hosts can"),
        ("buildtag", "version of marsd"))),
    Value("rest-space", "number", "GiB left for logs", lambda look, res: look.tree.rest_space(look.host), "host"),
    Value("total-space", "number", "GiB for logs",
          lambda look, res: _decimal(look.tree.host_actual(look.host, "total-space")), "host"),
    Value("emergency", "number", "emergency level, 0 to 4",
          lambda look, res: look.tree.emergency(look.host), "host"),
    *(Value(f"used-{line}-{what}", "text", f"{what} of the {'logs' if line == 'log' else 'lines'}",
            partial(used, line=line, what=what), "host")
      for what in ("compression", "digest") for line in ("log", "net")),
    *(Value(f"enabled-{line}-compressions", "text", f"compressions allowed in the cluster: {line}",
            partial(default_mask, key=f"enabled-{line}-compressions"), "host") for line in ("log", "net")),
    *(Value(f"disabled-{line}-digests", "text", f"digests forbidden in the cluster: {line}",
            partial(default_mask, key=f"disabled-{line}-digests"), "host") for line in ("log", "net")),
    Value("names", "list", "all names that view-NAME takes", names, "host"),
    Value("lamport-slip", "number", "seconds that Lamport time is ahead of the clock", lamport_slip, "host"),
    Value("comm-status", "text", "silent hosts, and what hosts say of themselves", comm_status, "host"),
)  # fmt: skip
