"""What all activities of this host share: tree, keeper, executor, the way to other hosts. Made once by the worker."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from marsx.base.config import Paths, Settings
from marsx.base.lamport import Lamport
from marsx.base.tasks import run_blocking
from marsx.daemon.keeperlink import KeeperLink
from marsx.peer.limit import Bucket
from marsx.peer.link import Link
from marsx.peer.wire import Hello
from marsx.tree import paths as names
from marsx.tree.store import Store
from marsx.tree.view import View

T = TypeVar("T")


@dataclass
class Site:
    """See the module. `kept`: devices that the keeper held when the worker started (name -> descriptor count).
    `answered`: hosts that have told their whole tree, or have failed to answer our first call. `restart(why)`: end this
    worker, the keeper starts another one. `outcast`: why others do not take this host for whom it says that it is."""

    paths: Paths
    host: str
    store: Store
    lamport: Lamport
    settings: Settings
    keeper: KeeperLink
    loop: asyncio.AbstractEventLoop
    executor: concurrent.futures.Executor
    dial: Callable[[str, str], Awaitable[tuple[Link, Hello]]]
    heard: Callable[[], dict[str, float]]
    reachable: Callable[[], set[str]]
    kick: Callable[[], None]
    sync_slots: Callable[[str], int]
    kept: dict[str, dict[str, Any]] = field(default_factory=dict)
    answered: Callable[[], set[str]] = set
    restart: Callable[[str], None] = print
    outcast: Callable[[], str] = str
    started: float = field(default_factory=time.monotonic)
    shutting_down: bool = False
    promised: Callable[[str], int | None] = lambda resource: None  # from which log on a resource's logs are promised
    level: int = 0  # of free space on /mars (daemon.space)
    fetch_bucket: Bucket = field(init=False)
    _view: View | None = None

    def __post_init__(self) -> None:
        self.fetch_bucket = Bucket(lambda: self.settings.get("traffic_tuning/client_role_traffic_ratelimit_kb"))

    def view(self) -> View:
        """The tree at this moment (made anew after changes)."""
        if self._view is None:
            self._view = View(self.store.snapshot(), self.heard())
        return self._view

    def device_name(self, resource: str) -> str:
        """Name of the resource's device below /dev/mars, here."""
        return self.view().device(resource, self.host) or resource

    def forget_view(self) -> None:
        self._view = None

    async def blocking(self, call: Callable[..., T], *args: Any) -> T:
        """`call` in the executor; not abandoned when cancelled."""
        return await run_blocking(self.executor, call, *args)

    def thread(self, name: str, body: Callable[[], object]) -> threading.Thread:
        """Start a named data-plane thread (kernel name: 15 characters)."""
        thread = threading.Thread(target=body, name=name[:15], daemon=True)
        thread.start()
        return thread

    async def join(self, threads: list[threading.Thread], timeout: float = 3600.0) -> bool:
        """Wait for threads without holding up the loop; True when all have ended."""
        end = time.monotonic() + timeout
        for thread in threads:
            while thread.is_alive() and time.monotonic() < end:
                await asyncio.sleep(0.01)
        return not any(thread.is_alive() for thread in threads)

    def say(self, resource: str, key: str, text: str) -> None:
        """The message KEY of this host about a resource; "" takes it back."""
        rel = names.message(resource, self.host, key)
        old = self.store.get(rel)
        if not text:
            if old and not old.startswith("OK"):
                self.store.put(rel, "OK")
            return
        now = time.time_ns()
        if old.split(" ", 2)[2:] != [text]:
            self.store.put(rel, f"{now // 10**9}.{now % 10**9:09d} {now // 10**9}.{now % 10**9:09d} {text[:800]}")
