"""Taking in a new host, over real TLS: what a token opens, what it does not, and who stands between."""
from __future__ import annotations

import asyncio
import os
import stat
from types import SimpleNamespace

import pytest

from marsx.base.config import Paths
from marsx.base.errors import AuthError, MarsError, PreconditionError
from marsx.peer import client, join, tls, token, wire
from marsx.peer.join import JoinService, join_cluster
from marsx.peer.link import Timing
from marsx.peer.token import Token, TokenStore
from marsx.peer.wire import PeerError, Reason, Type

TREE = [["ips/ip-alpha", "10.0.0.1", 17], ["uuid", "alpha_1.000000002", 18]]
TIMING = Timing(connect=20)


@pytest.fixture
def member(tmp_path, hosts):
    """alpha with a token store of its own, a clock, and a record of whom it was asked to admit."""
    now = [1000.0]
    paths = Paths(run_dir=str(tmp_path / "run"), etc_dir=os.path.dirname(hosts.alpha.files.directory))
    os.makedirs(paths.run_dir)
    store = TokenStore.of(paths, lambda: now[0])
    admitted: list = []

    def admit(host, ip, address):
        admitted.append((host, ip, address))
        return TREE
    return SimpleNamespace(host=hosts.alpha, store=store, now=now, admitted=admitted, admit=admit,
                           token=lambda: token.create_token(paths, "alpha", clock=lambda: now[0]))


@pytest.fixture
def door(member, peers):
    """Serve the join service (and what else is given) of a member."""
    def opened(host=None, **services):
        host = host or member.host
        service = JoinService(host.files, member.store, uuid=lambda: "uuid-1", admit=member.admit)
        return peers.serving(host, {"join": service, **services}, join_open=member.store.any)
    return opened


def newcomer(tmp_path, name="gamma") -> tls.TlsFiles:
    return tls.TlsFiles(str(tmp_path / name / "tls"))


async def joining(server, text, files, host="gamma"):
    return await join_cluster(text, "127.0.0.1", server.port, host=host, own_ip="10.0.0.3", files=files, timing=TIMING)


def test_a_new_host_gets_all_it_needs_and_is_a_member_then(run, tmp_path, member, door):
    async def echo(link, peer):
        await link.send(Type.TREE_FULL, {"host": peer.host, "verified": peer.verified})
        await link.recv()

    async def work():
        files = newcomer(tmp_path)
        async with door(echo=echo) as server:
            joined = await joining(server, member.token(), files)
            assert (joined.uuid, joined.host, joined.tree) == ("uuid-1", "alpha", TREE)
            assert member.admitted == [("gamma", "10.0.0.3", "127.0.0.1")]
            link, _ = await client.connect("alpha", "127.0.0.1", server.port, "echo",
                                           identity=wire.Hello("uuid-1", "gamma", "i"),
                                           context=tls.client_context(files), timing=TIMING)
            assert (await link.recv()).header == {"host": "gamma", "verified": True}
            await link.close()
        assert files.may_sign(), "the new host can take in the next one"
        assert sorted(os.listdir(files.directory)) == ["ca.crt", "ca.key", "host.crt", "host.key"]
        assert {stat.S_IMODE(os.stat(os.path.join(files.directory, n)).st_mode) for n in os.listdir(files.directory)} \
            == {0o600}
        assert tls.read_private(files.host_key) != tls.read_private(member.host.files.host_key)
    run(work())


def test_the_new_host_can_take_in_a_third_one(run, tmp_path, member, door, peers):
    async def work():
        files = newcomer(tmp_path)
        async with door() as server:
            await joining(server, member.token(), files)
        gamma = SimpleNamespace(files=files, server=lambda: tls.server_contexts(files),
                                hello=lambda: wire.Hello("uuid-1", "gamma", "i"))
        made = Token(tls.fingerprint(tls.read_private(files.ca_crt)), os.urandom(20), 5000, "gamma")
        member.store.add(made)
        async with door(gamma) as server:
            await joining(server, made.text(), newcomer(tmp_path, "delta"), "delta")
        tls.client_context(newcomer(tmp_path, "delta"))
    run(work())


