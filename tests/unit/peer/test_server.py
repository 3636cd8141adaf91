"""The handshake over real TLS on loopback: who gets in, who does not, and what each of them is told."""
from __future__ import annotations

import asyncio
import socket
import ssl

import pytest

from marsx.base.errors import MarsError, PreconditionError
from marsx.peer import client, tls, wire
from marsx.peer.link import Link, Tcp, Timing
from marsx.peer.server import Server
from marsx.peer.wire import Hello, PeerError, Reason, Type


async def echo(link, peer):
    """Says who it thinks it talks to, then gives back what it gets."""
    await link.send(Type.TREE_FULL, {"host": peer.host, "incarnation": peer.incarnation, "verified": peer.verified,
                                     "features": list(peer.features), "address": peer.address})
    while True:
        frame = await link.recv()
        await link.send(frame.type, frame.header, frame.body)


SERVICES = {"echo": echo}


async def reach(server, host, *, peer="alpha", service="echo", context="own", identity=None, timing=None):
    context = host.client() if context == "own" else context
    return await client.connect(peer, "127.0.0.1", server.port, service, identity=identity or host.hello(),
                                context=context, timing=timing or Timing(connect=20))


async def refused(*arguments, **options) -> PeerError:
    with pytest.raises(PeerError) as caught:
        link, _ = await reach(*arguments, **options)
        await link.close()
    return caught.value


def test_a_member_gets_its_service_and_both_know_each_other(run, hosts, peers):
    async def work():
        async with peers.serving(hosts.alpha, SERVICES) as server:
            link, welcome = await reach(server, hosts.beta)
            assert welcome == Hello("uuid-1", "alpha", "inc-alpha", ("a", "b"))
            assert (await link.recv()).header == {"host": "beta", "incarnation": "inc-beta", "verified": True,
                                                  "features": ["a", "b"], "address": "127.0.0.1"}
            body = bytes(range(256)) * 8192
            for n in range(8):
                await link.send(Type.FETCH_DATA, {"n": n}, body)
            for n in range(8):
                frame = await link.recv()
                assert frame.header == {"n": n} and frame.body == body
            assert link._transport.get_extra_info("ssl_object").version() == "TLSv1.3"
            await link.close()
    run(work())


@pytest.mark.parametrize(("change", "reason", "says"), [
    ({"identity": Hello("uuid-2", "beta", "i")}, Reason.UUID, "belongs to cluster"),
    ({"identity": Hello("", "beta", "i")}, Reason.UUID, "belongs to cluster"),
    ({"identity": Hello("uuid-1", "gamma", "i")}, Reason.NAME, "certificate is that of 'beta'"),
    ({"service": "nothing"}, Reason.SERVICE, "no service 'nothing'"),
    ({"peer": "gamma"}, Reason.NAME, "certificate is that of 'alpha'"),
])
def test_what_does_not_fit_is_refused_by_name(run, hosts, peers, change, reason, says):
    async def work():
        async with peers.serving(hosts.alpha, SERVICES) as server:
            error = await refused(server, hosts.beta, **change)
            assert error.reason is reason and says in error.text
    run(work())


def test_a_welcome_of_another_cluster_is_not_taken(run, hosts, peers):
    async def work():
        said = [hosts.alpha.hello("uuid-1"), hosts.alpha.hello("uuid-2")]
        async with peers.serving(hosts.alpha, SERVICES, identity=lambda: said.pop(0)) as server:
            error = await refused(server, hosts.beta)
            assert error.reason is Reason.UUID and "'uuid-2'" in error.text
    run(work())


def test_who_is_no_member_is_refused_also_with_a_good_certificate(run, hosts, peers):
    """Rule 26: a removed incarnation is out, whatever it holds."""
    async def work():
        removed = {"inc-beta"}
        asked = []

        def is_member(peer):
            asked.append((peer.host, peer.incarnation, peer.verified))
            return f"{peer.host} was removed from the cluster" if peer.incarnation in removed else ""
        async with peers.serving(hosts.alpha, SERVICES, is_member=is_member) as server:
            error = await refused(server, hosts.beta)
            assert error.reason is Reason.NOT_MEMBER and "was removed" in error.text
            assert asked == [("beta", "inc-beta", True)]
            removed.clear()
            link, _ = await reach(server, hosts.beta)
            await link.close()
    run(work())


