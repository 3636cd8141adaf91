"""Settings: from whom a replica fetches, emergency limits, compression on the line, tunables of this host."""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path

from marsx.admin.context import Context, require_cluster, require_member
from marsx.admin.table import Command, aliased
from marsx.base import durable
from marsx.base.config import TUNABLES, Settings, parse_value
from marsx.base.errors import MarsError, NotFoundError, PreconditionError, UsageError
from marsx.tree import paths

CODECS = {"blosc2": 1}
"""What the sync can compress with -> its bit in the mask."""


def set_connect_pref(ctx: Context, resource: str, args: tuple[str, ...]) -> None:
    """RES LIST: fetch logs from the first of these hosts that can be reached."""
    view = ctx.view()
    require_member(view, resource, ctx.host)
    hosts = [] if args[0] in ("", paths.NONE) else list(dict.fromkeys(filter(None, args[0].split(","))))
    for host in hosts:
        if host not in view.ips:
            raise NotFoundError(f"unknown host '{host[:80]}'", f"known hosts: {', '.join(view.ips)}")
    if ctx.host in hosts:
        raise UsageError(f"{ctx.host} cannot fetch from itself", "give other hosts")
    ctx.wish((paths.connect_pref(resource, ctx.host), ",".join(hosts) or paths.NONE))
    ctx.say(f"{resource}: logs are fetched from {', then '.join(hosts) if hosts else 'the primary'}")


def get_connect_pref(ctx: Context, resource: str, args: tuple[str, ...]) -> None:
    """RES: the list as it stands."""
    require_member(ctx.view(), resource, ctx.host)
    hosts = ctx.view().connect_pref(resource, ctx.host)
    ctx.show({"resource": resource, "hosts": hosts}, ",".join(hosts) or paths.NONE)


def set_emergency_limit(ctx: Context, resource: str, args: tuple[str, ...]) -> None:
    """RES PERCENT."""
    require_member(ctx.view(), resource, ctx.host)
    text = args[0].removesuffix("%")
    if not (text.isascii() and text.isdigit() and int(text) <= 100):
        raise UsageError(f"'{args[0][:40]}' is not a percentage", "0 (off) to 100")
    ctx.wish((paths.todo(resource, ctx.host, "emergency-limit"), str(int(text))))


def get_emergency_limit(ctx: Context, resource: str, args: tuple[str, ...]) -> None:
    """RES: the percentage."""
    require_member(ctx.view(), resource, ctx.host)
    limit = ctx.view().emergency_limit(resource, ctx.host)
    ctx.show({"resource": resource, "percent": limit}, str(limit))


def set_net_compressions(ctx: Context, args: tuple[str, ...]) -> None:
    """NAMES joined with `|`; none, all."""
    require_cluster(ctx.view(), ctx.host)
    names = {"none": [], "": [], "all": list(CODECS)}.get(args[0], args[0].replace(",", "|").split("|"))
    for name in names:
        if name not in CODECS:
            raise UsageError(f"'{name[:40]}' is no compression of this program", f"none, all, or: {'|'.join(CODECS)}")
    mask = sum({CODECS[name] for name in names})
    ctx.wish((paths.default("enabled-net-compressions"), f"0x{mask:08x}"))


def get_tunable(ctx: Context, args: tuple[str, ...]) -> None:
    """NAME: its value; without NAME all of them."""
    live = Settings(ctx.paths)
    if args:
        ctx.show({args[0]: live.get(args[0])}, str(live.get(args[0])))
        return
    values = {name: live.get(name) for name in TUNABLES}
    lines = [f"{name} = {value} {TUNABLES[name].unit}".rstrip() for name, value in values.items()]
    ctx.show(values, "\n".join(lines))


def set_tunable(ctx: Context, args: tuple[str, ...]) -> None:
    """NAME VALUE [--persist]."""
    name, text = args
    live = Settings(ctx.paths)
    if name not in TUNABLES:
        live.get(name)  # says which ones there are
    value = parse_value(TUNABLES[name], text)
    if ctx.options.persist and not ctx.would(f"write {name} = {value} into {ctx.paths.config_file}"):
        _persist(ctx, name, value)
    if not ctx.would(f"write {value} into {ctx.paths.sys_dir}/{name}"):
        live.put(name, text)
    lasts = "" if ctx.options.persist else "; until the next start of the machine (--persist: for good)"
    ctx.say(f"{name} = {value} {TUNABLES[name].unit}".rstrip() + lasts)


