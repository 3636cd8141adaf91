"""Cluster CA, host certificates, and the TLS contexts made of them.

Files in `etc_dir/tls` (outside of what the tree exchange carries), root's, mode 0600:

    ca.crt ca.key       the cluster CA; the key is on every member, because each may take in a new host
    host.crt host.key   this host: common name and DNS name = host name, signed by the CA

The `openssl` program makes them, only at create-cluster and join: EC P-256, valid from a day ago (clocks differ) for a
hundred years. Who may talk is decided by the CA, the name in the certificate and the membership, never by an address.
TLS 1.3 only. A CA is known by its fingerprint: SHA-256 of the DER form, hex.
"""
from __future__ import annotations

import datetime
import hashlib
import os
import shutil
import ssl
import stat
import subprocess
import tempfile
from dataclasses import dataclass

from marsx.base import durable
from marsx.base.config import Paths
from marsx.base.errors import DamagedError, MarsError, NotFoundError, PermissionDeniedError, PreconditionError
from marsx.base.position import is_host_name

YEARS = 100
PEM_LIMIT = 16 * 1024
_COMMON_NAME = bytes.fromhex("0603550403")  # in DER

_CONFIG = """
[req]
prompt = no
distinguished_name = name
[name]
commonName = replaced
[ca]
default_ca = cluster
[cluster]
database = {work}/index
new_certs_dir = {work}
serial = {work}/serial
default_md = sha256
policy = any_name
unique_subject = no
email_in_dn = no
copy_extensions = none
[any_name]
commonName = supplied
[ca_extensions]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[host_extensions]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = DNS:{host}
"""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where the four files are."""

    directory: str

    @classmethod
    def of(cls, paths: Paths) -> TlsFiles:
        """Those of this host."""
        return cls(os.path.join(paths.etc_dir, "tls"))

    @property
    def ca_crt(self) -> str:
        return os.path.join(self.directory, "ca.crt")

    @property
    def ca_key(self) -> str:
        return os.path.join(self.directory, "ca.key")

    @property
    def host_crt(self) -> str:
        return os.path.join(self.directory, "host.crt")

    @property
    def host_key(self) -> str:
        return os.path.join(self.directory, "host.key")

    def complete(self) -> bool:
        """True if this host can talk to its cluster."""
        return all(os.path.isfile(path) for path in (self.ca_crt, self.host_crt, self.host_key))

    def may_sign(self) -> bool:
        """True if this host can take in new hosts."""
        return self.complete() and os.path.isfile(self.ca_key)


def create_cluster(files: TlsFiles, host: str) -> None:
    """Make a new CA and the certificate of its first host. Refuses where certificates are already."""
    _check_host(host)
    if os.path.exists(files.ca_crt):
        raise PreconditionError(f"this host already has cluster certificates in {files.directory}",
                                "leave the old cluster first, or move that directory away")
    with _WorkDir(files, host) as work:
        work.make_key("ca.key")
        work.make_request("ca.key", "ca.csr", "mars cluster CA")
        work.sign("ca.csr", "ca.crt", "mars cluster CA", "ca_extensions",
                  ["-selfsign", "-keyfile", work.path("ca.key")])
        work.make_key("host.key")
        work.make_request("host.key", "host.csr", host)
        work.sign("host.csr", "host.crt", host, "host_extensions", work.by_ca())
        install(files, ca_crt=work.read("ca.crt"), ca_key=work.read("ca.key"), host_crt=work.read("host.crt"),
                host_key=work.read("host.key"))


def make_request(files: TlsFiles, host: str) -> tuple[bytes, bytes]:
    """(private key, certificate request) of a host that wants to join; the key never leaves it. Nothing is stored."""
    _check_host(host)
    with _WorkDir(files, host) as work:
        work.make_key("host.key")
        work.make_request("host.key", "host.csr", host)
        return work.read("host.key"), work.read("host.csr")


def sign_request(files: TlsFiles, request: bytes, host: str) -> bytes:
    """The certificate for `host`. Of the request only the public key counts; its name and extensions are replaced."""
    _check_host(host)
    if len(request) > PEM_LIMIT or not request.startswith(b"-----BEGIN CERTIFICATE REQUEST-----"):
        raise DamagedError("this is not a certificate request")
    ca_crt, ca_key = read_private(files.ca_crt), read_private(files.ca_key)
    with _WorkDir(files, host) as work:
        work.write("ca.crt", ca_crt)
        work.write("ca.key", ca_key)
        work.write("host.csr", request)
        work.sign("host.csr", "host.crt", host, "host_extensions", work.by_ca())
        return work.read("host.crt")


def install(files: TlsFiles, *, ca_crt: bytes, ca_key: bytes, host_crt: bytes, host_key: bytes) -> None:
    """Store what create or join gave, each file durable; ca.crt comes last: with it the host has a cluster."""
    _make_directory(files.directory)
    for path, content in ((files.host_key, host_key), (files.host_crt, host_crt), (files.ca_key, ca_key),
                          (files.ca_crt, ca_crt)):
        durable.write_file(path, content, mode=0o600)


def read_private(path: str) -> bytes:
    """A small file that only this user can have written or read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFoundError(f"{path} is missing",
                            "this host is in no cluster: marsadm create-cluster or join-cluster") from None
    except OSError as error:
        raise PermissionDeniedError(f"{path}: {error.strerror}") from None
    with open(fd, "rb") as file:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode) or facts.st_uid not in (0, os.geteuid()) or facts.st_mode & 0o077:
            raise PermissionDeniedError(f"{path} can be touched by others", f"chown root {path}; chmod 600 {path}")
        return file.read(1024 * 1024)