def test_a_host_that_carries_our_own_name_is_refused(run, hosts, peers):
    async def work():
        async with peers.serving(hosts.alpha, SERVICES) as server:
            error = await refused(server, hosts.alpha)
            assert error.reason is Reason.NAME and "two hosts" in error.text
    run(work())


@pytest.mark.parametrize("join_open", [False, True])
def test_a_certificate_of_another_ca_is_refused_by_the_server(run, hosts, peers, join_open):
    async def work():
        seen = []
        async with peers.serving(hosts.alpha, SERVICES, join_open=lambda: join_open,
                                 is_member=lambda peer: seen.append(peer) or "") as server:
            context = hosts.evil_beta.client()
            context.verify_mode = ssl.CERT_NONE  # the attacker does not care who we are
            error = await refused(server, hosts.evil_beta, context=context)
            assert error.reason in (Reason.TLS, Reason.LOST) and not seen
    run(work())


def test_a_server_of_another_ca_is_refused_before_anything_is_said(run, hosts, peers):
    """A man in the middle with a certificate of the right name from a CA of his own."""
    async def work():
        async with peers.serving(hosts.evil, SERVICES, join_open=lambda: True) as server:
            error = await refused(server, hosts.beta)
            assert error.reason is Reason.TLS and "certificate" in error.text
    run(work())


def test_without_certificate_only_the_join_service_and_only_while_it_is_open(run, hosts, peers):
    async def work():
        bare = tls.join_context(tls.read_private(hosts.alpha.files.ca_crt))
        services = {"echo": echo, "join": echo}
        async with peers.serving(hosts.alpha, services, join_open=lambda: True) as server:
            error = await refused(server, hosts.beta, context=bare)
            assert error.reason is Reason.CERTIFICATE and "needs a certificate" in error.text
            link, _ = await reach(server, hosts.beta, context=bare, service="join")
            said = (await link.recv()).header
            assert (said["host"], said["verified"]) == ("beta", False)
            await link.close()
        async with peers.serving(hosts.alpha, services, join_open=lambda: False) as server:
            for service in services:
                error = await refused(server, hosts.beta, context=bare, service=service)
                assert error.reason in (Reason.TLS, Reason.LOST)
    run(work())


def test_a_stranger_in_the_join_service_stays_held_to_small_frames(run, hosts, peers):
    async def work():
        bare = tls.join_context(tls.read_private(hosts.alpha.files.ca_crt))
        async with peers.serving(hosts.alpha, {"join": echo}, join_open=lambda: True) as server:
            link, _ = await reach(server, hosts.beta, context=bare, service="join")
            await link.recv()
            await link.send(Type.FETCH_DATA, {}, bytes(wire.MAX_BODY_STRANGER + 1))
            with pytest.raises(PeerError) as caught:
                await link.recv()
            assert caught.value.reason in (Reason.GARBAGE, Reason.LOST)
            await link.close()
    run(work())


def test_another_protocol_version_is_refused_with_a_hint(run, hosts, peers, monkeypatch):
    async def work():
        async with peers.serving(hosts.alpha, SERVICES) as server:
            hello = Hello.header
            monkeypatch.setattr(Hello, "header", lambda self: {**hello(self), "proto": 2 if self.service else 1})
            error = await refused(server, hosts.beta)
            assert error.reason is Reason.PROTO and "protocol 2" in error.text
    run(work())


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\0" * 5000, wire.encode(Type.SYNC_DATA),
                                  wire.encode(Type.HELLO, {"proto": 1, "host": "../.."}),
                                  wire.encode(Type.HELLO, {"proto": [1]}), wire.encode(Type.BYE)])
def test_garbage_as_a_hello_ends_that_connection_only(run, hosts, peers, data):
    async def work():
        async with peers.serving(hosts.alpha, SERVICES) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=hosts.beta.client(),
                                                           server_hostname="")
            writer.write(data)
            await asyncio.wait_for(reader.read(), 20)
            writer.transport.abort()
            link, _ = await reach(server, hosts.beta)
            await link.close()
    run(work())


