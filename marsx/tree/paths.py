"""Every name of the tree: built and parsed only here.

A name is a path relative to /mars, at most three parts deep, made of the letters of identifiers; nothing else is one,
whoever says so (a peer, a directory, the command line). `parse` gives what a name means and None for everything else;
the small functions at the end build names and cannot build an illegal one.

Each entry has one kind of writer:

| writer | who writes it | whom a host believes about it |
|---|---|---|
| `wish` | marsadm on any member | any member |
| `fact` | marsd of the host it speaks of | that host; others only as a relay while it is not connected |
| `local` | this host, for itself | nobody: it never travels |
| `file` | a regular file (log), no entry | nobody: it travels by fetch only |

Each kind also has the form of its value, so that what a peer sends has been looked at before anybody acts on it. The
tombstone `.deleted` is a legal value of every entry.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cache, lru_cache
from typing import NamedTuple

from marsx.base import position

DELETED = ".deleted"
NONE = "(none)"
REL_MAX = 255
DEPTH_MAX = 3
PROPAGATED = ("wish", "fact")

RESERVED = frozenset("none all any full empty undefined remote local localhost".split())
SWITCHES = ("attach", "connect", "sync", "allow-replay")

_IDENT = r"[A-Za-z0-9_][-A-Za-z0-9_]{0,62}"
_POS = rf"log-[0-9]{{9,18}}-{_IDENT},[0-9]{{1,19}}"
_DIGEST = r"[0-9a-f]{32}"

_FORMS = {
    "switch": r"[01]",
    "number": r"[0-9]{1,19}",
    "signed": r"-?[0-9]{1,19}(,[-0-9A-Za-z,]{1,100})?",
    "numbers": r"[0-9]{1,19}(,[0-9]{1,19}){0,7}",
    "stamp": r"[0-9]{1,12}\.[0-9]{9}",
    "mask": r"0x[0-9a-f]{1,16}",
    "host": rf"{_IDENT}|\(none\)",
    "hosts": rf"{_IDENT}(,{_IDENT}){{0,31}}|\(none\)",
    "address": r"[0-9A-Fa-f:.]{2,45}",
    "token": r"[0-9A-Za-z_-]{1,128}",
    "device": rf"{_IDENT}|\(none\)",
    "path": r"/[^\x00-\x1f\x7f-\x9f]{0,1022}",
    "text": r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,1023}",
    "replay": rf"{_POS},[0-9]{{1,19}}",
    "position": rf"{_POS}(,[0-9]{{1,19}})?(,{_DIGEST})?",
    "version": rf"{_DIGEST},{_POS}:({_DIGEST},{_POS})?",
    "granted": rf"({_IDENT}|\(none\)),{_POS},{_DIGEST}",
    "stalls": r"-|[a-z]{1,16}=[a-z-]{1,16}(,[a-z]{1,16}=[a-z-]{1,16}){0,15}",
    "unreachable": rf"-|{_IDENT}=[a-z-]{{1,16}}(,{_IDENT}=[a-z-]{{1,16}}){{0,250}}",
}


@cache
def _form(name: str) -> re.Pattern[str]:
    """Compiled when it is first needed: a display needs few of them."""
    return re.compile(_FORMS[name], re.ASCII)


# key -> form of the value
_HOST_WISHES = {"ip": "address", "member": "token", "removed": "token"}
_HOST_FACTS = {
    "alive": "switch", "time": "stamp", "tree": "text", "features": "text", "usable": "text", "buildtag": "text",
    "marsadm-version": "text", "used-log-digest": "number", "used-net-digest": "number",
    "used-log-compression": "number", "used-net-compression": "number", "emergency": "number", "rest-space": "number",
    "total-space": "number", "incarnation": "token", "unreachable": "unreachable",
}
_DEFAULTS = {"enabled-log-compressions": "mask", "enabled-net-compressions": "mask", "disabled-log-digests": "mask",
             "disabled-net-digests": "mask"}
_HOST_DEFAULTS = {"sync-limit": "number", "sync-pref-list": "hosts"}
_TODO_GLOBAL = {"systemd-global-trigger": "host"}
_RESOURCE_WISHES = {"size": "number", "primary": "host", "maxnr": "number", "block-size": "number", "log-uuid": "text",
                    "systemd-start-unit": "text", "systemd-stop-unit": "text", "systemd-want": "host"}
_MEMBER_WISHES = {"data": "path", "device": "device", "syncfrom": "host", "connect": "hosts", "member": "token",
                  "removed": "token"}
_MEMBER_FACTS = {"actsize": "number", "replay": "replay", "syncstatus": "number", "syncpos": "position",
                 "verifystatus": "numbers", "skip-check": "text"}
_TODO = {"attach": "switch", "connect": "switch", "sync": "switch", "allow-replay": "switch",
         "emergency-limit": "number", "want-primary": "token"}
_ACTUAL = {
    "is-attached": "switch", "is-copying": "switch", "is-syncing": "switch", "is-replaying": "switch",
    "is-primary": "switch", "has-emergency": "switch", "is-emergency": "switch", "if-on": "switch",
    "open-count": "number", "if-flying": "number", "if-state": "signed", "if-completion-stamp": "stamp",
    "disk-error": "signed", "replay-code": "signed", "granted": "granted", "incarnation": "token", "begun": "token",
    "fetched": "position", "sound": "position", "taken": "token", "verify-state": "token",
    "verify-source": "host", "verify-pos": "number", "verify-differs": "number", "verify-repaired": "number",
    "verify-time": "stamp", "stalled": "stalls",
    **{f"{what}-{which}_rate": "number" for what in ("ops", "amount") for which in ("sync", "file", "replay", "if")},
}

_IDENTIFIER = re.compile(_IDENT, re.ASCII)
_MESSAGE = re.compile(r"msg-[a-z][-A-Za-z0-9_]{0,126}", re.ASCII)
_VERSION = re.compile(rf"version-([0-9]{{9}}|[1-9][0-9]{{9,17}})-({_IDENT})", re.ASCII)
_LOG = re.compile(rf"log-([0-9]{{9}}|[1-9][0-9]{{9,17}})-({_IDENT})", re.ASCII)
_PER_HOST = re.compile(rf"({'|'.join(sorted({*_MEMBER_WISHES, *_MEMBER_FACTS}))})-({_IDENT})", re.ASCII)
_HOST_DIR = re.compile(rf"(actual|defaults|todo|local|cache|probe)-({_IDENT})", re.ASCII)
_LOCAL_DIRS = frozenset({"local", "cache", "probe"})


class Name(NamedTuple):
    """What a legal name means. `host` is whom it speaks of ("" for nobody), `nr` the number of a version or log."""

    rel: str
    kind: str
    resource: str
    host: str
    key: str
    writer: str
    form: str
    nr: int = 0

    @property
    def propagated(self) -> bool:
        """True if the entry is exchanged with the other hosts."""
        return self.writer in PROPAGATED


def is_identifier(text: str) -> bool:
    """Syntax of host and resource names, reserved words excluded."""
    return _IDENTIFIER.fullmatch(text) is not None and text.lower() not in RESERVED


@lru_cache(maxsize=4096)
def is_host(text: str) -> bool:
    """True for a name a host may have here."""
    return is_identifier(text) and position.is_host_name(text)


@lru_cache(maxsize=4096)
def is_resource(text: str) -> bool:
    """True for a name a resource may have here."""
    return is_identifier(text)


NAMES_MAX = 1 << 16
_names: dict[str, Name | None] = {}  # what has been parsed, at most NAMES_MAX of it


def parse(rel: str) -> Name | None:
    """The meaning of a name of an entry or log file; None for everything that is not just one."""
    try:
        return _names[rel]
    except KeyError:
        name = _parse(rel)
    if len(_names) >= NAMES_MAX:
        _names.clear()
    _names[rel] = name
    return name


def _parse(rel: str) -> Name | None:
    if not rel or len(rel) > REL_MAX or not rel.isascii():
        return None
    head, _, leaf = rel.rpartition("/")
    place = _place(head)
    if place is not None:
        return _named(rel, leaf, place)
    parts = rel.split("/")
    return _global(rel, parts) if len(parts) <= DEPTH_MAX and not rel.startswith("resource-") else None


def _named(rel: str, leaf: str, place: tuple[str, str, str]) -> Name | None:
    what, resource, host = place
    found = _leaf(what, leaf)
    if found is None or len(rel) > REL_MAX:
        return None
    kind, own, key, writer, form, nr = found
    # Not through the constructor of the class, which takes four times as long: a display makes thousands.
    return tuple.__new__(Name, (rel, kind, resource, own or host, key, writer, form, nr))


def parse_in(directory: str, leaves: Iterable[str]) -> list[Name | None]:
    """`parse` of all these names in one directory: for displays, which parse the whole tree at each call."""
    prefix, place = directory + "/" if directory else "", _place(directory)
    if place is None or len(_names) >= NAMES_MAX:
        return [parse(prefix + leaf) for leaf in leaves]
    names = [_named(prefix + leaf, leaf, place) for leaf in leaves]
    _names.update((name.rel, name) for name in names if name is not None)
    return names


@lru_cache(maxsize=4096)
def _place(directory: str) -> tuple[str, str, str] | None:
    """(what, resource, host) of a directory of a resource; what is todo, actual, userspace, or "" for the resource's
    own. Worked out once for all that is in it."""
    first, slash, rest = directory.partition("/")
    resource = first[len("resource-"):]
    if not first.startswith("resource-") or not is_resource(resource):
        return None
    if not slash or rest == "userspace":
        return rest, resource, ""
    match = _HOST_DIR.fullmatch(rest)
    legal = match is not None and match[1] in ("todo", "actual") and is_host(match[2])
    return (match[1], resource, match[2]) if match is not None and legal else None


def is_directory(rel: str) -> bool:
    """True for a directory of the tree whose entries count (the root is the empty name)."""
    if not rel:
        return True
    if len(rel) > REL_MAX or not rel.isascii():
        return False
    first, _, rest = rel.partition("/")
    if first.startswith("resource-"):
        return is_resource(first[len("resource-"):]) and (not rest or rest == "userspace" or _is_host_dir(
            rest, ("todo", "actual")))
    return not rest and (first in ("ips", "defaults", "todo-global", "userspace") or _is_host_dir(
        first, ("actual", "defaults")))


class _Matchers(dict[str, Callable[[str], object]]):
    """form -> what is true for a value of that form, made when it is first needed."""

    def __missing__(self, form: str) -> Callable[[str], object]:
        found = frozenset("01").__contains__ if form == "switch" else _form(form).fullmatch
        self[form] = found
        return found


MATCHERS = _Matchers()


def value_problem(name: Name, value: str) -> str:
    """Why `value` is no legal value of `name`, or ""."""
    if value == DELETED or MATCHERS[name.form](value):
        return ""
    return f"{name.rel}: not a legal value ({name.form}): {value[:80]!r}"


@lru_cache(maxsize=4096)
def _is_host_dir(part: str, heads: tuple[str, ...]) -> bool:
    match = _HOST_DIR.fullmatch(part)
    return match is not None and match[1] in heads and is_host(match[2])


def _global(rel: str, parts: list[str]) -> Name | None:
    if len(parts) == 1:
        return Name(rel, "uuid", "", "", "uuid", "wish", "text") if rel == "uuid" else None
    head = parts[0]
    match = _HOST_DIR.fullmatch(head)
    if match and match[1] in _LOCAL_DIRS:
        legal = is_host(match[2]) and all(_IDENTIFIER.fullmatch(part) for part in parts[1:])
        return Name(rel, "local", "", match[2], "/".join(parts[1:]), "local", "text") if legal else None
    if len(parts) != 2:
        return None
    key = parts[1]
    if not _is_host_dir(head, ("actual", "defaults")):
        return _global_wish(rel, head, key)
    which, _, host = head.partition("-")
    if which == "actual":
        return _fact(rel, "host-actual", "", host, key, _HOST_FACTS)
    if key in _HOST_DEFAULTS:
        return Name(rel, "host-default", "", host, key, "wish", _HOST_DEFAULTS[key])
    return None


def _global_wish(rel: str, head: str, key: str) -> Name | None:
    if head == "ips":
        which, _, host = key.partition("-")
        if which in _HOST_WISHES and is_host(host):
            return Name(rel, "host-" + which, "", host, which, "wish", _HOST_WISHES[which])
    elif head == "defaults" and key in _DEFAULTS:
        return Name(rel, "default", "", "", key, "wish", _DEFAULTS[key])
    elif head == "todo-global" and key in _TODO_GLOBAL:
        return Name(rel, "todo-global", "", "", key, "wish", _TODO_GLOBAL[key])
    elif head == "userspace" and _IDENTIFIER.fullmatch(key):
        return Name(rel, "userspace", "", "", key, "wish", "text")
    return None


def _fact(rel: str, kind: str, resource: str, host: str, key: str, known: dict[str, str]) -> Name | None:
    found = _fact_leaf(kind, key, known)
    return found and Name(rel, found[0], resource, host, *found[2:])


Leaf = tuple[str, str, str, str, str, int]
"""(kind, host if the leaf itself names one, key, writer, form, nr)"""


@lru_cache(maxsize=1 << 14)
def _leaf(what: str, leaf: str) -> Leaf | None:
    """The meaning of the last part of a name, which is the same in all resources: worked out once for all of them.
    `what`: see `_place`."""
    if what == "actual":
        return _fact_leaf("actual", leaf, _ACTUAL)
    if what == "todo":
        return ("todo", "", leaf, "wish", _TODO[leaf], 0) if leaf in _TODO else None
    if what == "userspace":
        return ("userspace", "", leaf, "wish", "text", 0) if _IDENTIFIER.fullmatch(leaf) else None
    return _resource_leaf(leaf)


def _fact_leaf(kind: str, key: str, known: dict[str, str]) -> Leaf | None:
    if key in known:
        return kind, "", key, "fact", known[key], 0
    if _MESSAGE.fullmatch(key):
        return "message", "", key[len("msg-"):], "fact", "text", 0
    return None


def _resource_leaf(leaf: str) -> Leaf | None:
    if leaf in _RESOURCE_WISHES:
        return leaf, "", leaf, "wish", _RESOURCE_WISHES[leaf], 0
    for pattern, kind, writer, form in ((_VERSION, "version", "fact", "version"), (_LOG, "log", "file", "text")):
        match = pattern.fullmatch(leaf)
        if match:
            host = match[2]
            return (kind, host, kind, writer, form, int(match[1])) if is_host(host) else None
    match = _PER_HOST.fullmatch(leaf)
    if not match or not is_host(match[2]):
        return None
    key = match[1]
    if key in _MEMBER_FACTS:
        return key, match[2], key, "fact", _MEMBER_FACTS[key], 0
    return key, match[2], key, "wish", _MEMBER_WISHES[key], 0


def checked(rel: str) -> str:
    """`rel` itself if it is a legal name, else ValueError: what every builder below passes through."""
    if parse(rel) is None:
        raise ValueError(f"not a name of the tree: {rel[:120]!r}")
    return rel


def uuid() -> str:
    return "uuid"


def ip(host: str) -> str:
    return checked(f"ips/ip-{host}")


def host_member(host: str) -> str:
    """Incarnation of a host's membership in the cluster (rule 26)."""
    return checked(f"ips/member-{host}")