def fingerprint(certificate_pem: bytes) -> bytes:
    """SHA-256 of the certificate's DER form: 32 bytes."""
    return hashlib.sha256(to_der(certificate_pem)).digest()


def to_der(certificate_pem: bytes) -> bytes:
    """DER of exactly one PEM certificate."""
    try:
        text = certificate_pem.decode("ascii").strip()
        if len(text) > PEM_LIMIT or text.count("-----BEGIN") != 1:
            raise ValueError
        return ssl.PEM_cert_to_DER_cert(text)
    except ValueError:
        raise DamagedError("this is not one certificate in PEM form") from None


@dataclass(frozen=True, slots=True)
class ServerContexts:
    """The listener's two faces: members need a certificate of the CA; while a token is out, a host without one gets
    as far as the join service (a certificate that is shown must be valid in both)."""

    members: ssl.SSLContext
    joining: ssl.SSLContext


def server_contexts(files: TlsFiles) -> ServerContexts:
    """For the listener of this host."""
    return ServerContexts(_context(files, ssl.PROTOCOL_TLS_SERVER, ssl.CERT_REQUIRED),
                          _context(files, ssl.PROTOCOL_TLS_SERVER, ssl.CERT_OPTIONAL))


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """For connections of this host to members. The name is compared by `client.connect` after the handshake."""
    return _context(files, ssl.PROTOCOL_TLS_CLIENT, ssl.CERT_REQUIRED)


def check_name(files: TlsFiles, host: str) -> None:
    """PreconditionError unless the certificate of this host has this name, whatever the clock says."""
    der = to_der(read_private(files.host_crt))
    at = der.rfind(_COMMON_NAME) + len(_COMMON_NAME)  # the issuer's stands before
    name = der[at + 2:at + 2 + der[at + 1]].decode("ascii", "replace") if len(_COMMON_NAME) <= at < len(der) - 2 else ""
    if name != host:
        raise PreconditionError(
            f"this host is called {host!r}, its certificate in {files.directory} is that of {name[:63]!r}",
            "give the host its old name again (hostname NAME); or, if /mars and certificates are those of another "
            "host, move both away and join the cluster under the own name")


def join_context(ca_pem: bytes | None) -> ssl.SSLContext:
    """For a host that is no member yet. Without a CA nothing is verified: only to be told which CA it is."""
    context = _bare(ssl.PROTOCOL_TLS_CLIENT)
    if ca_pem is None:
        context.verify_mode = ssl.CERT_NONE
    else:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=to_der(ca_pem))
    return context


