"""What the fault tests do with a host: writes that are flushed, messages, repair and restart, and the final comparison.

A write that was acknowledged before a fault must be there after the repair; one that was not may be there or not.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import write_ledger
from running_writer import RunningWriter

from tools import scenario
from tools.hosts import Host

DEVICE = "/dev/mars/data"
LOG = "/mars/*log-0*"
FLUSHED_WRITE = "import os; fd = os.open('{0}', os.O_WRONLY); os.pwrite(fd, b'{2}' * 4096, {1}); os.fsync(fd)"


def start_flushed_write(host: Host, offset: int, letter: str = "x") -> subprocess.Popen:
    """A write and an fsync of the device, going on beside us; exit status 0 = both were acknowledged."""
    return host.popen(["python3", "-c", FLUSHED_WRITE.format(DEVICE, offset, letter)], stderr=subprocess.DEVNULL)


def flushed_write(host: Host, offset: int, letter: str = "x") -> bool:
    """Whether a write and its flush were acknowledged."""
    return start_flushed_write(host, offset, letter).wait(60) == 0


def messages_of(reader: Host, name: str) -> str:
    """All that the tree of `reader` tells of the resource on the host `name`."""
    return "\n".join(reader.links(f"resource-data/actual-{name}", "msg-err").values())


def messages(host: Host) -> str:
    """All that the tree tells of the resource on this host."""
    return messages_of(host, host.name)


def told(host: Host, words: str) -> None:
    """The trouble is named in the tree and by mars-status."""
    host.wait(lambda: words in messages(host) and words in host.run("mars-status", check=False).stdout, 30,
              f"a message with {words!r} in the tree and from mars-status")


def quiet(host: Host) -> None:
    """No trouble is told any more."""
    host.wait(lambda: not [text for text in messages(host).splitlines() if not text.startswith("OK")], 30,
              "the end of the messages")


def settled(host: Host, read: Callable[[], object]) -> object:
    """A position that has stopped: links are written every logger_report_interval_s, so the last move may still be on
    its way to the tree. Fails when it goes on moving."""
    seen: list[object] = []

    def same() -> bool:
        time.sleep(3)
        seen.append(read())
        return seen[-1:] == seen[-2:-1]

    host.wait(same, 30, "a position to stop moving")
    return seen[-1]


def until_failed(writer: RunningWriter) -> None:
    """All threads of the writer meet an error."""
    writer.host.wait(lambda: all(book.error for book in writer.ledgers()), 60, "an error of every writer")
    assert writer.stop() == 1


def restart(host: Host) -> None:
    """What the messages tell an administrator to do after the repair."""
    host.run("marsd stop")
    host.marsd_start()
    if host.name == "a":
        scenario.wait_device(host, "data")


@contextlib.contextmanager
def paused(writer: RunningWriter) -> Iterator[None]:
    """The writer stands still: write-back does not wait for the end of a burst."""
    os.killpg(writer.child.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(writer.child.pid, signal.SIGCONT)


def nothing_lost(host: Host, writer: RunningWriter) -> int:
    """Everything acknowledged to the writer can be read from the device; how many writes that were."""
    data = host.read_bytes(DEVICE, 0, writer.blocks * write_ledger.BLOCK)
    return write_ledger.check_nothing_lost(data, writer.ledgers())


def fresh_writer(host: Host, top: Path, name: str, **how: int) -> RunningWriter:
    """A writer on zeros, so that its ledger alone says what the blocks may hold."""
    blocks = how.get("blocks", 1024)
    host.run(["blkdiscard", "-z", "-f", "-l", str(blocks * write_ledger.BLOCK), DEVICE])
    return RunningWriter(host, DEVICE, top / name, **{"blocks": 1024, "threads": 2, "pause_us": 500, **how})


def stamp(host: Host, rel: str) -> int:
    """Stamp of an entry of the host's tree, in ns."""
    return os.lstat(host.path(f"/mars/{rel}")).st_mtime_ns
