"""What this host does about a full /mars: its level, the ballast, and the primaries that go without log (rules 27, 28;
tables in `space`).

`Watch` looks once a second, and publishes the level. `follow` is one step of a primary's runner: into emergency mode,
out of it, or see that it could be entered. All of it comes and goes by itself, and each step is said.
"""
from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

from marsx.base import messages
from marsx.base.errors import MarsError
from marsx.daemon import drops, space
from marsx.daemon.space import Room
from marsx.tree import paths
from marsx.volume import emergency, gap

if TYPE_CHECKING:
    from marsx.daemon.producer import Producer
    from marsx.daemon.resource import Runner
    from marsx.daemon.site import Site

LOG = messages.get("daemon.emergency")
GIB = 1 << 30
RETRY_S, LOOK_S = 2.0, 0.5
AGAIN_S = 0.1  # in which a log that found no room looks again
RESERVE_MOST = 64 << 20
BALLAST_LEAST, BALLAST_MOST, BALLAST_SHARE, BALLAST_INODES = 1 << 20, 64 << 20, 256, 32


def room_of(path: str) -> Room:
    """Of the file system there."""
    stat = os.statvfs(path)
    return Room(stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize)


def thresholds(site: Site, total: int) -> tuple[int, ...]:
    """Of this host's settings."""
    settings = site.settings
    return space.thresholds(total, [settings.get(f"required_free_space_{level}_gb") for level in space.LEVELS],
                            [settings.get(f"required_free_space_{level}_percent") for level in space.LEVELS])


