"""A small tree in a directory, a marsd that only remembers what it was asked, and waits that are a script.

Shared by the tests of the admin and the monitor room.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import pytest

from marsx.admin import marsadm
from marsx.admin.context import Context
from marsx.base import durable
from marsx.base.config import Paths
from marsx.base.errors import DaemonDownError

S = 1_000_000_000
NOW = 1_800_000_000 * S
SIZE = 1 << 30
D1, D2, D3 = "1" * 32, "2" * 32, "3" * 32


class SmallTree:
    """A tree on disk, written as another process would write it."""

    def __init__(self, root: Path) -> None:
        self.paths = Paths(*(str(root / name) for name in ("mars", "run", "dev", "etc")))
        for path in (self.paths.mars_dir, self.paths.run_dir, self.paths.dev_dir, self.paths.etc_dir):
            Path(path).mkdir(parents=True)
        self._stamp = NOW - 1000 * S

    def put(self, rel: str, value: str, stamp: int | None = None) -> None:
        """One link, newer than all written here before."""
        self._stamp += S
        path = Path(self.paths.mars_dir, rel)
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write_link(str(path), value, stamp or self._stamp, False)

    def get(self, rel: str) -> str:
        """The value on disk."""
        path = Path(self.paths.mars_dir, rel)
        return str(path.readlink()) if path.is_symlink() else ""

    def stamp(self, rel: str) -> int:
        """The stamp on disk."""
        return Path(self.paths.mars_dir, rel).lstat().st_mtime_ns

    def all(self) -> dict[str, tuple[str, int]]:
        """Everything, to see that nothing changed."""
        root = Path(self.paths.mars_dir)
        links = [path for path in root.rglob("*") if path.is_symlink()]
        return {str(path.relative_to(root)): (str(path.readlink()), path.lstat().st_mtime_ns) for path in links}

    def cluster(self, *hosts: str) -> SmallTree:
        """A cluster of these hosts."""
        self.put("uuid", f"{hosts[0]}_1790000000.000000001")
        for nr, host in enumerate(hosts, 1):
            self.put(f"ips/ip-{host}", f"10.0.0.{nr}")
            self.put(f"ips/member-{host}", f"{host}id")
        self.alive(*hosts)
        return self

    def alive(self, *hosts: str) -> None:
        """These hosts were heard of just now."""
        for host in hosts:
            self.put(f"actual-{host}/alive", "1", NOW - S)

    def resource(self, name: str, primary: str, *others: str, size: int = SIZE) -> SmallTree:
        """A resource whose replicas are all up to date: log 1 of `primary` ends at 8192 everywhere."""
        res = f"resource-{name}"
        self.put(f"{res}/size", str(size))
        for host in (primary, *others):
            self.put(f"{res}/data-{host}", f"/dev/vg/{name}")
            self.put(f"{res}/device-{host}", name)
            self.put(f"{res}/member-{host}", f"{host}in{name}")
            for switch in ("attach", "connect", "sync", "allow-replay"):
                self.put(f"{res}/todo-{host}/{switch}", "1")
            self.put(f"{res}/actsize-{host}", str(size))
            self.put(f"{res}/syncstatus-{host}", str(size))
            self.put(f"{res}/actual-{host}/is-attached", "1")
            self.put(f"{res}/actual-{host}/is-primary", str(int(host == primary)))
            self.put(f"{res}/actual-{host}/open-count", "0")
            self.put(f"{res}/version-000000001-{host}", f"{D1},log-000000001-{primary},8192:")
            self.put(f"{res}/replay-{host}", f"log-000000001-{primary},8192,0")
        self.put(f"{res}/primary", primary)
        return self


class FakeControl:
    """A marsd that answers what it is told to, and remembers the requests."""

    def __init__(self, running: bool = True) -> None:
        self.running = running
        self.asked: list[dict[str, object]] = []
        self.answers: dict[str, dict[str, object] | Exception] = {}

    def request(self, message: dict[str, object], timeout: float = 0, progress: object = None) -> dict[str, object]:
        if not self.running:
            raise DaemonDownError("marsd does not run on this host", "start it with: marsd start")
        if message["cmd"] != "ping":
            self.asked.append(message)
        answer = self.answers.get(str(message.get("what") or message["cmd"]), {"ok": True})
        if isinstance(answer, Exception):
            raise answer
        return answer

    def ping(self) -> None:
        self.request({"cmd": "ping"})

    def do(self, what: str, resource: str, timeout: float = 0, **args: object) -> dict[str, object]:
        return self.request({"cmd": "do", "what": what, "resource": resource, "args": args})


class Script:
    """Waits that happen at once: each runs the next step; when no step is left, time is up."""

    def __init__(self, *steps: Callable[[], object]) -> None:
        self.steps = list(steps)
        self.now = 0.0
        self.ctx: Context | None = None

    def __call__(self, ctx: Context) -> Script:
        self.ctx = ctx
        return self

    def wait(self, timeout: float) -> None:
        if not self.steps:
            self.now += timeout
            return
        self.steps.pop(0)()
        assert self.ctx is not None
        self.ctx.store.load()

    def close(self) -> None:
        pass


class Admin:
    """marsadm on one host of a small tree."""

    def __init__(self, tree: SmallTree, monkeypatch: pytest.MonkeyPatch, host: str = "b") -> None:
        self.tree, self.host = tree, host
        self.control = FakeControl()
        self.script = Script()
        monkeypatch.setattr(marsadm, "make_context", self._context)
        monkeypatch.setattr(marsadm.checks, "require_root", lambda: None)
        monkeypatch.setattr(marsadm.os, "umask", lambda mask: 0)

    def _context(self, row: object, call: marsadm.Call) -> Context:
        ctx = Context(
            self.tree.paths, self.host, call.options, control=self.control,  # type: ignore[arg-type]
            monotonic=lambda: self.script.now, clock_ns=lambda: NOW,  # type: ignore[attr-defined]
            readonly=not row.writes,
        )  # fmt: skip
        ctx.events = self.script
        return ctx

    def __call__(self, line: str, *steps: Callable[[], object]) -> tuple[int, str, str]:
        """(exit status, stdout, stderr) of one command line; `steps` happen while it waits."""
        self.script.steps = list(steps)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = marsadm.main(line.split())
        return code, out.getvalue(), err.getvalue()
