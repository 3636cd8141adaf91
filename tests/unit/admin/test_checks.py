"""The looks at host and device, on real files and a real loop device."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from marsx.admin import checks
from marsx.base.errors import MarsError, NotFoundError, PermissionDeniedError, PreconditionError, UsageError

IP = """1: lo    inet 127.0.0.1/8 scope host lo\\       valid_lft forever
2: eth1    inet 10.1.2.3/24 brd 10.1.2.255 scope global eth1\\       valid_lft forever
3: eth0    inet 10.9.9.9/24 scope global eth0\\       valid_lft forever
"""


def test_own_address_is_the_first_that_is_not_the_loopback() -> None:
    """In the order of `ip addr`; none is an error that names the option."""
    assert checks.own_address(IP) == "10.1.2.3"
    with pytest.raises(PreconditionError) as caught:
        checks.own_address(IP.splitlines()[0])
    assert "--ip" in caught.value.hint


@pytest.mark.parametrize("text", ["10.0.0", "10.0.0.256", "::1", "host", "10.0.0.1; rm", ""])
def test_no_addresses(text: str) -> None:
    """IPv4 only, dotted."""
    with pytest.raises(UsageError):
        checks.address(text)


def test_host_name(tmp_path: Path) -> None:
    """No dots, and the same after a reboot, where /etc/hostname is that of this host."""
    file = tmp_path / "hostname"
    file.write_text("# comment\nalpha\n")
    assert checks.host_name("alpha", file, True) == "alpha"
    assert checks.host_name("beta", file, False) == "beta"
    assert checks.host_name("beta", tmp_path / "missing", True) == "beta"
    with pytest.raises(PreconditionError, match="'alpha' but the running host name"):
        checks.host_name("beta", file, True)
    with pytest.raises(PreconditionError, match="dots"):
        checks.host_name("alpha.example.org", file, True)
    with pytest.raises(PreconditionError, match="cannot be used"):
        checks.host_name("localhost", file, False)


def test_mars_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing, a file, not writable: each its own status."""
    checks.require_mars_dir(tmp_path)
    with pytest.raises(PreconditionError):
        checks.require_mars_dir(tmp_path / "missing")
    monkeypatch.setattr(os, "access", lambda *args: False)
    with pytest.raises(PermissionDeniedError, match="not writable"):
        checks.require_mars_dir(tmp_path)


@pytest.mark.parametrize(
    ("path", "error", "text"),
    [
        ("relative", UsageError, "not an absolute path"),
        ("/dev/mars-does-not-exist", NotFoundError, "does not exist"),
        ("/dev/null", PreconditionError, "not a block device"),
        ("/etc", PreconditionError, "not a block device"),
    ],
)
def test_no_devices(path: str, error: type[MarsError], text: str) -> None:
    """What cannot be a resource's device, before anything is opened."""
    with pytest.raises(error, match=text):
        checks.block_device(path, {})


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[str]:
    """A loop device of 1 MiB."""
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        pytest.skip("needs root and loop devices")
    file = tmp_path / "disk"
    file.write_bytes(bytes(1 << 20))
    done = subprocess.run(["losetup", "-f", "--show", str(file)], capture_output=True, text=True, check=True)
    device = done.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


@pytest.mark.root
def test_a_free_device(loop: str, tmp_path: Path) -> None:
    """Its size, also through a symlink; not if a resource has it already, under whatever name."""
    link = tmp_path / "link"
    link.symlink_to(loop)
    assert checks.block_device(loop, {}) == checks.block_device(str(link), {}) == 1 << 20
    with pytest.raises(PreconditionError, match="already belongs to resource data"):
        checks.block_device(loop, {str(link): "data"})


@pytest.mark.root
def test_a_device_in_use(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held exclusively by somebody: refused, named; and so when nobody is seen who holds it."""
    monkeypatch.setattr(checks, "UDEV_PATIENCE_S", 0)
    fd = os.open(loop, os.O_RDWR | os.O_EXCL)
    try:
        with pytest.raises(PreconditionError, match="in use"):
            checks.block_device(loop, {})
        monkeypatch.setattr(checks.disk, "who_uses", lambda path: [])
        with pytest.raises(PreconditionError, match="in use"):
            checks.block_device(loop, {})
    finally:
        os.close(fd)


def test_who_looks_for_a_moment_does_not_count(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """udev opens each new device for an instant: processes are looked for twice, mounts are not."""
    monkeypatch.setattr(checks.time, "sleep", lambda seconds: None)
    answers = [["open in process 7 (udevd)"], []]
    monkeypatch.setattr(checks.disk, "who_uses", lambda path: answers.pop(0))
    assert checks.block_device(loop, {}) == 1 << 20 and answers == []
    answers = [["mounted on /x"], []]
    with pytest.raises(PreconditionError, match="mounted on /x"):
        checks.block_device(loop, {})


@pytest.mark.parametrize(
    ("device", "wanted", "least", "size"),
    [(1 << 20, None, 0, 1 << 20), ((1 << 20) + 5, None, 0, 1 << 20), (1 << 30, 1 << 20, 0, 1 << 20)],
)
def test_sizes_that_fit(device: int, wanted: int | None, least: int, size: int) -> None:
    """All of it in whole blocks, or what is wanted."""
    assert checks.fits("/dev/x", device, wanted, least) == size


@pytest.mark.parametrize(("device", "wanted"), [(1 << 20, 2 << 20), (65536, None), (4096, None), (0, None)])
def test_sizes_that_do_not_fit(device: int, wanted: int | None) -> None:
    """Too small is said with both numbers."""
    with pytest.raises(PreconditionError, match="too small"):
        checks.fits("/dev/x", device, wanted)