def test_bytes_that_are_no_tls_end_that_connection_only(run, hosts, peers):
    async def work():
        async with peers.serving(hosts.alpha, SERVICES) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(wire.encode(Type.HELLO, hosts.beta.hello().header()))
            await asyncio.wait_for(reader.read(), 20)
            writer.transport.abort()
            error = await refused(server, hosts.beta, context=None)
            assert error.reason in (Reason.GARBAGE, Reason.LOST)
            link, _ = await reach(server, hosts.beta)
            await link.close()
    run(work())


def test_who_connects_and_says_nothing_is_dropped_after_his_time(run, hosts, peers):
    async def work():
        async with peers.serving(hosts.alpha, SERVICES, timing=Timing(connect=0.2)) as server:
            loop = asyncio.get_running_loop()
            raw = socket.create_connection(("127.0.0.1", server.port))
            raw.setblocking(False)
            assert await asyncio.wait_for(loop.sock_recv(raw, 100), 20) == b"", "no TLS"
            raw.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=hosts.beta.client(),
                                                           server_hostname="")
            await asyncio.wait_for(reader.read(), 20)
            writer.transport.abort()
            await peers.until(lambda: not server._strangers)
    run(work())


def test_strangers_of_one_address_cannot_fill_the_server(run, hosts, peers):
    async def work():
        async with peers.serving(hosts.alpha, SERVICES, strangers_per_address=3) as server:
            held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
            await peers.until(lambda: server._strangers["127.0.0.1"] == 3)
            error = await refused(server, hosts.beta)
            assert error.reason in (Reason.LOST, Reason.TLS)
            for sock in held:
                sock.close()
            await peers.until(lambda: not server._strangers)
            link, _ = await reach(server, hosts.beta)
            await link.close()
    run(work())


def test_too_many_links_are_refused_as_busy(run, hosts, peers):
    async def work():
        async with peers.serving(hosts.alpha, SERVICES, links_max=2) as server:
            links = [(await reach(server, hosts.beta))[0] for _ in range(2)]
            error = await refused(server, hosts.beta)
            assert error.reason is Reason.BUSY
            await links.pop().close()
            await peers.until(lambda: len(server._tasks) == 1)
            links.append((await reach(server, hosts.beta))[0])
            for link in links:
                await link.close()
    run(work())


@pytest.mark.expect_messages(r"a service failed")
def test_the_error_of_a_service_reaches_the_other_side(run, hosts, peers, caplog):
    async def fail(link, peer):
        raise PreconditionError("the resource is gone")

    async def split(link, peer):
        raise PeerError(Reason.SPLIT, "history differs")

    async def crash(link, peer):
        raise KeyError("secret inner detail")

    async def fine(link, peer):
        return

    async def work():
        services = {"fail": fail, "split": split, "crash": crash, "fine": fine}
        expected = {"fail": (Reason.FAILED, "resource is gone"), "split": (Reason.SPLIT, "history differs"),
                    "crash": (Reason.FAILED, "internal error"), "fine": (Reason.CLOSED, "")}
        async with peers.serving(hosts.alpha, services) as server:
            for service, (reason, says) in expected.items():
                link, _ = await reach(server, hosts.beta, service=service)
                with pytest.raises(PeerError) as caught:
                    await link.recv()
                assert caught.value.reason is reason and says in caught.value.text
                assert "secret" not in caught.value.text
                await link.close()
    run(work())
    assert "a service failed" in caplog.text


def test_stopping_ends_all_services_and_says_so(run, hosts, peers):
    async def work():
        ended = []

        async def wait(link, peer):
            try:
                await link.recv()
            finally:
                ended.append(peer.host)
        async with peers.serving(hosts.alpha, {"echo": wait}) as server:
            link, _ = await reach(server, hosts.beta)
            port = server.port
        assert ended == ["beta"]
        with pytest.raises(PeerError, match="stopping") as caught:
            await link.recv()
        assert caught.value.reason is Reason.CLOSED
        await link.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
    run(work())