def host_removed(host: str) -> str:
    """Incarnation that is out of the cluster (rule 26)."""
    return checked(f"ips/removed-{host}")


def host_actual(host: str, key: str) -> str:
    """A fact about a whole host: alive, time, emergency, rest-space, incarnation, msg-KEY ..."""
    return checked(f"actual-{host}/{key}")


def host_default(host: str, key: str) -> str:
    return checked(f"defaults-{host}/{key}")


def default(key: str) -> str:
    return checked(f"defaults/{key}")


def userspace(key: str, resource: str = "") -> str:
    return checked(f"resource-{resource}/userspace/{key}" if resource else f"userspace/{key}")


def resource_dir(resource: str) -> str:
    if not is_resource(resource):
        raise ValueError(f"not a resource name: {resource[:80]!r}")
    return f"resource-{resource}"


def primary(resource: str) -> str:
    return checked(f"resource-{resource}/primary")


def size(resource: str) -> str:
    return checked(f"resource-{resource}/size")


def maxnr(resource: str) -> str:
    return checked(f"resource-{resource}/maxnr")


def block_size(resource: str) -> str:
    return checked(f"resource-{resource}/block-size")


def log_uuid(resource: str) -> str:
    """The uuid in the headers of the resource's logs, where it is not that of the cluster: it came by a merge."""
    return checked(f"resource-{resource}/log-uuid")