def test_a_token_works_once(run, tmp_path, member, door):
    async def work():
        async with door() as server:
            text = member.token()
            await joining(server, text, newcomer(tmp_path))
            with pytest.raises(AuthError, match="already used by gamma") as caught:
                await joining(server, text, newcomer(tmp_path, "delta"), "delta")
            assert caught.value.exit_code == 9 and "create-token" in caught.value.hint
            assert not newcomer(tmp_path, "delta").complete()
            assert [host for host, _, _ in member.admitted] == ["gamma"]
    run(work())


def test_of_two_hosts_with_one_token_one_gets_in(run, tmp_path, member, door):
    async def work():
        async with door() as server:
            text = member.token()
            both = [joining(server, text, newcomer(tmp_path, name), name) for name in ("gamma", "delta")]
            results = await asyncio.gather(*both, return_exceptions=True)
            assert sorted(type(result) is join.Joined for result in results) == [False, True]
            assert any(isinstance(result, AuthError) and "already used" in result.text for result in results)
            assert len(member.admitted) == 1, "the other one was refused before anything was done for it"
    run(work())


def test_a_proof_for_one_member_is_worth_nothing_at_another(run, tmp_path, member, door, monkeypatch):
    async def work():
        async with door() as server:
            text = member.token()
            join_service = server._services["join"]
            real, join_service._certificate = join_service._certificate, b"certificate of another member"
            with pytest.raises(AuthError, match="is wrong"):
                await joining(server, text, newcomer(tmp_path))
            join_service._certificate = real
            await joining(server, text, newcomer(tmp_path))
    run(work())


def test_an_old_token_is_refused(run, tmp_path, member, door):
    async def work():
        async with door() as server:
            text = member.token()
            member.now[0] += 3601
            with pytest.raises(AuthError, match="has expired"):
                await joining(server, text, newcomer(tmp_path))
            assert not member.admitted and not newcomer(tmp_path).complete()
    run(work())


def test_a_token_with_another_secret_is_wrong(run, tmp_path, member, door):
    async def work():
        async with door() as server:
            good = Token.parse(member.token())
            made_up = Token(good.fingerprint, os.urandom(20), good.expires, "alpha")
            with pytest.raises(AuthError, match="is wrong"):
                await joining(server, made_up.text(), newcomer(tmp_path))
            assert not member.admitted
            await joining(server, good.text(), newcomer(tmp_path))
    run(work())


def test_without_any_token_out_nobody_without_certificate_gets_in(run, tmp_path, member, door):
    async def work():
        made_up = Token(tls.fingerprint(tls.read_private(member.host.files.ca_crt)), os.urandom(20), 5000, "alpha")
        async with door() as server:
            with pytest.raises(PeerError) as caught:
                await joining(server, made_up.text(), newcomer(tmp_path))
            assert caught.value.reason in (Reason.TLS, Reason.LOST) and "lets nobody in" in caught.value.hint
    run(work())


def test_a_cluster_that_did_not_give_the_token_learns_nothing(run, tmp_path, hosts, member, door):
    """Somebody in the middle, or the wrong address: another CA. He must not get a proof."""
    async def work():
        heard = []

        async def listen(link, peer):
            await link.send(Type.JOIN_CA, {}, tls.read_private(hosts.evil.files.ca_crt))
            heard.append(await link.recv())
        text = member.token()
        async with door(hosts.evil, join=listen) as server:
            with pytest.raises(AuthError, match="not of the cluster that gave the token"):
                await joining(server, text, newcomer(tmp_path))
        assert not heard and not newcomer(tmp_path).complete()
    run(work())


