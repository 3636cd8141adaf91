"""A stand-in for the worker, under the real keeper: serves devices by nullserver, does what commands on a socket say.

    nullworker.py LIBRARY SOCKET BACKING-DIR --keeper-fd=N
Each device NAME is served over the file BACKING-DIR/NAME. Commands are JSON lines: {"op": ..., args} goes to the keeper
as it is; {"make": NAME, "clones": n, "size": s, "block_size": b} creates, serves, attaches; {"do":
"count"|"tune"|"exit"|"refuse"|"linger"}. After a restart it takes over every device of `hello` with RESEND before it
says ready.
"""
from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from marsx.base.errors import MarsError  # noqa: E402
from marsx.daemon.keeperlink import KeeperLink  # noqa: E402
from tests.device.nullserver import NullServer  # noqa: E402


class Worker:
    def __init__(self, library: str, control: str, backing: str, fd: int) -> None:
        self.library, self.control, self.backing = library, control, backing
        self.link = KeeperLink(fd)
        self.server = NullServer(library)
        self.name = ""
        self.refuse = ""
        self.linger = ""

    def serve(self, name: str, fds: list[int], resend: bool) -> None:
        backing = os.open(f"{self.backing}/{name}", os.O_RDWR | os.O_CREAT, 0o600)
        self.server.start(fds, name, backing, resend)
        self.name = name

    def take_over(self) -> None:
        hello, _ = self.link.call_now("hello")
        for device in hello["devices"]:
            if device["state"] != "gone":
                _, fds = self.link.call_now("dev-fds", name=device["name"])
                self.serve(device["name"], fds, device["restart"] > 0)

    async def obey(self, command: dict[str, Any]) -> dict[str, Any]:
        if "make" in command:
            name = command["make"]
            _, fds = await self.link.call("dev-create", name=name, clones=command.get("clones", 2))
            self.serve(name, fds, False)
            return (await self.link.call("dev-attach", name=name, size=command["size"],
                                         block_size=command.get("block_size", 512)))[0]
        if "op" in command:
            answer, fds = await self.link.call(**command)
            return {**answer, "fds": fds}
        what = command["do"]
        if what == "count":
            return {"count": self.server.count(command["of"])}
        if what == "tune":
            self.server.tune(command["what"], command["value"])
        elif what == "refuse":
            self.refuse = command["reason"]
        elif what == "linger":
            self.linger = command["while"]
        elif what == "exit":
            os._exit(command["status"])
        return {"ok": True, "pid": os.getpid()}

    async def client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            try:
                answer = await self.obey(json.loads(line))
            except MarsError as error:
                answer = {"error": error.text, "errno": getattr(error.__cause__, "errno", 0), "exit": error.exit_code}
            except (OSError, KeyError) as error:
                answer = {"error": repr(error)}
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        writer.close()

    def on_event(self, event: dict[str, Any]) -> None:
        asyncio.get_running_loop().create_task(self.stop(event))

    async def stop(self, event: dict[str, Any]) -> None:
        hello, _ = await self.link.call("hello")
        for device in hello["devices"]:
            answer, _ = await self.link.call("dev-detach", name=device["name"], patience=1)
            if "busy" in answer and not event.get("force"):
                await self.link.call("stop-refused", reason=f"{device['name']} is in use: {', '.join(answer['busy'])}")
                return
        if self.refuse and not event.get("force"):
            await self.link.call("stop-refused", reason=self.refuse)
            return
        os._exit(0)

    def on_lost(self) -> None:
        """The keeper is gone: end, or with `linger` not before a file has gone, like a worker that hangs in a write."""
        while self.linger and os.path.exists(self.linger):
            time.sleep(0.02)
        os._exit(1)

    async def main(self) -> None:
        loop = asyncio.get_running_loop()
        self.link.start(loop, self.on_event, self.on_lost)
        Path(self.control).unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self.client, self.control)
        await self.link.call("ready")
        async with server:
            await server.serve_forever()


def run(args: list[str]) -> None:
    worker = Worker(*args[:3], int(args[3].partition("=")[2]))
    worker.take_over()
    asyncio.run(worker.main())


if __name__ == "__main__":
    run(sys.argv[1:])
