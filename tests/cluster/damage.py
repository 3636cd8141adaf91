"""What tests of damaged logs do with a host: look at its logs, spoil them, set it back."""

import os
from pathlib import Path

from tools import scenario
from tools.hosts import MIB, Host

WRITE = "dd if=/dev/urandom of=/dev/mars/data bs=64k count=16 conv=fsync,notrunc status=none"


def kill(host: Host) -> None:
    """Both processes of the daemon die at once."""
    host.kill9_keeper()
    host.wait(lambda: host.pids() == {}, what="the end of both processes")


def contents(host: Host) -> bytes:
    """The first bytes of the data device."""
    return host.read_bytes(host.data_device, 0, MIB)


def logs(host: Host) -> list[str]:
    """The log files of the host."""
    return sorted(path.name for path in host.path("/mars/resource-data").glob("log-*"))


def log_file(host: Host, number: int = -1) -> Path:
    """One of the host's log files, the newest first."""
    return host.path(f"/mars/resource-data/{logs(host)[number]}")


def rewind(host: Host) -> None:
    """The disk position of a host without marsd goes back to the beginning of its oldest log: replaying again what is
    there already changes nothing."""
    link = host.path(f"/mars/resource-data/replay-{host.name}")
    link.unlink()
    link.symlink_to(f"{logs(host)[0]},0,0")
    for hint in host.path("/mars").glob("local-*/position-data"):
        hint.unlink()


def rot(path: Path, share: float = 0.5) -> int:
    """Turn one bit over, about at this share of what is written; where."""
    with open(path, "r+b") as file:
        at = 4096 + int((os.fstat(file.fileno()).st_size - 4096) * share) // 4096 * 4096
        file.seek(at)
        while not any(block := file.read(4096)):
            at -= 65536
            file.seek(at)
        file.seek(at + 77)
        file.write(bytes([block[77] ^ 4]))
        os.fsync(file.fileno())
    return at


def spoil_header(path: Path) -> None:
    """The header block is gone."""
    with open(path, "r+b") as file:
        file.write(os.urandom(4096))
        os.fsync(file.fileno())


def messages(host: Host, key: str) -> str:
    """A message of the host about the resource."""
    return host.link(f"resource-data/actual-{host.name}/msg-{key}")


def fetched(primary: Host, secondary: Host) -> bool:
    """Whether the secondary has all that the primary has published."""
    newest = scenario.Version.newest(primary, "data")
    return scenario.published(primary, "data") and newest == scenario.Version.newest(secondary, "data")
