"""The command line of marsadm: options anywhere, `--name=value`, then COMMAND and its arguments.

docopt reads it with one pattern; `--ip-HOST=A`, whose name is open, is taken out before. Abbreviated option names are
refused on purpose: `--for` in a script must not turn into `--force` one day.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from marsx.base.errors import UsageError

USAGE = """Administration of a mars cluster.

Usage:
  marsadm [options] [COMMAND] [ARGUMENT...]

Options:
  -f, --force              Override the checks that the command's help names.
  -d, --dry-run            Change nothing; print each change that would be made.
  --timeout=SECONDS        How long a command waits for its effect [default: 600].
  --host=HOST              leave-resource, leave-cluster: act for a host that is gone. verify: whose replica.
  --ip=ADDRESS             create-cluster, join-cluster: the address of this host.
  --ip-HOST=ADDRESS        join-cluster: the address of HOST, where its name does not resolve.
  --token=TOKEN            join-cluster: the token made by `marsadm create-token` on HOST.
  --ignore-sync            primary: do not insist on finished syncs.
  --repair                 verify: fetch what differs.
  --continuous             verify: begin again at the end, slowly, until interrupted.
  --rate=KIB               verify: compare at most so many KiB a second.
  --accept-position=POS    primary --force: go on from this position (log-NNNNNNNNN-HOST,POS) although more is known.
  --window=SECONDS         How long ago a peer may have been heard of to count as there [default: 60].
  --threshold=SIZE         How much may be missing where a view or condition says "threshold" [default: 10M].
  --parallel[=N]           Work on several resources at once (at most N).
  --thresh-logfiles=N      log-rotate, cron: with N or more log files of this host [default: 10] ...
  --thresh-logsize=SIZE    ... a log smaller than this is not rotated; a bare number is GiB [default: 5].
  --persist                set-tunable: for the time after a restart too.
  --macro=TEXT             view: print what TEXT evaluates to.
  --json                   Print what is shown as JSON.
  -v, --verbose[=N]        Say more; N = 2: all there is.
  --mars-dir=DIR           Directory of the cluster's state and logs.
  --run-dir=DIR            Directory of the daemon's socket and messages.
  --dev-dir=DIR            Directory of the devices.
  --etc-dir=DIR            Directory of configuration and keys.
  -h, --help               Show this text, or with COMMAND the help of that command.
  --version                Show the version.
"""

HELP_HINT = "see: marsadm help"

_FLAGS = {
    "-f", "--force", "-d", "--dry-run", "-v", "-h", "--help", "--version", "--ignore-sync",
    "--repair", "--continuous", "--persist", "--json",
}  # fmt: skip
_VALUES = {
    "--timeout", "--host", "--ip", "--token", "--accept-position", "--rate", "--window", "--threshold",
    "--thresh-logfiles", "--thresh-logsize", "--macro",
    "--mars-dir", "--run-dir", "--dev-dir", "--etc-dir",
}  # fmt: skip
_OPEN = re.compile(r"(?:--(verbose|parallel))(?:=(.*))?", re.DOTALL)
_PEER_IP = re.compile(r"--ip-([A-Za-z0-9_][-A-Za-z0-9_]{0,62})=(.*)", re.DOTALL)
_SIZE = re.compile(r"([0-9]{1,20})([kmgtpKMGTP]?)")


@dataclass(frozen=True)
class Options:
    """The options of one call, parsed."""

    force: bool = False
    dry_run: bool = False
    verbose: int = 0
    help: bool = False
    version: bool = False
    ignore_sync: bool = False
    timeout: float = 600.0
    host: str = ""
    ip: str = ""
    peer_ips: dict[str, str] = field(default_factory=dict)
    token: str = ""
    accept_position: str = ""
    repair: bool = False
    continuous: bool = False
    rate: str = ""
    window: float = 60.0
    threshold: int = 10 << 20
    parallel: int = 1
    """At most so many resources at once; 0: all of them."""
    thresh_logfiles: int = 10
    thresh_logsize: int = 5 << 30
    persist: bool = False
    macro: str | None = None
    json: bool = False
    dirs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """One command line: the command's name, its arguments, the options."""

    command: str
    args: tuple[str, ...]
    options: Options


