"""The control socket: one JSON object a line, root only, errors with text, hint and exit code."""
from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from marsx.base.errors import PreconditionError
from marsx.daemon import control
from marsx.daemon.control import LINE_MAX, Control


async def echo(request: dict[str, Any], progress: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    for step in range(request.get("steps", 0)):
        progress({"step": step})
    return {"ok": True, "said": request.get("say")}


async def refuse(request: dict[str, Any], progress: Any) -> dict[str, Any]:
    raise PreconditionError("the device is in use", "umount it")


async def io_error(request: dict[str, Any], progress: Any) -> dict[str, Any]:
    raise OSError(5, "Input/output error")


async def broken(request: dict[str, Any], progress: Any) -> dict[str, Any]:
    raise ZeroDivisionError("bug")


async def unspeakable(request: dict[str, Any], progress: Any) -> dict[str, Any]:
    return {"ok": object()}


HANDLERS = {"echo": echo, "refuse": refuse, "io": io_error, "broken": broken, "unspeakable": unspeakable}


def talk(tmp_path, work: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[Any]]) -> Any:
    """Run `work` against a served socket."""
    async def main() -> Any:
        server = Control(str(tmp_path / "marsd.sock"), HANDLERS)
        await server.start()
        reader, writer = await asyncio.open_unix_connection(server.path)
        try:
            async with asyncio.timeout(60):
                return await work(reader, writer)
        finally:
            writer.close()
            await server.close()
            assert not os.path.exists(server.path)
    return asyncio.run(main())


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: bytes) -> dict[str, Any]:
    writer.write(line + b"\n")
    return json.loads(await reader.readline())


def test_answers_and_progress(tmp_path) -> None:
    """Progress lines come before the answer; one connection takes several requests."""
    async def work(reader, writer) -> list[dict[str, Any]]:
        writer.write(b'{"cmd":"echo","steps":2,"say":"x"}\n{"cmd":"echo","say":"y"}\n')
        return [json.loads(await reader.readline()) for _ in range(4)]
    assert talk(tmp_path, work) == [{"progress": {"step": 0}}, {"progress": {"step": 1}}, {"ok": True, "said": "x"},
                                    {"ok": True, "said": "y"}]


@pytest.mark.parametrize("line", [b"", b"x", b"[]", b"5", b'{"cmd":5}', b'{"cmd":[]}', b"{}", b'{"cmd":"none"}',
                                  b"\xff", b"[" * 200_000])
def test_not_understood(tmp_path, line: bytes) -> None:
    """Whatever comes gets an answer with exit code 2, and the connection goes on."""
    async def work(reader, writer) -> list[dict[str, Any]]:
        return [await ask(reader, writer, line), await ask(reader, writer, b'{"cmd":"echo"}')]
    found, after = talk(tmp_path, work)
    assert found["exit"] == 2 and found["error"] and after["ok"]


@pytest.mark.expect_messages("request broken failed", "request unspeakable failed")
def test_errors(tmp_path) -> None:
    """A named error keeps text, hint and code; an unexpected one is told in the messages and ends nothing."""
    async def work(reader, writer) -> list[dict[str, Any]]:
        return [await ask(reader, writer, b'{"cmd":"%b"}' % name) for name in
                (b"refuse", b"io", b"broken", b"unspeakable", b"echo")]
    refused, io, bug, odd, after = talk(tmp_path, work)
    assert refused == {"error": "the device is in use", "hint": "umount it", "exit": PreconditionError.exit_code}
    assert io["exit"] == bug["exit"] == odd["exit"] == 1 and "Input/output" in io["error"]
    assert after["ok"]


def test_too_long_a_line_ends_the_connection(tmp_path) -> None:
    """Memory stays bounded."""
    async def work(reader, writer) -> bytes:
        writer.write(b'{"cmd":"echo","say":"' + b"x" * (LINE_MAX + 10) + b'"}\n')
        return await reader.read()
    assert talk(tmp_path, work) == b""


def test_root_only(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mode 0600, and the kernel is asked who calls."""
    async def work(reader, writer) -> bytes:
        assert stat.S_IMODE(os.stat(tmp_path / "marsd.sock").st_mode) == 0o600
        writer.write(b'{"cmd":"echo"}\n')
        with contextlib.suppress(ConnectionResetError):  # closed while our line was unread
            return await reader.read()
        return b""
    monkeypatch.setattr(control, "_uid", lambda writer: 65534)
    assert talk(tmp_path, work) == b""


def test_the_kernel_tells_the_uid() -> None:
    """The uid comes from the socket, not from the caller's words."""
    class Writer:
        def __init__(self, sock: socket.socket) -> None:
            self._sock = sock

        def get_extra_info(self, name: str) -> socket.socket:
            return self._sock
    left, right = socket.socketpair()
    with left, right:
        assert control._uid(Writer(left)) == os.getuid()  # type: ignore[arg-type]


def test_a_stale_socket_is_replaced(tmp_path) -> None:
    """After a crash the old socket file is in the way of nobody."""
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(tmp_path / "marsd.sock"))
    stale.close()

    async def work(reader, writer) -> dict[str, Any]:
        return await ask(reader, writer, b'{"cmd":"echo","say":1}')
    assert talk(tmp_path, work) == {"ok": True, "said": 1}


def test_close_ends_waiting_requests(tmp_path) -> None:
    """marsd stops although somebody waits."""
    async def main() -> bytes:
        started = asyncio.Event()

        async def wait(request: dict[str, Any], progress: Any) -> dict[str, Any]:
            started.set()
            await asyncio.Event().wait()
            return {}
        server = Control(str(tmp_path / "marsd.sock"), {"wait": wait})
        await server.start()
        reader, writer = await asyncio.open_unix_connection(server.path)
        writer.write(b'{"cmd":"wait"}\n')
        await started.wait()
        await server.close()
        found = await reader.read()
        writer.close()
        return found
    assert asyncio.run(asyncio.wait_for(main(), 60)) == b""


def test_who_goes_away_ends_what_is_only_for_him(tmp_path) -> None:
    """A command in `while_connected` is cancelled when its asker goes away; all others come to their end."""
    async def main() -> list[str]:
        log: list[str] = []

        async def long(request: dict[str, Any], progress: control.Progress) -> dict[str, Any]:
            try:
                await progress.later({"begun": True})
                await asyncio.sleep(0.2 if request.get("short") else 60)
                log.append("ended")
            except asyncio.CancelledError:
                log.append("cancelled")
                raise
            return {"ok": True}
        server = Control(str(tmp_path / "s"), {"a": long, "b": long}, frozenset({"a"}))
        await server.start()
        for request in (b'{"cmd":"a"}\n', b'{"cmd":"b","short":1}\n', b'{"cmd":"a","short":1}\n'):
            reader, writer = await asyncio.open_unix_connection(server.path)
            writer.write(request)
            assert json.loads(await reader.readline()) == {"progress": {"begun": True}}
            if b"short" in request and b'"a"' in request:
                assert json.loads(await reader.readline()) == {"ok": True}
            writer.close()
            async with asyncio.timeout(30):
                while not log or len(log) < 1 + (b"short" in request) + (b'"a","short"' in request):
                    await asyncio.sleep(0.01)
        await server.close()
        return log
    assert asyncio.run(main()) == ["cancelled", "ended", "ended"]
