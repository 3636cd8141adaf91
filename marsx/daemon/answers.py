"""What marsd answers on its control socket about itself: alive, status, a token, a wait for the others."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any

import marsx
from marsx.base.errors import TimeoutExpired, UsageError
from marsx.peer.token import create_token

if TYPE_CHECKING:
    from marsx.daemon.resource import Runner
    from marsx.daemon.worker import Worker


async def ping(request: dict[str, Any], progress: Any) -> dict[str, Any]:
    """Alive."""
    return {"ok": True, "pid": os.getpid()}


async def status(worker: Worker) -> dict[str, Any]:
    """Roles, positions and counters at this moment."""
    return {
        "ok": True,
        "pid": os.getpid(),
        "version": marsx.__version__,
        "heard": worker.exchange.ages(),
        "host": worker.host,
        "resources": {name: _resource(runner) for name, runner in worker.runners.items()},
        "peers": dict(worker.exchange.states),
    }


def _resource(runner: Runner) -> dict[str, Any]:
    live, consumer = counted(runner), runner.consumer
    return {
        "role": "primary" if runner.producer else "secondary",
        "trouble": runner.trouble or runner.replay_trouble,
        "state": {key: value.hex() if isinstance(value, bytes) else value for key, value in live["state"].items()},
        "counters": live["counters"],
        "at": str(consumer.at) if consumer else "",
        "fetched": str(consumer.copy.at) if consumer and consumer.copy else "",
    }


def counted(runner: Runner) -> dict[str, Any]:
    """Counters and state of the device of a primary, both empty of others."""
    producer = runner.producer
    volume = producer.primary.volume if producer is not None else None
    if producer is None or volume is None:
        return {"counters": {}, "state": {}}
    front = producer.frontend.counters if producer.frontend is not None else {}
    return {"counters": {**front, **volume.counters}, "state": volume.state}


async def token(worker: Worker) -> dict[str, Any]:
    """A new token for a host that is to join."""
    return {"ok": True, "token": await worker.site.blocking(create_token, worker.paths, worker.host)}


async def wait(worker: Worker, request: dict[str, Any], progress: Any) -> dict[str, Any]:
    """`cluster`: until every other host has been heard of since the request came."""
    if request.get("condition") != "cluster":
        raise UsageError(f"there is nothing to wait for by the name {request.get('condition')!r}")
    since, end = time.monotonic(), time.monotonic() + float(request.get("timeout") or 60)
    resource, told = str(request.get("resource") or ""), ""
    while True:
        view = worker.site.view()
        hosts = set(view.members(resource) if resource else view.hosts) - {worker.host}
        missing = sorted(host for host in hosts if worker.exchange.heard.get(host, 0.0) <= since)
        if not missing:
            return {"ok": True}
        text = f"nothing heard of {', '.join(missing)} yet"
        if time.monotonic() > end:
            raise TimeoutExpired(f"timed out: {text}", "are these hosts up? see: mars-status")
        if text != told:
            told = text
            progress({"text": text})
        await asyncio.sleep(0.05)