@pytest.mark.expect_messages(r"--insecure-no-tls")
def test_without_tls_it_works_and_is_loud(run, hosts, peers, caplog):
    async def work():
        async with peers.serving(hosts.alpha, {"echo": echo, "join": echo}, contexts=None) as server:
            link, _ = await reach(server, hosts.beta, context=None)
            said = (await link.recv()).header
            assert (said["host"], said["verified"]) == ("beta", False)
            await link.send(Type.FETCH_DATA, {}, bytes(1_000_000))
            assert (await link.recv()).body == bytes(1_000_000)
            await link.close()
            error = await refused(server, hosts.beta, context=None, peer="gamma")
            assert error.reason is Reason.NAME and "'alpha' answers" in error.text
            error = await refused(server, hosts.beta, context=None, service="join")
            assert error.reason is Reason.CERTIFICATE and "nobody can join" in error.text
            error = await refused(server, hosts.beta)
            assert error.reason in (Reason.TLS, Reason.LOST)
    run(work())
    assert any(record.levelname == "WARNING" and "neither encrypted nor authenticated" in record.message
               for record in caplog.records)


def test_reasons_of_the_connecting_side(run, hosts):
    async def work():
        free = socket.create_server(("127.0.0.1", 0))
        port = free.getsockname()[1]
        hello, timing = hosts.beta.hello(), Timing(connect=0.2)

        async def reason(ip, context):
            with pytest.raises(PeerError) as caught:
                await client.connect("alpha", ip, port, "echo", identity=hello, context=context, timing=timing)
            return caught.value.reason
        assert await reason("127.0.0.1", hosts.beta.client()) is Reason.SILENT, "accepts, never speaks TLS"
        assert await reason("127.0.0.1", None) is Reason.SILENT, "accepts, never answers the hello"
        free.close()
        assert await reason("127.0.0.1", None) is Reason.REFUSED
        assert await reason("not-an-address", None) is Reason.UNREACHABLE
    run(work())


def test_an_address_in_use_is_named(run, hosts):
    async def work():
        taken = socket.create_server(("127.0.0.1", 0))
        server = Server("127.0.0.1", taken.getsockname()[1], contexts=hosts.alpha.server(),
                        identity=hosts.alpha.hello, services={}, is_member=lambda peer: "")
        with pytest.raises(MarsError, match="cannot listen"):
            await server.start()
        taken.close()
    run(work())


def test_both_families_are_served_on_all_addresses(run, hosts):
    async def work():
        server = Server("", 0, contexts=hosts.alpha.server(), identity=hosts.alpha.hello, services=SERVICES,
                        is_member=lambda peer: "")
        await server.start()
        try:
            for ip in ("127.0.0.1", *(["::1"] if socket.has_dualstack_ipv6() else [])):
                link, _ = await client.connect("alpha", ip, server.port, "echo", identity=hosts.beta.hello(),
                                               context=hosts.beta.client(), timing=Timing(connect=20))
                assert (await link.recv()).header["address"] == ip
                await link.close()
        finally:
            await server.close()
    run(work())


def test_each_class_of_connections_has_its_tcp_options(run, hosts, peers):
    """What the tunables say of a service counts at both ends; the accepting one learns the service by the hello."""
    async def work():
        mine, theirs = Tcp(tos=8, keep_idle=11, keep_interval=12, keep_count=5), Tcp(tos=16, keep_idle=21)
        seen: list[Link] = []

        async def service(link, peer):
            seen.append(link)
            await echo(link, peer)

        async with peers.serving(hosts.alpha, {"echo": service}, tcp_of={"echo": theirs}.__getitem__) as server:
            link, _ = await reach(server, hosts.beta, timing=Timing(connect=20, tcp=mine))
            for one, tcp in ((link, mine), (seen[0], theirs)):
                sock = one._transport.get_extra_info("socket")
                options = (sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS), *(
                    sock.getsockopt(socket.IPPROTO_TCP, name)
                    for name in (socket.TCP_KEEPCNT, socket.TCP_KEEPINTVL, socket.TCP_KEEPIDLE)))
                assert options == (tcp.tos, tcp.keep_count, tcp.keep_interval, tcp.keep_idle)
            await link.close()
    run(work())
