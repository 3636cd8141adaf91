"""The small HTTP server: what is answered, and what hostile clients cannot do."""
from __future__ import annotations

import asyncio
import contextlib

import pytest

from marsx.daemon import http
from marsx.daemon.http import TEXT, Answer, Http, Refused, is_loopback, parse

GET = b"GET /metrics HTTP/1.1\r\nHost: localhost:9200\r\n\r\n"


async def route(path: str) -> Answer:
    """Stands in for the pages."""
    if path == "/slow":
        await asyncio.sleep(3600)
    if path == "/broken":
        raise ValueError("a bug")
    if path == "/big":
        return Answer(200, TEXT, b"x" * (16 << 20))
    if path != "/metrics":
        raise Refused(404, "no")
    return Answer(200, TEXT, b"mars_up 1\n")


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def ask(server: Http, request: bytes, end: bool = False) -> tuple[int, bytes, bytes]:
    """(status, head, body) of one request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    with contextlib.suppress(ConnectionError):
        writer.write(request)
        if end:
            writer.write_eof()
        answer = await reader.read()
        if not answer:
            raise ConnectionError("cut off")
        head, _, body = answer.partition(b"\r\n\r\n")
        await closed(writer)
        return int(head.split(b" ")[1]), head, body
    await closed(writer)
    return 0, b"", b""


def served(work, **changes):
    """`work(server)` on a running server; constants of the module changed."""
    async def run():
        server = Http("127.0.0.1", 0, route)
        await server.start()
        try:
            await work(server)
        finally:
            await server.close()
        assert not server._tasks
    with pytest.MonkeyPatch.context() as patch:
        for name, value in changes.items():
            patch.setattr(http, name, value)
        asyncio.run(run())


@pytest.mark.parametrize(("request_", "status"), [
    (GET, 200),
    (b"GET /metrics?x=1 HTTP/1.0\r\n\r\n", 200),
    (b"GET /metrics HTTP/1.1\r\nHost: [::1]:9200\r\nAccept: */*\r\n\r\n", 200),
    (b"GET /other HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    (b"GET /../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    (b"POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nabcde", 405),
    (b"DELETE /metrics HTTP/1.1\r\n\r\n", 405),
    (b"GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
    (b"GET /metrics HTTP/1.1\r\nHost: localhost.evil.example\r\n\r\n", 403),
    (b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", 400),
    (b"GET http://localhost/metrics HTTP/1.1\r\n\r\n", 400),
    (b"GET /metrics HTTP/2.0\r\n\r\n", 400),
    (b"GET /a b HTTP/1.1\r\n\r\n", 400),
    (b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\n\r\n", 400),
    (b"GET /\x00 HTTP/1.1\r\n\r\n", 400),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", 400),
    (b"\r\n\r\n", 400),
    (b"GET /metrics HTTP/1.1\r\nX: " + b"a" * 10000 + b"\r\n\r\n", 431),
])
def test_requests(request_, status):
    async def work(server):
        got, head, body = await ask(server, request_)
        assert got == status and (status != 200 or body == b"mars_up 1\n")
        assert b"default-src 'none'" in head and b"Connection: close" in head and b"nosniff" in head
    served(work)


def test_head_has_no_body():
    async def work(server):
        status, head, body = await ask(server, GET.replace(b"GET", b"HEAD"))
        assert status == 200 and b"Content-Length: 10" in head and body == b""
    served(work)


def test_half_a_request():
    """The connection ends before the request does."""
    async def work(server):
        assert (await ask(server, b"GET / HT", end=True))[0] == 400
    served(work)


def test_who_sends_nothing_is_sent_away():
    async def work(server):
        assert (await ask(server, b"GET /metrics HTTP/1.1\r\n"))[0] == 408
    served(work, REQUEST_S=0.05)


def test_an_answer_that_does_not_come():
    async def work(server):
        assert (await ask(server, b"GET /slow HTTP/1.1\r\n\r\n"))[0] == 503
    served(work, ANSWER_S=0.05)


def test_who_does_not_read_is_cut_off():
    """A large answer that nobody takes holds no connection for ever."""
    async def work(server):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1)
        writer.write(b"GET /big HTTP/1.1\r\n\r\n")
        while not server._tasks:
            await asyncio.sleep(0.01)
        while server._tasks:
            await asyncio.sleep(0.01)
        writer.transport.abort()
        await closed(writer)
    served(work, ANSWER_S=0.1)


def test_too_many_connections():
    """Those above the limit are answered at once, and the others go on."""
    async def work(server):
        first = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(3)]
        while len(server._tasks) < 3:
            await asyncio.sleep(0.01)
        assert (await ask(server, GET))[0] == 503
        more = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(3)]
        while len(server._tasks) < 6:
            await asyncio.sleep(0.01)
        assert (await ask(server, GET))[0] == 0 and len(server._tasks) <= 6
        for _, writer in more:
            await closed(writer)
        for reader, writer in first:
            writer.write(GET)
            assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
            await closed(writer)
        assert (await ask(server, GET))[0] == 200
    served(work, CONNECTIONS_MAX=3)


def test_a_bug_is_told_once(expect_messages):
    expect_messages("could not be answered")

    async def work(server):
        for _ in range(3):
            status, _, body = await ask(server, b"GET /broken HTTP/1.1\r\n\r\n")
            assert status == 500 and b"ValueError" not in body
    served(work)


def test_close_ends_what_runs():
    async def run():
        server = Http("127.0.0.1", 0, route)
        await server.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        while not server._tasks:
            await asyncio.sleep(0.01)
        await server.close()
        assert await reader.read() == b"" and not server._tasks
        await closed(writer)
    asyncio.run(run())


@pytest.mark.parametrize(("host", "yes"), [
    ("localhost", True), ("LOCALHOST:80", True), ("127.0.0.1:9200", True), ("127.1.2.3", True), ("[::1]:9200", True),
    ("", False), ("10.0.0.1", False), ("127.0.0.1.evil.example", False), ("[::2]", False), ("evil", False),
])
def test_names_of_loopback(host, yes):
    assert is_loopback(host) is yes


def test_any_name_where_it_is_not_loopback():
    """Behind a real address Prometheus asks by whatever name."""
    assert parse(b"GET / HTTP/1.1\r\nHost: db1.example:9200\r\n\r\n", False) == ("GET", "/")