def reserve(site: Site) -> int:
    """What logs leave free on /mars: half of the last limit."""
    return min(RESERVE_MOST, thresholds(site, room_of(site.store.root).total)[-1] // 2)


def low_room(site: Site) -> int:
    """Below so much free space on /mars, level 1 begins."""
    return thresholds(site, room_of(site.store.root).total)[0]


class Watch:
    """The level of this host, once a second."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._ballast = Ballast(os.path.join(site.store.root, paths.local_dir(site.host)))

    def look(self) -> list[tuple[str, str]]:
        """Facts about free space (facts 1.2, 6.2): GiB after the limits, and the level."""
        site = self._site
        room = room_of(site.store.root)
        below = thresholds(site, room.total)
        level = space.next_level(site.level, room.free, below, bool(site.settings.get("mars_reset_emergency")))
        if level != site.level:
            LOG.info("/mars: emergency level %d, %d MiB are free", level, room.free >> 20)
        if level or site.level:
            site.level = level
            site.loop.call_soon(site.kick)
        due = space.measures(level, "secondary")
        if "free-ballast" in due or site.store.problems:
            self._ballast.free()
        elif "restore-ballast" in due:
            self._ballast.restore(room, below[0])
        left, host = space.rest(room, below), site.host
        return [(paths.host_actual(host, "rest-space"), str(left.free // GIB)),
                (paths.host_actual(host, "total-space"), str(left.total // GIB)),
                (paths.host_actual(host, "emergency"), str(level))]


class Ballast:
    """Space and inodes that are given up for the tree when nothing else is left (rule 28)."""

    def __init__(self, directory: str) -> None:
        self._directory = os.path.join(directory, "ballast")
        self._path = os.path.join(self._directory, "space")
        self._is_there: bool | None = None

    def free(self) -> None:
        """Give all of it up."""
        if self._is_there is not False:
            for path in self._paths():
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            self._is_there = False

    def restore(self, room: Room, limit: int) -> None:
        """Take it again, if that leaves more than `limit`; without room there is none."""
        size = min(BALLAST_MOST, max(BALLAST_LEAST, room.total // BALLAST_SHARE)) // 4096 * 4096
        if self._is_there or room.free - size < limit:
            return
        try:
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            for path in self._paths():
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                try:
                    if path == self._path and os.fstat(fd).st_size < size:
                        os.posix_fallocate(fd, 0, size)
                finally:
                    os.close(fd)
            self._is_there = True
        except OSError:
            self._is_there = None
            self.free()

    def _paths(self) -> list[str]:
        return [self._path, *(os.path.join(self._directory, f"inode-{number}") for number in range(BALLAST_INODES))]


async def follow(runner: Runner) -> bool:
    """A step of a primary's runner, in its turn. True: something has changed."""
    site, producer = runner.site, runner.producer
    assert producer is not None
    volume = producer.primary.volume
    if volume is None or not producer.device:
        return False
    state, had, now = volume.state, producer.lacks_room, site.loop.time()
    if now < producer.look_at and (had or not state["stalled_ns"]):
        return False
    producer.look_at = now + LOOK_S
    room = room_of(site.store.root)
    percent = site.view().emergency_limit(runner.resource, site.host)
    level = space.level_now(room.free, thresholds(site, room.total))
    resume = bool(site.settings.get("logger_resume"))
    wants = space.wants_emergency(had, site.level, level, room, percent, resume=resume,
                                  stalled=bool(state["stalled_ns"]))
    producer.lacks_room = wants
    if state["failed"]:
        return False
    try:
        if wants and not state["direct"]:
            await site.blocking(emergency.easy_drain, producer.primary)     # its own logs need room too
            site.forget_view()
            if await drops.one(runner, space.LEVELS[-1] if state["stalled_ns"] else max(site.level, level)):
                producer.lacks_room, producer.look_at = had, 0.0
                await asyncio.sleep(AGAIN_S)
                return True
            return await _enter(runner, producer)
        if not wants and state["direct"]:
            return await _leave(runner, producer)
        if site.level:
            volume.kick()  # logs that only the own write-back needs should not be there
        if not wants and not state["direct"]:
            await _prepare(runner, producer)
    except (MarsError, OSError) as err:
        site.say(runner.resource, "err-emergency", f"{err}")
        runner.later(RETRY_S)
        return False
    _tell(runner, producer)
    return False


async def _enter(runner: Runner, producer: Producer) -> bool:
    _say_facts(runner, wants=True, direct=False)
    producer.prepared = 0  # also a try that fails may have used something up
    end = await runner.site.blocking(emergency.enter, producer.primary)
    LOG.info("%s: emergency mode: the log ends at %s, writes go past it", runner.resource, end)
    producer.begun()
    _tell(runner, producer)
    return True


async def _leave(runner: Runner, producer: Producer) -> bool:
    await runner.site.blocking(emergency.leave, producer.primary)
    producer.prepared = producer.env.device_size
    header = producer.primary.header
    LOG.info("%s: emergency mode has ended, %s goes on", runner.resource, header.name if header else "the log")
    producer.begun()
    _tell(runner, producer)
    return True


async def _prepare(runner: Runner, producer: Producer) -> None:
    """Map and gap log are there whenever the log is written; maps that nobody needs any more go."""
    env, view = producer.env, runner.site.view()
    needed = min((view.first_needed(runner.resource, host) for host in view.members(runner.resource)), default=0)
    gap.drop_old(env.directory, needed + 1)
    if drops.forget_old(env.directory, view, runner.resource):
        runner.site.say(runner.resource, "wrn-log-dropped", "")
    if producer.prepared != env.device_size:
        await runner.site.blocking(emergency.prepare, producer.primary)
        producer.prepared = env.device_size


def _tell(runner: Runner, producer: Producer) -> None:
    """Facts and messages as they are now."""
    volume, site = producer.primary.volume, runner.site
    assert volume is not None
    direct = volume.is_direct
    _say_facts(runner, wants=producer.lacks_room, direct=direct)
    text = ""
    if direct:
        changed = volume.counters["map_bytes"] >> 10
        text = (f"EMERGENCY MODE: /mars is full, no log is written; {changed} KiB of regions changed meanwhile. "
                "Nothing is lost here, the other members fall behind. Make room in /mars: it ends by itself")
        if not site.level and not site.settings.get("logger_resume"):
            text += " once logger_resume is 1"
    site.say(runner.resource, "err-emergency", text)
    low = f"/mars is getting full (level {site.level} of 4): marsadm log-delete-all, or a larger file system"
    site.say(runner.resource, "wrn-space-low", low if site.level and not direct else "")


def _say_facts(runner: Runner, *, wants: bool, direct: bool) -> None:
    host, store = runner.site.host, runner.site.store
    items = [(paths.actual(runner.resource, host, "has-emergency"), str(int(wants))),
             (paths.actual(runner.resource, host, "is-emergency"), str(int(direct)))]
    store.put_many([(rel, value) for rel, value in items if store.get(rel) != value])


def forget(runner: Runner) -> None:
    """This host is no longer primary of the resource."""
    _say_facts(runner, wants=False, direct=False)
    for key in ("err-emergency", "wrn-space-low"):
        runner.site.say(runner.resource, key, "")
