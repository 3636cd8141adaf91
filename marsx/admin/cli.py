"""The command line of marsadm: options anywhere, `--name=value`, then COMMAND and its arguments.

docopt reads it with one pattern; `--ip-HOST=A`, whose name is open, is taken out before. Abbreviated option names are
refused on purpose: `--for` in a script must not turn into `--force` one day.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from marsx.base.errors import UsageError

USAGE = """Administration of a mars cluster.

Usage:
  marsadm [options] [COMMAND] [ARGUMENT...]

Options:
  -f, --force              Override the checks that the command's help names.
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
  -v, --verbose            Say more.
  --mars-dir=DIR           Directory of the cluster's state and logs.
  --run-dir=DIR            Directory of the daemon's socket and messages.
  --dev-dir=DIR            Directory of the devices.
  --etc-dir=DIR            Directory of configuration and keys.
  -h, --help               Show this text, or with COMMAND the help of that command.
  --version                Show the version.
"""

HELP_HINT = "see: marsadm help"

_FLAGS = {"-f", "--force", "-v", "--verbose", "-h", "--help", "--version", "--ignore-sync",
          "--repair", "--continuous"}
_VALUES = {
    "--timeout", "--host", "--ip", "--token", "--accept-position", "--rate",
    "--mars-dir", "--run-dir", "--dev-dir", "--etc-dir",
}  # fmt: skip
_PEER_IP = re.compile(r"--ip-([A-Za-z0-9_][-A-Za-z0-9_]{0,62})=(.*)", re.DOTALL)
_SIZE = re.compile(r"([0-9]{1,20})([kmgtpKMGTP]?)")


@dataclass(frozen=True)
class Options:
    """The options of one call, parsed."""

    force: bool = False
    verbose: bool = False
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
    dirs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """One command line: the command's name, its arguments, the options."""

    command: str
    args: tuple[str, ...]
    options: Options


def parse(argv: Sequence[str]) -> Call:
    """Parse the command line, or raise UsageError naming the first thing that is not understood."""
    rest, peer_ips = _take_peer_ips(argv)
    _refuse_unknown(rest)
    from docopt import DocoptExit, docopt

    try:
        got = docopt(_docopt_page(), rest, default_help=False)
    except DocoptExit as exc:
        raise UsageError("the command line is not understood", HELP_HINT) from exc
    options = Options(
        force=got["--force"],
        verbose=got["--verbose"],
        help=got["--help"],
        version=got["--version"],
        ignore_sync=got["--ignore-sync"],
        timeout=_seconds(got["--timeout"]),
        host=got["--host"] or "",
        ip=got["--ip"] or "",
        peer_ips=peer_ips,
        token=got["--token"] or "",
        accept_position=got["--accept-position"] or "",
        repair=got["--repair"],
        continuous=got["--continuous"],
        rate=got["--rate"] or "",
        dirs={name: got[f"--{name.replace('_', '-')}"] for name in ("mars_dir", "run_dir", "dev_dir", "etc_dir")
              if got[f"--{name.replace('_', '-')}"]},
    )  # fmt: skip
    return _forced(got["COMMAND"] or "", tuple(got["ARGUMENT"]), options)


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
    """The usage without the option whose name is open: that one is taken out before docopt looks."""
    return "\n".join(line for line in USAGE.splitlines() if "--ip-HOST" not in line)


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


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,3})?", text):
        raise UsageError(f"--timeout={text}: a number of seconds is needed")
    return float(text)