def _persist(ctx: Context, name: str, value: int) -> None:
    """Change one line of marsd.toml and nothing else; what would mean something else is not written."""
    path = Path(ctx.paths.config_file)
    try:
        old = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        old = ""
    new = with_tunable(old, name, value)
    wanted = tomllib.loads(old)
    flat = {**wanted.get("tunables", {})}
    folder, _, leaf = name.rpartition("/")
    if folder and isinstance(flat.get(folder), dict):
        flat[folder] = {**flat[folder], leaf: value}
        flat.pop(name, None)
    else:
        flat[name] = value
    if not _says(new, {**wanted, "tunables": flat}):
        raise PreconditionError(f"{path} cannot be changed here as it is written", f"write {name} there by hand")
    try:
        os.makedirs(path.parent, mode=0o700, exist_ok=True)
        durable.write_file(str(path), new.encode(), 0o644)
    except OSError as exc:
        raise MarsError(f"{path} cannot be written: {exc.strerror}", "look at its directory") from exc


def _says(text: str, wanted: dict[str, object]) -> bool:
    try:
        return tomllib.loads(text) == wanted
    except tomllib.TOMLDecodeError:
        return False


def with_tunable(text: str, name: str, value: int) -> str:
    """The configuration with this value: its line in [tunables] (or in the table of its folder) is replaced, or added
    as the first one below the table's head."""
    folder, _, leaf = name.rpartition("/")
    for table, key in ((f"tunables.{folder}", leaf), ("tunables", name)):
        lines = text.splitlines()
        heads = [nr for nr, line in enumerate(lines) if _head(line) == table]
        if not heads:
            continue
        begin = heads[0] + 1
        end = next((nr for nr in range(begin, len(lines)) if lines[nr].lstrip().startswith("[")), len(lines))
        same = re.compile(rf"""\s*(["']?){re.escape(key)}\1\s*=\s*-?[0-9_]+\s*(#.*)?""")
        line = f"{json.dumps(key)} = {value}" if "/" in key else f"{key} = {value}"
        found = next((nr for nr in range(begin, end) if same.fullmatch(lines[nr])), None)
        if found is None:
            lines.insert(begin, line)
        else:
            comment = same.fullmatch(lines[found])
            lines[found] = line + (f"  {comment[2]}" if comment and comment[2] else "")
        return "\n".join(lines) + "\n"
    return with_tunable(f"{text.rstrip()}\n\n[tunables]\n".lstrip(), name, value)


def _head(line: str) -> str:
    """The table that a line begins, "" if it begins none."""
    match = re.fullmatch(r"\s*\[([^\[\]]+)\]\s*(#.*)?", line)
    return match[1].replace('"', "").replace(" ", "") if match else ""


_SET_LIMIT = Command(
    "set-emergency-limit", "RES PERCENT", set_emergency_limit, "the emergency limit of this host's replica", "settings",
    needs="PERCENT is 0 (off) to 100: with less of /mars free, this resource goes without log here (emergency mode).",
    example="marsadm set-emergency-limit data 10", extra=(1, 1), daemon=False,
)  # fmt: skip

COMMANDS = (
    Command(
        "set-connect-pref-list", "RES LIST", set_connect_pref, "from whom this host fetches logs, in this order",
        "settings", needs="LIST is a comma list of hosts of the cluster, or (none).",
        effect="""Of the listed hosts the first one that can be reached gives the logs; if none can, the primary does.
        The sync always comes from the primary.""",
        example="marsadm set-connect-pref-list data beta,alpha", extra=(1, 1), daemon=False,
    ),
    Command(
        "get-connect-pref-list", "RES", get_connect_pref, "print it", "settings",
        example="marsadm get-connect-pref-list data", daemon=False, writes=False, options="--json",
    ),
    _SET_LIMIT,
    aliased(_SET_LIMIT, "emergency-limit"),
    Command(
        "get-emergency-limit", "RES", get_emergency_limit, "print it", "settings",
        example="marsadm get-emergency-limit data", daemon=False, writes=False, options="--json",
    ),
    Command(
        "set-global-enabled-net-compressions", "NAMES", set_net_compressions,
        "what the sync may compress with, in the whole cluster", "settings",
        needs=f"NAMES are joined with | : {'|'.join(CODECS)}; none, all.",
        effect="It is compressed only where the line is slower than the compressor (tunable compress_level: how much).",
        example="marsadm set-global-enabled-net-compressions none", scope="none", extra=(1, 1), daemon=False,
    ),
    Command(
        "get-tunable", "[NAME]", get_tunable, "print a tunable of this host, or all of them", "settings",
        example="marsadm get-tunable sync_limit", scope="none", extra=(0, 1), daemon=False, writes=False,
        options="--json",
    ),
    Command(
        "set-tunable", "NAME VALUE", set_tunable, "change a tunable of this host, at once", "settings",
        needs="NAME is one of `marsadm get-tunable`, VALUE a whole number in its range.",
        effect="""marsd takes the value while it runs. It is lost when the machine starts again;
        --persist: it is also written into marsd.toml in /etc/mars.""",
        example="marsadm set-tunable sync_limit 2 --persist", scope="none", extra=(2, 2), daemon=False,
        options="--persist",
    ),
)  # fmt: skip
