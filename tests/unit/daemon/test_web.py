"""What marsd serves: pages, metrics at most once a second, lags of the last hour, the tunable, the address."""
from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from marsx.base.lamport import Lamport
from marsx.daemon import web
from marsx.daemon.web import POINTS, SERIES_MAX, Fresh, Lags, Web
from marsx.tree.store import Store
from tests.unit.admin.small_tree import NOW, SmallTree


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Lab:
    """A Web over a small tree, with a clock of its own."""

    def __init__(self, tmp_path: Path, file: dict | None = None) -> None:
        tree = SmallTree(tmp_path).cluster("a", "b").resource("data", "a", "b")
        store = Store(tree.paths, "a", Lamport(lambda: NOW), readonly=True)
        store.load()
        self.now, self.said, self.drawn, self.written = 100.0, {}, 0, 0
        self.settings = {"web_port": 0}
        volume = SimpleNamespace(counters={"writes": 7}, state={"writeback_rest": 5})
        runner = SimpleNamespace(producer=SimpleNamespace(
            primary=SimpleNamespace(volume=volume), frontend=SimpleNamespace(counters={"requests": 9})))
        self.worker = SimpleNamespace(
            settings=SimpleNamespace(get=self.settings.__getitem__, file=file or {}), store=store, paths=tree.paths,
            host="a", exchange=SimpleNamespace(ages=lambda: {"b": 0.5}),
            runners={"data": runner, "other": SimpleNamespace(producer=None)},
            site=SimpleNamespace(say=lambda res, key, text: self.said.update({key: text}), blocking=self.blocking))
        self.web = Web(self.worker, lambda: self.now)

    async def blocking(self, call, *args):
        self.drawn += call == self.web._draw
        self.written += call != self.web._draw
        return call(*args)


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path)


def test_routes(lab):
    """Pages, metrics with the counters of the device, the picture, and nothing else."""
    async def work():
        for path, kind, part in (("/", "text/html", b"<title>MARS"), ("/page.js", "text/javascript", b"use strict"),
                                 ("/page.css", "text/css", b".badge"),
                                 ("/metrics", "text/plain; version=0.0.4",
                                  b'mars_device_writes_total{resource="data"} 7'),
                                 ("/status.json", "application/json", b'"format":"mars-status"'),
                                 ("/history.json", "application/json", b'"times":[]')):
            answer = await lab.web.route(path)
            assert answer.status == 200 and answer.type.startswith(kind) and part in answer.body, path
        for path in ("/page.html", "/../x", "/share/page.js", "/metrics/"):
            with pytest.raises(web.Refused):
                await lab.web.route(path)
    asyncio.run(work())


def test_drawn_at_most_once_a_second(lab):
    """However many ask, and at once."""
    async def work():
        await asyncio.gather(*(lab.web.route("/metrics") for _ in range(50)), lab.web.route("/status.json"))
        assert lab.drawn == 1 and lab.written == 2
        lab.now += 0.9
        await lab.web.route("/metrics")
        assert lab.drawn == 1
        lab.now += 0.2
        await lab.web.route("/metrics")
        assert lab.drawn == 2
    asyncio.run(work())


def test_what_failed_is_made_again():
    """An error is not kept, and who gives up does not take it from the others."""
    async def work():
        made = []

        async def make():
            made.append(1)
            await asyncio.sleep(0)
            if len(made) == 1:
                raise ValueError("once")
            return len(made)
        fresh = Fresh(make, lambda: 5.0)
        with pytest.raises(ValueError, match="once"):
            await fresh.get()
        one, other = asyncio.ensure_future(fresh.get()), asyncio.ensure_future(fresh.get())
        await asyncio.sleep(0)
        one.cancel()
        assert await other == 2 and await fresh.get() == 2
    asyncio.run(work())


def test_the_tunable_starts_and_stops_it(lab):
    async def work():
        await lab.web.tick()
        assert lab.web._http is None
        lab.settings["web_port"] = port = free_port()
        await lab.web.tick()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert b"mars_info" in await reader.read()
        writer.close()
        await writer.wait_closed()
        lab.settings["web_port"] = 0
        await lab.web.tick()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
    asyncio.run(work())


def test_a_port_in_use_is_named_and_tried_again(lab):
    async def work():
        with socket.create_server(("127.0.0.1", 0)) as taken:
            lab.settings["web_port"] = taken.getsockname()[1]
            await lab.web.tick()
            assert "cannot listen at 127.0.0.1" in lab.said["err-web"] and lab.web._http is None
        lab.now += 5
        await lab.web.tick()
        assert lab.web._http is None, "not all the time"
        lab.now += 6
        await lab.web.tick()
        assert lab.said["err-web"] == "" and lab.web._http is not None
        await lab.web.close()
    asyncio.run(work())


@pytest.mark.parametrize("address", ["localhost", "0.0.0.0/0", 7, "", "127.0.0.1\n"])
def test_an_address_must_be_one(tmp_path, address):
    lab = Lab(tmp_path, {"web": {"address": address}})

    async def work():
        lab.settings["web_port"] = free_port()
        await lab.web.tick()
        assert "is not an IP address" in lab.said["err-web"] and lab.web._http is None
    asyncio.run(work())


def test_the_address_of_the_file(tmp_path):
    lab = Lab(tmp_path, {"web": {"address": "127.0.0.2"}})

    async def work():
        lab.settings["web_port"] = free_port()
        await lab.web.tick()
        assert lab.web._http.address == "127.0.0.2"
        await lab.web.close()
    asyncio.run(work())


def pictured(time: float, **lags) -> dict:
    nodes = {host: {"lag": {"seconds": lag}} for host, lag in lags.items()}
    return {"time": time, "resources": {"r": {"nodes": nodes}}}


def test_lags_are_of_the_last_hour():
    """New replicas begin late, those that are gone go; nothing grows for ever."""
    lags = Lags()
    lags.note(pictured(1.0, a=0.0))
    lags.note(pictured(2.0, a=0.0, b=5.04))
    lags.note(pictured(3.0, b=None))
    assert lags.shown() == {"times": [1, 2, 3], "lag": {"r": {"a": [0.0, 0.0, None], "b": [None, 5.0, None]}}}
    for at in range(POINTS):
        lags.note(pictured(4.0 + at, b=1.0))
    shown = lags.shown()
    assert len(shown["times"]) == len(shown["lag"]["r"]["b"]) == POINTS and "a" not in shown["lag"]["r"]
    lags.note(pictured(5000.0, **{f"h{n}": 1.0 for n in range(2 * SERIES_MAX)}))
    assert sum(map(len, lags.shown()["lag"].values())) == SERIES_MAX


def test_points_are_noted_while_it_runs(lab):
    async def work():
        lab.settings["web_port"] = free_port()
        for _ in range(3):
            await lab.web.tick()
            await lab.web._noting
            lab.now += web.STEP_S
        shown = json.loads((await lab.web.route("/history.json")).body)
        assert len(shown["times"]) == 3 and set(shown["lag"]["data"]) == {"a", "b"}
        await lab.web.close()
    asyncio.run(work())
