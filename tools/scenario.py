"""What an operator does with hosts, step by step, and how far a replica is: shared by the demo and the cluster tests.

Progress is read from the hosts' trees alone (`replay-H`, `version-*-H`, `syncstatus-H`, `size`), with a parser of its
own, so that a mistake in the product's reader cannot hide itself.
"""

import re
import time
from dataclasses import dataclass

from tools import loops
from tools.hosts import Cluster, Host, HostError

REPLAY = re.compile(r"log-(\d{9,})-([^,/]+),(\d+),(\d+)$")
SYNCPOS = re.compile(r"log-(\d{9,})-([^,/]+),(\d+),")
VERSION = re.compile(r"([0-9a-f]{32}),log-(\d{9,})-([^,/]+),(\d+):(?:([0-9a-f]{32}),log-(\d{9,})-([^,/]+),(\d+))?")


@dataclass(frozen=True)
class Replay:
    """Value of a `replay-H` link: all before `pos` of log `nr` is on the disk, `dirty` bytes behind it may be."""

    nr: int
    producer: str
    pos: int
    dirty: int

    @classmethod
    def of(cls, host: Host, resource: str) -> "Replay | None":
        """As the host itself says it."""
        found = REPLAY.match(host.link(f"resource-{resource}/replay-{host.name}"))
        return cls(int(found[1]), found[2], int(found[3]), int(found[4])) if found else None


@dataclass(frozen=True)
class Version:
    """Value of a `version-N-H` link: the end of log `nr` and of its predecessor, with digests."""

    digest: str
    nr: int
    producer: str
    pos: int
    before_nr: int
    before_pos: int

    @classmethod
    def newest(cls, host: Host, resource: str) -> "Version | None":
        """The host's own link with the highest log number."""
        return cls.newest_of(host, resource, host.name)

    @classmethod
    def newest_of(cls, host: Host, resource: str, speaker: str) -> "Version | None":
        """As `host` knows it, the newest link in which `speaker` says how far he is."""
        folder = host.links(f"resource-{resource}", "version-")
        mine = [name for name in folder if name.endswith(f"-{speaker}")]
        name = max(mine, key=lambda one: int(one.split("-")[1]), default="")
        found = VERSION.match(folder[name]) if name else None
        if not found:
            return None
        return cls(found[1], int(found[2]), found[3], int(found[4]), int(found[6] or 0), int(found[8] or 0))

    def reached_by(self, replay: Replay | None) -> bool:
        """Whether a disk at `replay` holds everything up to here; (N, end) and (N+1, 0) are the same place."""
        if replay is None or replay.dirty:
            return False
        place = (replay.nr, replay.pos)
        return place == (self.nr, self.pos) or (self.pos == 0 and place == (self.before_nr, self.before_pos))


def size(host: Host, resource: str) -> int:
    """Size of the resource as the host's tree has it (0 = not known)."""
    return int(host.link(f"resource-{resource}/size") or 0)


def synced(host: Host, resource: str) -> int:
    """Bytes of the full sync that are done on this host."""
    return int(host.link(f"resource-{resource}/syncstatus-{host.name}") or 0)


def fully_synced(host: Host, resource: str) -> bool:
    """Whether the full sync of this host is over, and replay has passed its end (rule 14)."""
    bound, replay = SYNCPOS.match(host.link(f"resource-{resource}/syncpos-{host.name}")), Replay.of(host, resource)
    passed = not bound or (replay is not None and (replay.nr, replay.pos) >= (int(bound[1]), int(bound[3])))
    return passed and 0 < size(host, resource) <= synced(host, resource)


def backlog(primary: Host, secondary: Host, resource: str) -> tuple[int, int]:
    """(replayed, known) bytes of all logs since the secondary's current one; equal when it has everything."""
    newest, replay = Version.newest(primary, resource), Replay.of(secondary, resource)
    if newest is None or replay is None:
        return 0, 0
    known = newest.pos
    for number in range(replay.nr, newest.nr):
        found = VERSION.match(primary.link(f"resource-{resource}/version-{number:09d}-{primary.name}"))
        known += int(found[4]) if found else 0
    return replay.pos, known


def caught_up(primary: Host, secondary: Host, resource: str) -> bool:
    """Whether the secondary is synced and has replayed all that the primary has published."""
    newest = Version.newest(primary, resource)
    reached = newest is not None and newest.reached_by(Replay.of(secondary, resource))
    return reached and fully_synced(secondary, resource)


