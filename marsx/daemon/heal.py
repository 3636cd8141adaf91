"""A log that is not whole here is made whole from a member that has it (rule 5).

    Damage (volume.recovery) -> ask all reachable members what they have behind its sound part -> fetch from the one
    that has most, in place, until the own bytes go on or that member has no more -> recovery looks again

Invariants:
    only bytes that contradict the verified chain are written over, and only by bytes that continue it (log id, digest);
        so a crash anywhere in between leaves a log that is sound up to the same place or further, and is healed again
    what is written over lies durably in `.damaged-LOG-POS` beside it first, until recovery has found the log whole
        (zeros for what the disk does not give any more: a bad sector gets a new place when it is written)
    a header that came from others is taken only if the first group here, if there is one, is of that log
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from marsx.base import durable
from marsx.base.errors import DamagedError, MarsError
from marsx.daemon.logcopy import LogCopy
from marsx.daemon.site import Site
from marsx.log import reader, record, writer
from marsx.log.record import BLOCK, NO_DIGEST, FileHeader
from marsx.peer.fetch import Offer, Start, ask, fetch_logs
from marsx.volume.env import Env
from marsx.volume.recovery import Damage

ASK_S = 15.0
PREFIX = ".damaged-"


@dataclass(frozen=True)
class Healed:
    """What was done: `replaced` bytes, from `host`."""

    host: str
    replaced: int


class Patch(LogCopy):
    """The damaged log as what a stream writes to: in place, and nothing behind is cut off. The source has it up to
    POS `end`."""

    def __init__(self, env: Env, damage: Damage, end: int) -> None:
        size = damage.device_size or env.device_size
        super().__init__(env, damage.good, damage.digest or NO_DIGEST, damage.header, damage.group, damage.record, size,
                         lambda at, digest: None)
        self.replaced = 0
        self._end = end
        self._unreadable = damage.unreadable

    def enough(self) -> bool:
        """Nothing more comes from there, or the own bytes go on from here."""
        return self.header is not None and (self.at.pos >= self._end or (self.replaced > 0 and self._goes_on()))

    def _goes_on(self) -> bool:
        assert self.header is not None
        try:
            block = reader.read_block(self._fd, BLOCK + self.at.pos)
        except OSError:
            return False
        if len(block) < BLOCK:
            return False
        return record.group_digest_before(block, self.header, self.at.pos) == self.digest

    def next(self, nr: int, producer: str, end: int, header: bytes) -> None:
        if self.at.pos < self._end:
            raise DamagedError(f"{self.at.log} ends at {end} there, but {self._end} were offered", "ask another member")

    def _open(self) -> None:
        if self._fd < 0:
            assert self.header is not None
            path = os.path.join(self.env.directory, self.header.name)
            self._fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)

    def _create(self, header: FileHeader) -> None:
        path = os.path.join(self.env.directory, header.name)
        if not os.path.lexists(path):
            os.close(writer.create_log(self.env.directory, header))
        self._fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        first, _ = self._here(BLOCK, BLOCK)
        if len(first) == BLOCK and record.names_another(first, header):
            raise DamagedError(f"{path} has groups of another log than the one that others have under this name",
                               "split brain: see mars-status")
        self._replace(header.pack(), 0, path)
        self._move(header.start, header.digest0, header)

    def _append(self, data: memoryview, pos: int) -> None:
        self._replace(data, BLOCK + pos, str(self.at.log))

    def _replace(self, data: bytes | memoryview, offset: int, name: str) -> None:
        """These bytes at this place of the file; what was there before, and is not the same, is kept aside."""
        old, bad = self._here(offset, len(data))
        for start, end in _differing(old, bytes(data), bad):
            if any(old[start:end]):
                aside = os.path.join(self.env.directory, f"{PREFIX}{self.at.log}-{offset + start}")
                durable.write_file(aside, old[start:end])
            durable.overwrite(self._fd, bytes(data[start:end]), offset + start, name)
            self.replaced += end - start

    def _here(self, offset: int, length: int) -> tuple[bytes, set[int]]:
        """What is there (fewer at the end of the file), and which blocks of it the disk does not give: zeros for those.
        One that recovery could not read is among them, whatever the page cache still knows."""
        bad = {self._unreadable - offset} if offset <= self._unreadable < offset + length else set()
        try:
            return os.pread(self._fd, length, offset), bad
        except OSError:
            pass
        found = b""
        for at in range(0, length, BLOCK):
            try:
                found += os.pread(self._fd, BLOCK, offset + at)
            except OSError:
                found += bytes(BLOCK)
                bad.add(at)
        return found, bad

    def _publish(self, force: bool = False, wait: bool = True) -> bool:
        """The version link is moved by recovery, when it has seen the whole."""
        return False


def _differing(old: bytes, new: bytes, bad: Collection[int]) -> Iterator[tuple[int, int]]:
    """Runs of blocks (start, end) in which `new` differs from `old`, which may be shorter; the `bad` ones do."""
    start = -1
    for at in range(0, len(new), BLOCK):
        if at in bad or new[at:at + BLOCK] != old[at:at + BLOCK]:
            start = at if start < 0 else start
        elif start >= 0:
            yield start, at
            start = -1
    if start >= 0:
        yield start, len(new)


async def ask_all(site: Site, resource: str, start: Start, hosts: Iterable[str]) -> dict[str, Offer | str]:
    """What each of these hosts has from `start` on, or why it has nothing."""
    async def one(host: str) -> Offer | str:
        try:
            async with asyncio.timeout(ASK_S):
                link, _ = await site.dial(host, "fetch")
                try:
                    return (await ask(link, resource, start))[0]
                finally:
                    await link.close()
        except TimeoutError:
            return f"{host} does not answer"
        except (MarsError, OSError) as err:
            return str(err)

    names = list(hosts)
    return dict(zip(names, await asyncio.gather(*map(one, names)), strict=True))


def start_of(damage: Damage) -> Start:
    """Where a stream that heals begins."""
    if damage.header is None:
        return Start(damage.nr, damage.producer, 0)
    return Start(damage.nr, damage.producer, damage.pos, damage.header.log_id.hex(), damage.digest)


def candidates(answers: dict[str, Offer | str], damage: Damage) -> list[tuple[str, int]]:
    """(who has some of the damaged log behind its sound part, up to where), those with most first."""
    least = damage.pos if damage.header is not None else -1
    ends = {host: offer.end for host, offer in answers.items() if isinstance(offer, Offer) and offer.end > least}
    return sorted(ends.items(), key=lambda one: (-one[1], one[0]))


def nobody(answers: dict[str, Offer | str], away: Iterable[str]) -> str:
    """Why it cannot be healed now, and what can be done."""
    said = [f"{host} has no more of it" if isinstance(answer, Offer) else answer for host, answer in answers.items()]
    said += [f"{host} cannot be reached" for host in away]
    return (f"no other member can give it back now ({'; '.join(said) or 'there is none'}). It is asked for again by "
            "itself; for good only: primary --force on another member, then invalidate here; or primary --force here, "
            "which gives up what lies behind")


async def heal(site: Site, env: Env, resource: str, damage: Damage, host: str, end: int) -> Healed:
    """Fetch what is missing from `host`, which has it up to `end`. MarsError, OSError when that fails, also when
    nothing comes for `network_io_timeout` although the line is alive."""
    patch = Patch(env, damage, end)
    link, _ = await site.dial(host, "fetch")
    try:
        await fetch_logs(link, resource, patch, executor=site.executor, enough=patch.enough,
                         patience=link.timing.io_timeout)
    finally:
        await link.close()
        await site.blocking(patch.close)
    return Healed(host, patch.replaced)


def forget_damaged(directory: str) -> int:
    """The logs are whole again: what was damaged of them goes. How many pieces."""
    found = [name for name in os.listdir(directory) if name.startswith(PREFIX)]
    for name in found:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(directory, name))
    return len(found)