def test_who_shows_the_right_ca_without_its_key_learns_nothing(run, tmp_path, hosts, member, door):
    """The CA's certificate is no secret: the second connection must be verified against it."""
    async def work():
        heard = []

        async def listen(link, peer):
            await link.send(Type.JOIN_CA, {}, tls.read_private(hosts.alpha.files.ca_crt))
            await link.send(Type.JOIN_CHALLENGE, {"nonce": "0" * 32})
            frame = await link.recv()
            heard.append(frame)
        text = member.token()
        async with door(hosts.evil, join=listen) as server:
            with pytest.raises(PeerError) as caught:
                await joining(server, text, newcomer(tmp_path))
        assert caught.value.reason is Reason.TLS and not heard
    run(work())


def test_another_member_than_the_one_that_gave_it_is_not_asked(run, tmp_path, hosts, member, door):
    async def work():
        text = member.token()
        async with door(hosts.beta) as server:
            with pytest.raises(PeerError) as caught:
                await joining(server, text, newcomer(tmp_path))
        assert caught.value.reason is Reason.NAME
    run(work())


def test_a_proof_for_one_session_is_worth_nothing_in_another(run, tmp_path, member, door, monkeypatch):
    async def work():
        seen = []
        real = join.proof
        monkeypatch.setattr(join, "proof", lambda key, *parts: seen.append(real(key, *parts)) or seen[0])
        async with door() as server:
            text = member.token()
            real_check = member.store.check

            def break_after_check(*arguments):
                real_check(*arguments)
                raise PreconditionError("the disk is full")
            member.store.check = break_after_check
            with pytest.raises(PreconditionError):
                await joining(server, text, newcomer(tmp_path))
            member.store.check = real_check
            with pytest.raises(AuthError, match="is wrong"):
                await joining(server, text, newcomer(tmp_path))
            assert len(set(seen)) == 2
    run(work())


def test_a_refusal_of_the_member_keeps_its_exit_status_and_the_token(run, tmp_path, member, door):
    async def work():
        refuse = [PreconditionError("host gamma is already a member", "choose another name")]
        real = member.admit

        def admit(*arguments):
            if refuse:
                raise refuse.pop()
            return real(*arguments)
        member.admit = admit
        async with door() as server:
            text = member.token()
            with pytest.raises(PreconditionError, match="already a member") as caught:
                await joining(server, text, newcomer(tmp_path))
            assert caught.value.hint == "choose another name"
            await joining(server, text, newcomer(tmp_path))
    run(work())


def test_a_request_that_is_none_is_refused_and_the_token_stays(run, tmp_path, member, door, monkeypatch):
    async def work():
        async with door() as server:
            text = member.token()
            real = tls.make_request
            monkeypatch.setattr(tls, "make_request", lambda *_: (b"key", b"-----BEGIN CERTIFICATE REQUEST-----\nx\n"))
            with pytest.raises(MarsError, match="openssl"):
                await joining(server, text, newcomer(tmp_path))
            monkeypatch.setattr(tls, "make_request", real)
            await joining(server, text, newcomer(tmp_path))
    run(work())


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"tree":[],"ca_crt":"x","ca_key":"y","host_crt":"z"}',
                                  b'{"tree":{},"ca_crt":"x","ca_key":"y","host_crt":"z"}'])
def test_a_strange_answer_installs_nothing(run, tmp_path, hosts, member, door, body):
    async def strange(link, peer):
        await link.send(Type.JOIN_CA, {}, tls.read_private(hosts.alpha.files.ca_crt))
        await link.send(Type.JOIN_CHALLENGE, {"nonce": "0" * 32})
        await link.recv()
        await link.send(Type.JOIN_ANSWER, {"uuid": "u"}, body)
        await link.recv()

    async def work():
        async with door(join=strange) as server:
            with pytest.raises(MarsError):
                await joining(server, member.token(), newcomer(tmp_path))
        assert not os.path.exists(newcomer(tmp_path).ca_crt)
    run(work())
