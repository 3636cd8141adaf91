"""Certificates: who gets one for what name, and files that nobody else may touch."""
from __future__ import annotations

import datetime
import os
import ssl
import stat
import subprocess

import pytest

from marsx.base import durable
from marsx.base.config import Paths
from marsx.base.errors import DamagedError, MarsError, NotFoundError, PermissionDeniedError, PreconditionError
from marsx.peer import tls


def facts(path) -> str:
    return subprocess.run(["openssl", "x509", "-in", path, "-noout", "-text"], capture_output=True, text=True,
                          check=True).stdout


def openssl(*arguments, cwd) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=cwd)


def test_files_are_private_and_nothing_else_is_left(hosts):
    for host in (hosts.alpha, hosts.beta):
        directory = host.files.directory
        assert sorted(os.listdir(directory)) == ["ca.crt", "ca.key", "host.crt", "host.key"]
        assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
        for name in os.listdir(directory):
            assert stat.S_IMODE(os.stat(os.path.join(directory, name)).st_mode) == 0o600
        assert host.files.complete() and host.files.may_sign()


def test_the_certificate_says_who_and_is_valid_for_clocks_that_differ(hosts):
    text = facts(hosts.beta.files.host_crt)
    assert "Subject: CN = beta" in text.replace("CN=", "CN = ") and "DNS:beta" in text
    assert "CA:FALSE" in text and "NIST CURVE: P-256" in text
    for path in (hosts.beta.files.host_crt, hosts.beta.files.ca_crt):
        found = ssl._ssl._test_decode_cert(path)
        now = datetime.datetime.now(datetime.UTC).timestamp()
        assert ssl.cert_time_to_seconds(found["notBefore"]) < now - 23 * 3600
        assert ssl.cert_time_to_seconds(found["notAfter"]) > now + 90 * 365 * 86400
    serials = {ssl._ssl._test_decode_cert(h.files.host_crt)["serialNumber"] for h in (hosts.alpha, hosts.beta)}
    assert len(serials) == 2


def test_the_certificates_hold_under_strict_verification(hosts):
    openssl("verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", hosts.alpha.files.ca_crt,
            hosts.beta.files.host_crt, cwd="/")
    with pytest.raises(subprocess.CalledProcessError):
        openssl("verify", "-CAfile", hosts.evil.files.ca_crt, hosts.beta.files.host_crt, cwd="/")


def test_name_and_extensions_of_a_request_do_not_count(hosts, tmp_path):
    openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", "k", cwd=tmp_path)
    openssl("req", "-new", "-key", "k", "-subj", "/CN=alpha", "-addext", "subjectAltName=DNS:alpha", "-addext",
            "basicConstraints=critical,CA:TRUE", "-out", "r", cwd=tmp_path)
    (tmp_path / "c").write_bytes(tls.sign_request(hosts.alpha.files, (tmp_path / "r").read_bytes(), "gamma"))
    text = facts(tmp_path / "c")
    assert "gamma" in text and "alpha" not in text and "CA:FALSE" in text and "CA:TRUE" not in text


def test_a_request_that_was_not_signed_by_its_key_is_refused(hosts):
    _, request = tls.make_request(hosts.alpha.files, "gamma")
    raw = bytearray(ssl.PEM_cert_to_DER_cert(request.decode().replace("CERTIFICATE REQUEST", "CERTIFICATE")))
    raw[-1] ^= 1
    bad = ssl.DER_cert_to_PEM_cert(bytes(raw)).replace("CERTIFICATE", "CERTIFICATE REQUEST").encode()
    with pytest.raises(MarsError, match="openssl"):
        tls.sign_request(hosts.alpha.files, bad, "gamma")
    for junk in (b"", b"x" * 100, b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
                 request + bytes(tls.PEM_LIMIT)):
        with pytest.raises(MarsError):
            tls.sign_request(hosts.alpha.files, junk, "gamma")
    assert sorted(os.listdir(hosts.alpha.files.directory)) == ["ca.crt", "ca.key", "host.crt", "host.key"]


@pytest.mark.parametrize("name", ["", "a/b", "a/CN=root", "../x", "a\nb", "x" * 64, "a,b"])
def test_only_host_names_get_certificates(hosts, tmp_path, name):
    with pytest.raises(DamagedError):
        tls.create_cluster(tls.TlsFiles(str(tmp_path / "tls")), name)
    with pytest.raises(DamagedError):
        tls.sign_request(hosts.alpha.files, b"", name)


