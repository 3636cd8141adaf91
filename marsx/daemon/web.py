"""What marsd shows by HTTP: `/metrics` for Prometheus and a read-only page; off until the tunable `web_port` is set.

Address: `[web] address` in marsd.toml, 127.0.0.1 if it says nothing. There is no login: whoever reaches the port reads
names, sizes and states, never data, keys or tokens.

Everything is made of the picture (`monitor.picture`), in a thread, at most once a second however many ask. The lag of
each replica is noted every `STEP_S` while the server runs: `POINTS` of them for at most `SERIES_MAX` replicas, in
memory only.

The one place where the daemon looks into the monitor room: who draws pictures must not be asked over a socket by the
process that knows everything already.
"""
from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import marsx
from marsx.base import messages
from marsx.daemon import http
from marsx.daemon.answers import counted
from marsx.daemon.http import TEXT, Answer, Http, Refused
from marsx.monitor import prometheus, templates
from marsx.monitor.picture import picture
from marsx.monitor.seen import RUNNING, Daemon, look
from marsx.tree.store import Entry
from marsx.tree.view import View

if TYPE_CHECKING:
    from marsx.daemon.worker import Worker

LOG = messages.get("daemon.web")
FRESH_S = 1.0
STEP_S = 10.0
POINTS = 360
SERIES_MAX = 1000
RETRY_S = 10.0
LOOPBACK = "127.0.0.1"
FILES = {"/": ("page.html", "text/html; charset=utf-8"), "/page.js": ("page.js", "text/javascript; charset=utf-8"),
         "/page.css": ("page.css", "text/css; charset=utf-8")}

Picture = dict[str, Any]


class Lags:
    """Lag of each replica over the last hour. Bounded: POINTS times, SERIES_MAX replicas."""

    def __init__(self) -> None:
        self.times: deque[float] = deque(maxlen=POINTS)
        self._series: dict[tuple[str, str], deque[float | None]] = {}

    def note(self, found: Picture) -> None:
        """One point of each replica; None where it is not known, or the replica is not there."""
        now = {(name, host): node["lag"]["seconds"] for name, resource in found["resources"].items()
               for host, node in resource["nodes"].items()}
        for key in list(now)[:SERIES_MAX]:
            if key not in self._series and len(self._series) < SERIES_MAX:
                self._series[key] = deque([None] * len(self.times), POINTS)
        self.times.append(found["time"])
        for key, line in list(self._series.items()):
            line.append(now.get(key))
            if key not in now and all(point is None for point in line):
                del self._series[key]

    def shown(self) -> Picture:
        """{"times": [...], "lag": {RES: {HOST: [...]}}}, the oldest first."""
        found: dict[str, dict[str, list[float | None]]] = {}
        for (name, host), line in self._series.items():
            found.setdefault(name, {})[host] = [None if one is None else round(one, 1) for one in line]
        return {"times": [round(at) for at in self.times], "lag": found}


class Fresh:
    """A value that costs something, made at most once in FRESH_S; all who ask meanwhile wait for the same one."""

    def __init__(self, make: Callable[[], Awaitable[Any]], clock: Callable[[], float]) -> None:
        self._make = make
        self._clock = clock
        self._at = -FRESH_S
        self._value: asyncio.Task[Any] | None = None

    async def get(self) -> Any:
        """Not older than FRESH_S."""
        if self._value is None or (self._value.done() and (
                self._clock() - self._at >= FRESH_S or self._value.cancelled() or self._value.exception())):
            self._at = self._clock()
            self._value = asyncio.ensure_future(self._make())
        return await asyncio.shield(self._value)


class Web:
    """See the module. On the loop."""

    def __init__(self, worker: Worker, clock: Callable[[], float] = time.monotonic) -> None:
        self._worker = worker
        self._clock = clock
        self._http: Http | None = None
        self._wanted = 0  # port that was asked for last
        self._again = 0.0
        self._next_point = 0.0
        self._noting: asyncio.Task[None] | None = None
        self._picture = Fresh(self._look, clock)
        self._documents = {"/metrics": (prometheus.TYPE, Fresh(self._metrics, clock)),
                           "/status.json": ("application/json", Fresh(self._status, clock)),
                           "/history.json": ("application/json", Fresh(self._history, clock))}
        self.lags = Lags()

    # ---- life ----

    async def tick(self) -> None:
        """Once a second: what the tunable says."""
        port = self._worker.settings.get("web_port")
        if port != self._wanted or (port and self._http is None and self._clock() >= self._again):
            await self._listen(port)
        if self._http is not None and self._clock() >= self._next_point:
            self._next_point = self._clock() + STEP_S
            if self._noting is None or self._noting.done():
                self._noting = asyncio.create_task(self._note(), name="lags")

    async def close(self) -> None:
        """No more of it."""
        if self._noting is not None:
            self._noting.cancel()
        await http.closed(self._http)
        self._http = None

    async def _listen(self, port: int) -> None:
        await self.close()
        self._wanted, self._again = port, self._clock() + RETRY_S
        why = ""
        if port:
            address = str(_address(self._worker.settings.file))
            try:
                ipaddress.ip_address(address)
                server = Http(address, port, self.route)
                await server.start()
                self._http = server
                LOG.info("http://%s:%d/ and /metrics are served", address, port)
            except ValueError:
                why = f"marsd.toml: [web] address = {messages.printable(address[:80])!r} is not an IP address"
            except OSError as err:
                why = f"cannot listen at {address}:{port}: {os.strerror(err.errno) if err.errno else err}"
        self._worker.site.say("", "err-web", why and f"{why}: there is no page and no /metrics")

    # ---- contents ----

    async def route(self, path: str) -> Answer:
        """What stands at a path."""
        if path in FILES:
            name, kind = FILES[path]
            return Answer(200, kind, templates.text(name).encode())
        if path in self._documents:
            kind, made = self._documents[path]
            return Answer(200, kind, await made.get())
        if path == "/favicon.ico":
            return Answer(404, TEXT, b"")
        raise Refused(404, "there are / and /metrics, /status.json, /history.json")

    async def _metrics(self) -> bytes:
        found, live = await self._picture.get()
        return await self._worker.site.blocking(lambda: prometheus.text(found, live).encode())

    async def _status(self) -> bytes:
        found, _ = await self._picture.get()
        return await self._worker.site.blocking(_json, found)

    async def _history(self) -> bytes:
        return await self._worker.site.blocking(_json, self.lags.shown())

    async def _look(self) -> tuple[Picture, Picture]:
        """The picture of now, and the counters of the devices here. The tree is read on the loop, where it changes;
        all else happens in a thread."""
        worker = self._worker
        entries, ages = worker.store.entries(), worker.exchange.ages()
        live = {name: counted(runner) for name, runner in worker.runners.items()}
        return await worker.site.blocking(self._draw, entries, ages, live), live

    def _draw(self, entries: list[Entry], ages: dict[str, float], live: Picture) -> Picture:
        view = View(entries, ages)
        daemon = Daemon(RUNNING, marsx.__version__, ages, live)
        seen = look(view, self._worker.paths, self._worker.host, daemon)
        return picture(view, time.time_ns(), seen)

    async def _note(self) -> None:
        found, _ = await self._picture.get()
        self.lags.note(found)


def _address(file: Any) -> Any:
    table = file.get("web", {})
    return table.get("address", LOOPBACK) if isinstance(table, dict) else table


def _json(found: Picture) -> bytes:
    return json.dumps(found, separators=(",", ":")).encode()
