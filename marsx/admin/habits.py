"""Words that people know from DRBD or from the original marsadm and that have nothing to do here: each is answered with
what helps. What needs nothing is answered with status 0, what cannot be had with an error."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from marsx.admin.context import Context
from marsx.admin.table import Command
from marsx.base.errors import UsageError

IGNORED = {
    "adjust": "nothing to adjust: there is no configuration file; the switches count (marsadm up RES, down RES)",
    "syncer": "the sync needs no command of its own; its limits: marsadm get-tunable, marsadm set-sync-limit-value",
    "outdate": "a replica is outdated when it lags behind, no mark is set; to stop it: marsadm disconnect RES",
    "check-resize": "marsd looks at the size of its devices by itself; then: marsadm resize RES",
    "get-gi": "there are no generation identifiers; the history is shown by: mars-status --history",
    "show-gi": "there are no generation identifiers; the history is shown by: mars-status --history",
    "hidden-commands": "no command is hidden: marsadm help",
    "activate-guest": "every host of the cluster sees every resource; for a replica: marsadm join-resource RES DEV",
    "deactivate-guest": "every host sees every resource; to give up a replica: marsadm leave-resource RES",
}
"""Answered, and that is all there is to do."""

SENSELESS = {
    "create-md": ("there is no meta data on the device", "marsadm create-resource RES DEV"),
    "dump-md": ("there is no meta data on the device", "marsadm show RES, or the links below /mars"),
    "dump": ("there is no configuration file to dump", "marsadm show RES"),
    "new-current-uuid": ("histories are told apart by their logs, not by a uuid", "mars-status --history"),
    "invalidate-remote": ("a replica is thrown away only on its own host", "on that host: marsadm invalidate RES"),
    "cstate": ("the state of the connection is part of the view", "marsadm view-replstate RES"),
    "dstate": ("the state of the disk is part of the view", "marsadm view-diskstate RES"),
    "status": ("the state of all hosts is shown by another program", "mars-status, or marsadm view RES"),
    "split-cluster": (
        "a cluster is not split in one step",
        "on each host that goes: leave-resource, leave-cluster, marsd stop; on the first of them: create-cluster",
    ),
    "create-uuid": ("the identity of a cluster is made with it and never changed", "marsadm create-cluster"),
    "set-disabled-digests": ("groups of a log are always checked", "of the sync: marsadm set-tunable sync_digest 0..2"),
    "set-global-enabled-log-compressions": (
        "logs are not compressed", "what goes over the line: marsadm set-global-enabled-net-compressions NAMES"
    ),
    "set-global-disabled-log-digests": (
        "every group of a log is checked with XXH3 and CRC-32C", "nothing needs to be set"
    ),
    "set-global-disabled-net-digests": (
        "the digest of the sync is a setting of each host", "marsadm set-tunable sync_digest VALUE"
    ),
    "set-systemd-unit": (
        "marsadm writes no units for systemd", "a unit of yours with After=marsd.service that mounts /dev/mars/RES"
    ),
    "get-systemd-unit": ("marsadm writes no units for systemd", "systemctl status marsd"),
    "set-systemd-want": ("marsadm writes no units for systemd", "the primary role goes by: marsadm primary RES"),
    "get-systemd-want": ("marsadm writes no units for systemd", "marsadm view-get-primary RES"),
    "systemd-trigger": ("marsadm writes no units for systemd", "systemctl start UNIT, systemctl stop UNIT"),
    "systemd-trigger-extern": ("marsadm writes no units for systemd", "systemctl start UNIT, systemctl stop UNIT"),
}  # fmt: skip
"""(Why not, what instead)."""


def ignore(ctx: Context, args: tuple[str, ...], name: str) -> None:
    """Say that nothing needs to be done."""
    ctx.say(f"{name}: {IGNORED[name]}")


def refuse(ctx: Context, args: tuple[str, ...], name: str) -> None:
    """Say that it cannot be done, and what can."""
    why, instead = SENSELESS[name]
    raise UsageError(f"{name}: {why}", instead)


def _row(name: str, run: Callable[..., None], short: str, effect: str) -> Command:
    effect = f"{effect[:1].upper()}{effect[1:]}."
    return Command(
        name, "[...]", partial(run, name=name), short, "habits", effect=effect, example=f"marsadm {name}",
        scope="none", extra=(0, 99), daemon=False, writes=False,
    )  # fmt: skip


COMMANDS = (
    *(_row(name, ignore, "does nothing and says so", text) for name, text in IGNORED.items()),
    *(_row(name, refuse, "is refused", f"{why}. Instead: {instead}") for name, (why, instead) in SENSELESS.items()),
)