def parse(argv: Sequence[str]) -> Call:
    """Parse the command line, or raise UsageError naming the first thing that is not understood. What has no options
    needs no docopt, which takes longer than a view of one resource."""
    if argv and not any(word.startswith("-") for word in argv):
        return _forced(argv[0], tuple(argv[1:]), Options())
    rest, peer_ips = _take_peer_ips(argv)
    rest, levels = _take_levels(rest)
    _refuse_unknown(rest)
    from docopt import DocoptExit, docopt

    try:
        got = docopt(_docopt_page(), rest, default_help=False)
    except DocoptExit as exc:
        raise UsageError("the command line is not understood", HELP_HINT) from exc
    options = Options(
        force=got["--force"],
        dry_run=got["--dry-run"],
        verbose=levels.get("verbose", 0) or int(got["-v"]),
        help=got["--help"],
        version=got["--version"],
        ignore_sync=got["--ignore-sync"],
        timeout=_seconds("--timeout", got["--timeout"]),
        host=got["--host"] or "",
        ip=got["--ip"] or "",
        peer_ips=peer_ips,
        token=got["--token"] or "",
        accept_position=got["--accept-position"] or "",
        repair=got["--repair"],
        continuous=got["--continuous"],
        rate=got["--rate"] or "",
        window=_seconds("--window", got["--window"]),
        threshold=parse_size(got["--threshold"]),
        parallel=levels.get("parallel", 1),
        thresh_logfiles=_count("--thresh-logfiles", got["--thresh-logfiles"]),
        thresh_logsize=_log_size(got["--thresh-logsize"]),
        persist=got["--persist"],
        macro=got["--macro"],
        json=got["--json"],
        dirs={name: got[f"--{name.replace('_', '-')}"] for name in ("mars_dir", "run_dir", "dev_dir", "etc_dir")
              if got[f"--{name.replace('_', '-')}"]},
    )  # fmt: skip
    return _forced(got["COMMAND"] or "", tuple(got["ARGUMENT"]), options)


def words(options: Options) -> list[str]:
    """The options as words of a command line that means the same; --parallel is left out."""
    found = []
    for one in fields(Options):
        value, name = getattr(options, one.name), "--" + one.name.replace("_", "-")
        if one.name == "dirs":
            found += [f"--{key.replace('_', '-')}={path}" for key, path in value.items()]
        elif one.name == "peer_ips":
            found += [f"--ip-{host}={ip}" for host, ip in value.items()]
        elif one.name == "thresh_logsize":
            found.append(f"{name}={value // 1024}K")
        elif one.name != "parallel" and value != one.default:
            found.append(name if value is True else f"{name}={value}")
    return found


def parse_size(text: str) -> int:
    """Bytes of `100G` or `4096`: k m g t p are powers of 1000, K M G T P of 1024."""
    match = _SIZE.fullmatch(text)
    if not match:
        raise UsageError(f"'{text}' is not a size", "examples: 107374182400, 100G (1024-based), 100g (1000-based)")
    number, unit = match.groups()
    if not unit:
        return int(number)
    base = 1000 if unit.islower() else 1024
    return int(number) * base ** ("kmgtp".index(unit.lower()) + 1)


def _docopt_page() -> str:
    """The usage without the options that docopt cannot read: those are taken out before it looks."""
    lines = [line for line in USAGE.splitlines() if "--ip-HOST" not in line and "--parallel" not in line]
    return "\n".join(lines).replace("-v, --verbose[=N]", "-v")


def _forced(command: str, args: tuple[str, ...], options: Options) -> Call:
    """`force-CMD` is `--force CMD`."""
    if command.startswith("force-"):
        from dataclasses import replace

        return Call(command.removeprefix("force-"), args, replace(options, force=True))
    return Call(command, args, options)


def _take_peer_ips(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    rest: list[str] = []
    found: dict[str, str] = {}
    for word in argv:
        match = _PEER_IP.fullmatch(word)
        if match:
            found[match[1]] = match[2]
        else:
            rest.append(word)
    return rest, found


def _take_levels(words: Sequence[str]) -> tuple[list[str], dict[str, int]]:
    """The options whose value may be missing: `--verbose` is 1, `--parallel` is 0 (no bound)."""
    rest: list[str] = []
    found: dict[str, int] = {}
    for word in words:
        match = _OPEN.fullmatch(word)
        if not match:
            rest.append(word)
        elif match[2] is None:
            found[match[1]] = {"verbose": 1, "parallel": 0}[match[1]]
        else:
            found[match[1]] = _count(f"--{match[1]}", match[2])
    return rest, found


def _refuse_unknown(words: Sequence[str]) -> None:
    skip = False
    for word in words:
        if skip or word == "-" or not word.startswith("-"):
            skip = False
            continue
        name, equals, _ = word.partition("=")
        if name not in _FLAGS and name not in _VALUES:
            raise UsageError(f"unknown option '{name}'", HELP_HINT)
        if name in _FLAGS and equals:
            raise UsageError(f"option '{name}' takes no value", HELP_HINT)
        skip = name in _VALUES and not equals
    if skip:
        raise UsageError(f"option '{words[-1]}' needs a value: {words[-1]}=...", HELP_HINT)


def _seconds(name: str, text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,3})?", text):
        raise UsageError(f"{name}={text}: a number of seconds is needed")
    return float(text)


def _count(name: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", text):
        raise UsageError(f"{name}={text[:40]}: a number is needed")
    return int(text)


def _log_size(text: str) -> int:
    return int(text) << 30 if re.fullmatch(r"[0-9]{1,6}", text) else parse_size(text)
