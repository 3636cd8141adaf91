"""A worker with one primary, for test_serving: recovers, serves the FUSE descriptors it was given, ends when the
device is gone.

    python -m tests.device.serve_volume DIRECTORY NAME SIZE FD[,FD...] [again]

DIRECTORY/disk is the data device, DIRECTORY/logs holds the logs, DIRECTORY/at the last published disk position,
DIRECTORY/end is written after a proper end. "again": the device outlived another worker.
"""
from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from marsx._ext import marsdev
from marsx.base.position import LogPos
from marsx.volume.env import Env
from marsx.volume.primary import Primary


class Facts:
    """Positions in two small files; renamed into place, so that a kill leaves the old or the new one."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lock = threading.Lock()

    def _put(self, name: str, value: object) -> None:
        with self.lock:
            temp = self.directory / f"{name}.new"
            temp.write_text(json.dumps(value))
            temp.rename(self.directory / name)

    def dirty(self, at: LogPos, length: int) -> None:
        """See env.Facts."""
        self._put("dirty", [str(at), length])

    def replayed(self, at: LogPos, digest: str) -> None:
        """See env.Facts."""
        self._put("at", [str(at), digest])

    def version(self, end: LogPos, digest: str, previous: str) -> None:
        """See env.Facts."""
        self._put("version", [str(end), digest, previous])


def known_durable(directory: Path, nr: int) -> int:
    """What the version link said last."""
    if not (directory / "version").exists():
        return 0
    end = LogPos.parse(json.loads((directory / "version").read_text())[0])
    return end.pos if end.nr == nr else 0


def main(top: str, name: str, size: str, words: str, again: str = "") -> None:
    """Worker."""
    directory, fds = Path(top), [int(word) for word in words.split(",")]
    disk = os.open(directory / "disk", os.O_RDWR | os.O_DIRECT)
    env = Env(str(directory / "logs"), "u-serving", "data", "a", int(size), 512, Facts(directory), time.time_ns,
              window_bytes=8 << 20, ring_bytes=16 << 20, writeback_bytes=1 << 20, writeback_ms=50,
              on_trouble=lambda text: print(text, file=sys.stderr, flush=True))
    primary = Primary(env, disk)
    at, digest = "log-000000001-a,0", ""
    if (directory / "at").exists():
        at, digest = json.loads((directory / "at").read_text())
    primary.open(LogPos.parse(at), digest, lambda nr, producer: known_durable(directory, nr), first=not again,
                 same_device=bool(again))
    frontend = marsdev.Frontend(primary.volume, name)
    if again and not frontend.resend(fds[0]):
        raise SystemExit("this kernel does not send requests again")
    for body in (primary.flusher_body, primary.filler_body, primary.writeback_body):
        threading.Thread(target=body, daemon=True).start()
    threading.Thread(target=frontend.answer_reads, daemon=True).start()
    servers = [threading.Thread(target=frontend.serve, args=(fd,), daemon=True) for fd in fds]
    for server in servers:
        server.start()
    signal.signal(signal.SIGUSR1, lambda *_: primary.rotate())
    while any(server.is_alive() for server in servers):
        time.sleep(0.02)
        if frontend.counters["resent"]:
            (directory / f"resent.{os.getpid()}").write_text(str(frontend.counters["resent"]))
    end, end_digest = primary.end()
    counters = {**primary.volume.counters, **frontend.counters}
    (directory / "end").write_text(json.dumps({"end": str(end), "digest": end_digest, "counters": counters}))
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
