"""One picture of the tree, with what was worked out of it for one host, each thing once.

That host is this one, or the one named by --host: what can only be seen on the spot is taken from its own words then.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property
from typing import Any

from marsx.admin.context import Context
from marsx.base.mounts import Mount, device_number, mounts_of
from marsx.tree.distance import Amounts, LogMap
from marsx.tree.store import LogFile
from marsx.tree.view import View


class Look:
    """What the values are functions of."""

    def __init__(self, ctx: Context, tree: View) -> None:
        self.ctx, self.tree = ctx, tree
        self.host = ctx.options.host or ctx.host
        self.is_here = self.host == ctx.host
        self.names = frozenset(tree.resources)
        self.now_ns = ctx.clock_ns()
        self.window_ns = int(ctx.options.window * 1e9)
        self.texts: dict[tuple[str, str], str] = {}
        """(resource, value) -> its text, for values without arguments."""
        self._kept: dict[str, Any] = {}
        self._logs: dict[str, LogMap] = {}
        self._amounts: dict[str, Amounts] = {}
        self._files: dict[str, list[LogFile]] = {}

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """What is made once for this picture."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def logs(self, resource: str) -> LogMap:
        """The logs of a resource."""
        if resource not in self._logs:
            self._logs[resource] = LogMap(self.tree, resource)
        return self._logs[resource]

    def members(self, resource: str) -> tuple[str, ...]:
        """Hosts with a replica."""
        return self.logs(resource).members

    def is_member(self, resource: str) -> bool:
        """This host has a replica."""
        return self.host in self.members(resource)

    def amounts(self, resource: str) -> Amounts:
        """How far this host's replica is."""
        if resource not in self._amounts:
            self._amounts[resource] = self.logs(resource).amounts(self.host)
        return self._amounts[resource]

    def files(self, resource: str) -> list[LogFile]:
        """The log files that lie here."""
        if not self.is_here:
            return []
        if resource not in self._files:
            self._files[resource] = self.ctx.store.log_files(resource)
        return self._files[resource]

    def actual(self, resource: str, key: str, host: str = "") -> str:
        """A fact of a host, this one by default."""
        return self.tree.actual(resource, host or self.host, key)

    def is_actual(self, resource: str, key: str, host: str = "") -> bool:
        """A switch among the facts."""
        return self.actual(resource, key, host) == "1"

    def count(self, resource: str, key: str) -> int:
        """A number among the facts."""
        text = self.actual(resource, key)
        return int(text) if text.isascii() and text.isdigit() else 0

    def peer(self, resource: str, name: str = "") -> str:
        """The host that is asked about: a named one, else the designated primary, else this one."""
        return name or (self.tree.designated(resource) if resource else "") or self.host

    def alive(self, host: str) -> bool:
        """Heard of within --window."""
        return self.tree.alive(host, self.now_ns, self.window_ns)

    def device(self, resource: str) -> str:
        """Path of the device of the resource on the host."""
        return f"{self.ctx.paths.dev_dir}/{self.tree.device(resource, self.host) or resource}"

    def device_there(self, resource: str) -> bool:
        """It exists; of another host as that says."""
        return os.path.exists(self.device(resource)) if self.is_here else self.is_actual(resource, "is-primary")

    def disk_there(self, resource: str) -> bool:
        """The data device exists; of another host as that says."""
        path = self.tree.data(resource, self.host)
        return os.path.exists(path) if self.is_here else bool(path and self.tree.actsize(resource, self.host))

    def daemon_there(self) -> bool:
        """marsd runs; of another host: it was heard of."""
        return self.ctx.daemon_there() if self.is_here else self.alive(self.host)

    @cached_property
    def _mounts(self) -> dict[str, tuple[Mount, ...]]:
        numbers = {device_number(self.device(resource)) for resource in self.tree.resources}
        return mounts_of(numbers - {""})

    def mount(self, resource: str) -> Mount | None:
        """Where the device is mounted here first."""
        number = device_number(self.device(resource)) if self.is_here else ""
        return self._mounts.get(number, (None,))[0] if number else None