def published(host: Host, resource: str) -> bool:
    """Whether the tree tells of all that a primary has accepted up to now.

    It does so only some time later, so the worker is asked where its log ends; nothing but the moment to compare rests
    on its answer. A host that is not primary has published everything.
    """
    state = host.status().get(resource, {}).get("state")
    newest = Version.newest(host, resource)
    return not state or (newest is not None and (newest.nr, newest.pos) == (state["nr"], state["appended"]))


def settled(host: Host, resource: str) -> bool:
    """Whether a primary has published and written back everything: its disk is at the end of its newest log."""
    newest = Version.newest(host, resource)
    return published(host, resource) and newest is not None and newest.reached_by(Replay.of(host, resource))


def form_cluster(cluster: Cluster) -> None:
    """Every host becomes a member, the first creates; all daemons run."""
    first, *others = list(cluster)
    first.run(f"marsadm create-cluster --ip={first.ip}")
    first.marsd_start()
    for host in others:
        join_cluster(first, host)


def new_token(host: Host) -> str:
    """A join token; by contract the only line on standard output."""
    lines = host.run("marsadm create-token").stdout.splitlines()
    if len(lines) != 1 or not lines[0].strip():
        raise HostError(f"create-token must print one line, printed {len(lines)}")
    return lines[0].strip()


def join_cluster(member: Host, host: Host) -> None:
    """`host` joins by a token of `member` and starts its daemon."""
    host.run(["marsadm", "join-cluster", member.name, f"--ip={host.ip}", f"--ip-{member.name}={member.ip}",
              f"--token={new_token(member)}"])
    host.marsd_start()


def create_resource(host: Host, resource: str, device: str | None = None) -> str:
    """Create a resource; returns its device when that is there."""
    host.run(["marsadm", "create-resource", resource, device or host.data_device])
    return wait_device(host, resource)


def wait_device(host: Host, resource: str) -> str:
    """Wait for a /dev/mars/RESOURCE that answers a read (a link that a killed daemon left does not)."""
    device = f"/dev/mars/{resource}"
    probe = ["dd", f"if={device}", "of=/dev/null", "bs=4096", "count=1", "iflag=direct"]

    def serves() -> bool:
        return resource in host.devices() and host.run(probe, check=False).returncode == 0

    host.wait(serves, what=f"{device} to answer")
    return device


def join_resource(host: Host, resource: str, device: str | None = None) -> None:
    """Join a resource as soon as the host knows it."""
    host.wait(lambda: size(host, resource), what=f"the entries of resource {resource}")
    host.run(["marsadm", "join-resource", resource, device or host.data_device])


def make_file_system(host: Host, resource: str, kind: str, folder: str = "/mnt") -> None:
    """mkfs and mount."""
    host.run(["mkfs.xfs", "-q", "-f", f"/dev/mars/{resource}"] if kind == "xfs"
             else ["mkfs.ext4", "-q", "-F", f"/dev/mars/{resource}"])
    host.run(["mount", "-t", kind, f"/dev/mars/{resource}", folder])


def hand_over(old: Host, new: Host, resource: str) -> None:
    """The planned way: `primary` on the new host as soon as it is consistent, nothing forced."""
    new.run(["marsadm", "wait-resource", resource, "is-consistent"], timeout=300)
    new.run(["marsadm", "primary", resource], timeout=300)
    wait_device(new, resource)
    old.wait(lambda: resource not in old.devices(), what=f"/dev/mars/{resource} to vanish on the old primary")


def wait_caught_up(primary: Host, secondary: Host, resource: str, timeout: float = 90) -> None:
    """Wait until the secondary has everything that the primary has; writers must be quiet."""
    secondary.wait(lambda: published(primary, resource) and caught_up(primary, secondary, resource), timeout,
                   f"{secondary.name} to hold everything of {resource} on {primary.name}")


def wait_equal(primary: Host, secondary: Host, resource: str, timeout: float = 90) -> None:
    """Wait until both data devices hold the same bytes; writers must be quiet.

    The positions only say when a comparison is worth while.
    """
    end, at = time.monotonic() + timeout, -1
    while time.monotonic() < end:
        if caught_up(primary, secondary, resource) and settled(primary, resource):
            differs = loops.first_difference(primary.data.file, secondary.data.file)
            if differs is None:
                return
            at = differs
        time.sleep(0.3)
    seen = f"first different byte at {at}" if at >= 0 else "the positions never became equal"
    raise HostError(f"data devices of {primary.name} and {secondary.name} are not equal after {timeout:.0f} s: {seen}\n"
                    f"{primary.cluster.dump()}")