def systemd(resource: str, key: str) -> str:
    """systemd-start-unit, systemd-stop-unit, systemd-want by `key` = start-unit, stop-unit, want."""
    return checked(f"resource-{resource}/systemd-{key}")


def of_member(resource: str, key: str, host: str) -> str:
    """`KEY-HOST` of a resource: the general form behind data(), replay() and the like."""
    return checked(f"resource-{resource}/{key}-{host}")


def data(resource: str, host: str) -> str:
    return of_member(resource, "data", host)


def device(resource: str, host: str) -> str:
    return of_member(resource, "device", host)


def actsize(resource: str, host: str) -> str:
    return of_member(resource, "actsize", host)


def replay(resource: str, host: str) -> str:
    return of_member(resource, "replay", host)


def syncstatus(resource: str, host: str) -> str:
    return of_member(resource, "syncstatus", host)


def syncpos(resource: str, host: str) -> str:
    return of_member(resource, "syncpos", host)


def verifystatus(resource: str, host: str) -> str:
    return of_member(resource, "verifystatus", host)


def skip_check(resource: str, host: str) -> str:
    return of_member(resource, "skip-check", host)


def connect_pref(resource: str, host: str) -> str:
    return of_member(resource, "connect", host)


def syncfrom(resource: str, host: str) -> str:
    return of_member(resource, "syncfrom", host)