def test_an_existing_cluster_is_not_overwritten(hosts):
    before = tls.read_private(hosts.alpha.files.ca_crt)
    with pytest.raises(PreconditionError, match="already has"):
        tls.create_cluster(hosts.alpha.files, "alpha")
    assert tls.read_private(hosts.alpha.files.ca_crt) == before


@pytest.mark.parametrize("survives", range(4))
def test_a_crash_while_installing_leaves_no_half_cluster(tmp_path, monkeypatch, survives):
    files = tls.TlsFiles(str(tmp_path / "tls"))
    real, count = durable.write_file, 0

    def failing(*arguments, **options):
        nonlocal count
        if count == survives:
            raise OSError(28, "No space left on device")
        count += 1
        real(*arguments, **options)
    monkeypatch.setattr(durable, "write_file", failing)
    with pytest.raises(OSError, match="No space"):
        tls.create_cluster(files, "alpha")
    assert not files.complete()
    monkeypatch.setattr(durable, "write_file", real)
    tls.create_cluster(files, "alpha")
    tls.server_contexts(files)


def test_keys_that_others_could_touch_are_not_used(tmp_path):
    files = tls.TlsFiles.of(Paths(etc_dir=str(tmp_path)))
    with pytest.raises(NotFoundError, match="missing"):
        tls.client_context(files)
    tls.create_cluster(files, "alpha")
    os.chmod(files.host_key, 0o640)
    with pytest.raises(PermissionDeniedError, match="host.key can be touched"):
        tls.client_context(files)
    os.chmod(files.host_key, 0o600)
    os.rename(files.ca_crt, files.ca_crt + "2")
    os.symlink(files.ca_crt + "2", files.ca_crt)
    with pytest.raises(PermissionDeniedError):
        tls.client_context(files)


def test_a_key_of_another_certificate_is_named(tmp_path, hosts):
    files = tls.TlsFiles(str(tmp_path / "tls"))
    tls.install(files, ca_crt=tls.read_private(hosts.alpha.files.ca_crt), ca_key=b"",
                host_crt=tls.read_private(hosts.alpha.files.host_crt),
                host_key=tls.read_private(hosts.beta.files.host_key))
    with pytest.raises(DamagedError, match="cannot be used"):
        tls.client_context(files)


def test_contexts_speak_tls_1_3_only_and_ask_both_sides(hosts):
    both = hosts.alpha.server()
    client = hosts.alpha.client()
    for context in (both.members, both.joining, client, tls.join_context(None)):
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
    assert both.members.verify_mode is client.verify_mode is ssl.CERT_REQUIRED
    assert both.joining.verify_mode is ssl.CERT_OPTIONAL
    ca = tls.read_private(hosts.alpha.files.ca_crt)
    assert tls.join_context(ca).verify_mode is ssl.CERT_REQUIRED


def test_fingerprint_is_that_of_one_certificate(hosts):
    ca = tls.read_private(hosts.alpha.files.ca_crt)
    said = subprocess.run(["openssl", "x509", "-in", hosts.alpha.files.ca_crt, "-noout", "-fingerprint", "-sha256"],
                          capture_output=True, text=True, check=True).stdout
    assert tls.fingerprint(ca).hex() == said.split("=")[1].strip().replace(":", "").lower()
    for junk in (b"", b"x", ca + ca, b"\xff" * 20, ca[:-30]):
        with pytest.raises(DamagedError):
            tls.fingerprint(junk)


def test_without_openssl_the_message_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MarsError, match="not installed") as caught:
        tls.create_cluster(tls.TlsFiles(str(tmp_path / "tls")), "alpha")
    assert "apt-get" in caught.value.hint


def test_a_host_of_another_name_does_not_start(hosts, tmp_path):
    """Rule 22: the name in the certificate counts, not the one of the CA, and damage is no name."""
    tls.check_name(hosts.alpha.files, "alpha")
    tls.check_name(hosts.beta.files, "beta")
    for files, name in ((hosts.alpha.files, "beta"), (hosts.beta.files, "alpha"), (hosts.beta.files, "mars")):
        with pytest.raises(PreconditionError, match="is called"):
            tls.check_name(files, name)
