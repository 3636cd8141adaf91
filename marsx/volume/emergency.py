"""A primary that goes without log while /mars is full, and back (rule 27). The order is the whole of it:

    enter   write back what can be without holding anybody up -> nothing is accepted any more -> the log is frozen,
            durable, all of it on the data device -> disk position = its end, durable -> the map is open, durable ->
            the gap log is there, durable -> writes go past the log, first those that had been accepted
    leave   the next gap is prepared, durable -> no direct write is under way, the data device is flushed -> the map is
            closed, durable -> the log goes on

So a log that is written can always be left, however full /mars is (invariant of `gap`). Until `enter` has come to its
end nothing has gone past the log, and before the gap log is there everything can be taken back. After a crash the
newest log tells what holds: an empty gap log with an open map means that writes may have gone past the log, and may
again (`resume`).
"""
from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from marsx.base.errors import DamagedError, MarsError, PreconditionError
from marsx.base.position import LogPos
from marsx.log import record
from marsx.log.record import FileHeader
from marsx.volume import gap
from marsx.volume.env import announce

if TYPE_CHECKING:
    from marsx.volume.primary import Primary
    from marsx.volume.recovery import Recovered

EASY_DRAIN_S, STALLED_DRAIN_S = 30.0, 3.0  # of write-back before anybody is held up
EASY_STEP_S, EASY_REST = 0.2, 4 << 20
DRAIN_S = 600.0


def enter(primary: Primary) -> LogPos:
    """Returns the end of the log. Blocks. MarsError, OSError: it did not come about, and the log goes on as it was."""
    volume = primary.volume
    assert volume is not None and primary.header is not None
    if not gap.is_ready(primary.env.directory, primary.env.device_size):
        prepare(primary)
    easy_drain(primary)
    with primary.rotate_lock:
        volume.hold()
        try:
            end, digest = primary.freeze()
            _all_on_disk(primary, end, digest)
            changed = gap.put_to_use(primary.env.directory, end.nr + gap.STEP)
            header = _header(primary, end, digest, changed.header.map_id)
        except BaseException:
            volume.give_up()
            volume.thaw()
            raise
        _begin(primary, header, changed)
    primary.publish()
    return end


def prepare(primary: Primary, size: int = 0) -> None:
    """See that emergency mode can be entered, with a device of `size` bytes (0: as it is). Blocks. PreconditionError:
    that cannot be done, for want of room mostly."""
    env = primary.env
    try:
        gap.prepare(env.directory, env.resource, size or env.device_size)
    except OSError as err:
        raise PreconditionError(f"emergency mode cannot be prepared ({err.strerror}): writers wait when /mars is full",
                                "make room in /mars") from err


def easy_drain(primary: Primary) -> None:
    """What is durable in the log goes to the data device while writers go on, so that they are held up for the rest
    only; not for long when they wait for room already. Blocks."""
    volume = primary.volume
    assert volume is not None
    end = time.monotonic() + EASY_DRAIN_S
    while time.monotonic() < end and not primary.drain(EASY_STEP_S, durable_only=True):
        state = volume.state
        if state["failed"] or state["settled_rest"] <= EASY_REST:
            return
        if state["stalled_ns"]:
            end = min(end, state["stalled_ns"] / 1e9 + STALLED_DRAIN_S)


def _all_on_disk(primary: Primary, end: LogPos, digest: str) -> None:
    """The disk position is the log's end, durably."""
    if not primary.drain(DRAIN_S, durable_only=True):
        raise MarsError(primary.error or "write-back did not come to an end", "see the messages of the kernel")
    primary.env.facts.replayed(end, digest)
    if not announce(primary.env, end, 0, primary.pause):
        raise MarsError("the volume is being stopped")


def _header(primary: Primary, end: LogPos, digest: str, map_id: bytes) -> FileHeader:
    env = primary.env
    return FileHeader(nr=end.nr + gap.STEP, producer=env.host, resource=env.resource, uuid=env.uuid,
                      log_id=record.new_log_id(), device_size=env.device_size, block_size=env.block_size,
                      lamport_ns=env.stamp(), real_ns=time.time_ns(), pred=end, pred_digest=digest, gap_id=map_id)


def _begin(primary: Primary, header: FileHeader, changed: gap.Map) -> None:
    """The gap log's name decides: before it the log goes on, from then on it is the next one whatever happens."""
    env, volume = primary.env, primary.volume
    assert volume is not None
    path = os.path.join(env.directory, header.name)
    try:
        fd = gap.make_log(env.directory, header)
    except BaseException:
        if not os.path.lexists(path):
            volume.give_up()
            volume.thaw()
            gap.give_back(env.directory, changed)
        else:
            primary.fail(f"{header.name} was made but is not known to be durable: "
                         "writers wait until marsd is restarted")
        raise
    map_fd = gap.open_for_bits(changed.path)
    primary.take_log(fd, header, map_fd)
    allocated = os.fstat(fd).st_size // record.BLOCK * record.BLOCK
    try:
        volume.enter(fd, header.pack(), allocated, map_fd, changed.header.shift, changed.sectors)
    except BaseException as err:
        primary.fail(f"emergency mode could not begin behind {header.name}: {err}; "
                     "writers wait until marsd is restarted")
        raise
    primary.changed = changed


def is_in_between(last: Recovered, directory: str) -> gap.Map | None:
    """The map, if this newest log is an empty gap log whose map is still open."""
    if last.header.gap_id == record.NO_ID or last.end:
        return None
    found = gap.find(directory, last.header)
    return found if found is not None and found.header.state == gap.OPEN else None


def resume(primary: Primary, last: Recovered, changed: gap.Map) -> None:
    """After a crash: past the log from the beginning, into the same map. Before any device thread."""
    volume = primary.volume
    assert volume is not None
    fd, header = last.fd, last.header
    map_fd = gap.open_for_bits(changed.path)
    primary.take_log(fd, header, map_fd)
    volume.start(fd, header.pack(), os.fstat(fd).st_size // record.BLOCK * record.BLOCK)
    try:
        volume.resume(map_fd, changed.header.shift, changed.sectors)
    except ValueError as err:
        raise DamagedError(f"{header.name} leaves a gap, and {err}", "invalidate this replica") from err
    primary.changed = changed
    primary.publish()


def leave(primary: Primary, *, to_go_on: bool = True) -> None:
    """Blocks. to_go_on: False when the log ends right behind. MarsError, OSError: writes go past the log still."""
    volume, changed = primary.volume, primary.changed
    assert volume is not None and primary.header is not None and changed is not None
    with primary.rotate_lock:
        if to_go_on:
            prepare(primary)
        volume.hold_direct()
        try:
            gap.close(changed.path)
            primary.env.facts.replayed(primary.header.start, primary.header.digest0)
        except BaseException:
            volume.release_direct()
            raise
        primary.changed = None
        volume.leave()
    primary.publish()
