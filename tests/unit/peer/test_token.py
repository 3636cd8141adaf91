"""Join tokens: text form, one use, expiry; the secret is kept nowhere."""
from __future__ import annotations

import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marsx.base import durable
from marsx.base.config import Paths
from marsx.base.errors import AuthError, DamagedError
from marsx.peer import tls, token
from marsx.peer.token import Token, TokenStore, proof

PARTS = ("nonce", b"certificate", "beta")


def make(now: int = 1000) -> Token:
    return Token(b"f" * 32, os.urandom(20), now + 3600, "alpha")


@pytest.fixture
def store(tmp_path):
    now = [1000.0]
    made = TokenStore(str(tmp_path / "tokens"), lambda: now[0])
    made.now = now
    return made


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=20, max_size=20), st.integers(0, 2**63),
       st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,60}[A-Za-z0-9]", fullmatch=True))
def test_text_comes_back(fingerprint, secret, expires, host):
    made = Token(fingerprint, secret, expires, host)
    text = made.text()
    assert text.isascii() and text.isprintable() and " " not in text
    assert Token.parse(text) == made == Token.parse(f"  {text.upper()}\n")


def test_every_mistyped_character_is_noticed():
    text = make().text()
    for at in range(len(text)):
        wrong = text[:at] + ("a" if text[at] != "a" else "b") + text[at + 1:]
        if wrong[:-1] == text[:-1]:
            continue  # the last character carries padding bits, which say nothing
        with pytest.raises(AuthError):
            Token.parse(wrong)
    for cut in range(len(text) - 1):
        with pytest.raises(AuthError):
            Token.parse(text[:cut])


@pytest.mark.parametrize("text", ["", "mars-", "mars-!!!", "hello", "mars-" + "a" * 500, "mars-äöü", "mars-aaaaaaaa"])
def test_what_is_no_token_is_called_that(text):
    with pytest.raises(AuthError) as caught:
        Token.parse(text)
    assert "create-token" in caught.value.hint or "whole line" in caught.value.hint


def test_a_token_that_names_no_host_is_refused():
    with pytest.raises(AuthError):
        Token.parse(Token(b"f" * 32, b"s" * 20, 1, "../etc").text())


def test_a_good_proof_passes_once_then_it_is_used(store):
    made = make()
    store.add(made)
    good = proof(made.key, *PARTS)
    store.check(made.id, PARTS, good)
    store.use(made.id, "beta")
    with pytest.raises(AuthError, match="already used by beta"):
        store.check(made.id, PARTS, good)
    with pytest.raises(AuthError, match="already used"):
        store.use(made.id, "gamma")
    again = TokenStore(store._path, lambda: 1000.0)
    with pytest.raises(AuthError, match="already used by beta"):
        again.check(made.id, PARTS, good)


def test_expired_used_and_wrong_are_told_apart(store):
    made, other = make(), make()
    store.add(made)
    with pytest.raises(AuthError, match="is wrong"):
        store.check(other.id, PARTS, proof(other.key, *PARTS))
    with pytest.raises(AuthError, match="is wrong"):
        store.check(made.id, PARTS, proof(other.key, *PARTS))
    store.now[0] = 1000 + 3599.9
    store.check(made.id, PARTS, proof(made.key, *PARTS))
    store.now[0] = 1000 + 3600
    with pytest.raises(AuthError, match="has expired"):
        store.check(made.id, PARTS, proof(made.key, *PARTS))
    with pytest.raises(AuthError, match="is wrong"):
        store.check(made.id, PARTS, proof(other.key, *PARTS))


@pytest.mark.parametrize("changed", [("other", b"certificate", "beta"), ("nonce", b"another", "beta"),
                                     ("nonce", b"certificate", "gamma"), ("nonce", b"certificateb", "eta")])
def test_a_proof_holds_only_for_what_it_speaks_of(store, changed):
    made = make()
    store.add(made)
    with pytest.raises(AuthError, match="is wrong"):
        store.check(made.id, changed, proof(made.key, *PARTS))


def test_the_secret_is_not_stored_and_the_file_is_private(store):
    made = make()
    store.add(made)
    with open(store._path, "rb") as file:
        raw = file.read()
    assert made.secret not in raw and made.secret.hex().encode() not in raw
    assert stat.S_IMODE(os.stat(store._path).st_mode) == 0o600


def test_used_counts_only_when_it_is_durable(store, monkeypatch):
    made = make()
    store.add(made)

    def fail(*_, **__):
        raise OSError(5, "Input/output error")
    monkeypatch.setattr(durable, "write_file", fail)
    with pytest.raises(OSError, match="Input/output"):
        store.use(made.id, "beta")


def test_the_join_door_is_open_only_while_a_token_is_remembered(store):
    assert not store.any()
    store.add(make())
    assert store.any()
    store.now[0] = 1000 + 3600 + 23 * 3600
    assert store.any()
    store.now[0] = 1000 + 3600 + 24 * 3600
    assert not store.any()


@pytest.mark.parametrize("text", ["", "{", "{}x", "[1]", '[{"id":"x"}]', "7"])
def test_a_damaged_store_is_named(store, text):
    durable.write_file(store._path, text.encode())
    with pytest.raises(DamagedError, match="damaged"):
        store.any()


def test_create_token_names_this_cluster_and_this_host(tmp_path, hosts):
    paths = Paths(run_dir=str(tmp_path), etc_dir=os.path.dirname(hosts.alpha.files.directory))
    made = Token.parse(token.create_token(paths, "alpha", clock=lambda: 50.0))
    assert made.fingerprint == tls.fingerprint(tls.read_private(hosts.alpha.files.ca_crt))
    assert (made.expires, made.host) == (3650, "alpha")
    TokenStore.of(paths, lambda: 60.0).check(made.id, PARTS, proof(made.key, *PARTS))