def member(resource: str, host: str) -> str:
    return of_member(resource, "member", host)


def removed(resource: str, host: str) -> str:
    return of_member(resource, "removed", host)


def todo(resource: str, host: str, switch: str) -> str:
    return checked(f"resource-{resource}/todo-{host}/{switch}")


def want_primary(resource: str, host: str) -> str:
    return todo(resource, host, "want-primary")


def actual(resource: str, host: str, key: str) -> str:
    return checked(f"resource-{resource}/actual-{host}/{key}")


def granted(resource: str, host: str) -> str:
    return actual(resource, host, "granted")


FORCE, IGNORE_SYNC = "force-", "ignore-sync-"
"""A want-primary that begins so says: by force; the second one: also over a replica that is not consistent. It stands
as long as its host is designated and disconnected, so that a restart does not take the device away."""


def begun(resource: str, host: str) -> str:
    """The newest log of `host` with which a replica began."""
    return actual(resource, host, "begun")


def incarnation(resource: str, host: str) -> str:
    return actual(resource, host, "incarnation")


def message(resource: str, host: str, key: str) -> str:
    """`msg-KEY` of a resource, or of the whole host when `resource` is empty."""
    return actual(resource, host, "msg-" + key) if resource else host_actual(host, "msg-" + key)


def version(resource: str, nr: int, host: str) -> str:
    return checked(f"resource-{resource}/version-{nr:09d}-{host}")


def log(resource: str, nr: int, host: str) -> str:
    """The log file number `nr` that `host` produced (a regular file)."""
    return checked(f"resource-{resource}/log-{nr:09d}-{host}")


def local_dir(host: str) -> str:
    """The directory for what never leaves this host."""
    if not is_host(host):
        raise ValueError(f"not a host name: {host[:80]!r}")
    return f"local-{host}"


def lamport_file(host: str) -> str:
    return checked(f"local-{host}/lamport")