def _bare(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_TICKET
    context.check_hostname = False
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    return context


def _context(files: TlsFiles, protocol: int, verify: ssl.VerifyMode) -> ssl.SSLContext:
    ca_crt = read_private(files.ca_crt)
    read_private(files.host_key)  # checks who could have read it
    context = _bare(protocol)
    context.verify_mode = verify
    try:
        context.load_verify_locations(cadata=to_der(ca_crt))
        context.load_cert_chain(files.host_crt, files.host_key)
    except (ssl.SSLError, FileNotFoundError) as error:
        raise DamagedError(f"certificates in {files.directory} cannot be used: {error}",
                           "restore that directory from a backup, or leave and join the cluster again") from None
    return context


def _check_host(host: str) -> None:
    if not is_host_name(host):
        raise DamagedError(f"not a host name: {host[:80]!r}")


def _make_directory(path: str) -> None:
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    try:
        os.mkdir(path, 0o700)
        durable.sync_dir(os.path.dirname(path))
    except FileExistsError:
        facts = os.lstat(path)
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid not in (0, os.geteuid()):
            raise PermissionDeniedError(f"{path} is not a directory of root", f"move {path} away") from None
        os.chmod(path, 0o700)


class _WorkDir:
    """A private directory beside the certificates, gone at the end, in which `openssl` works."""

    def __init__(self, files: TlsFiles, host: str) -> None:
        _make_directory(files.directory)
        self._directory = tempfile.TemporaryDirectory(prefix=".work-", dir=files.directory)
        self._root = self._directory.name
        self.write("config", _CONFIG.format(work=self._root, host=host).encode())
        self.write("index", b"")
        # 159 random bits: positive, and never the same for two certificates of one CA.
        self.write("serial", f"{int.from_bytes(os.urandom(20)) >> 1 | 1:040X}\n".encode())

    def __enter__(self) -> _WorkDir:
        return self

    def __exit__(self, *_: object) -> None:
        self._directory.cleanup()

    def path(self, name: str) -> str:
        return os.path.join(self._root, name)

    def write(self, name: str, content: bytes) -> None:
        fd = os.open(self.path(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(content)

    def read(self, name: str) -> bytes:
        with open(self.path(name), "rb") as file:
            return file.read()

    def make_key(self, name: str) -> None:
        self._openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256",
                      "-pkeyopt", "ec_param_enc:named_curve", "-out", self.path(name))

    def make_request(self, key: str, request: str, name: str) -> None:
        self._openssl("req", "-new", "-sha256", "-config", self.path("config"), "-key", self.path(key),
                      "-subj", f"/CN={name}", "-out", self.path(request))

    def by_ca(self) -> list[str]:
        return ["-cert", self.path("ca.crt"), "-keyfile", self.path("ca.key")]

    def sign(self, request: str, certificate: str, name: str, extensions: str, issuer: list[str]) -> None:
        now = datetime.datetime.now(datetime.UTC)
        begin = now - datetime.timedelta(days=1)
        end = now + datetime.timedelta(days=365 * YEARS)
        self._openssl("ca", "-batch", "-notext", "-utf8", "-config", self.path("config"), "-subj", f"/CN={name}",
                      "-extensions", extensions, "-startdate", f"{begin:%Y%m%d%H%M%SZ}",
                      "-enddate", f"{end:%Y%m%d%H%M%SZ}", "-in", self.path(request),
                      "-out", self.path(certificate), *issuer)
        # A request whose own signature is bad makes `openssl ca` end well, without a certificate.
        if not os.path.exists(self.path(certificate)) or not os.path.getsize(self.path(certificate)):
            raise DamagedError("the certificate request is not signed by its own key: `openssl ca` did not accept it")

    def _openssl(self, *arguments: str) -> None:
        program = shutil.which("openssl")
        if program is None:
            raise MarsError("the program `openssl` is not installed", "apt-get install openssl")
        try:
            done = subprocess.run([program, *arguments], stdin=subprocess.DEVNULL, capture_output=True,
                                  check=False, timeout=60, umask=0o077, cwd=self._root,
                                  env={"PATH": os.environ.get("PATH", os.defpath), "HOME": self._root, "LC_ALL": "C"})
        except subprocess.TimeoutExpired:
            raise MarsError(f"`openssl {arguments[0]}` did not end within 60 s") from None
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise MarsError(f"`openssl {arguments[0]}` failed: {' / '.join(said[-3:])[:400]}")
