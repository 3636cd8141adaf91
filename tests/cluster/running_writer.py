"""A ledger writer that runs inside a host while a test does harm; stopped by the end of its standard input."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import write_ledger

from tools.hosts import Host


class RunningWriter:
    """`with RunningWriter(host, device, notes) as writer:` writes until the block is left or `stop()`."""

    def __init__(self, host: Host, device: str, notes: Path, blocks: int = 4096, threads: int = 1, seed: int = 1,
                 pause_us: int = 0) -> None:
        self.host, self.notes, self.blocks = host, notes, blocks
        numbers = (blocks, threads, seed, 0, pause_us)
        self.child = host.popen([sys.executable, write_ledger.__file__, device, str(notes), *map(str, numbers)],
                                stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        self.status: int | None = None

    def ledgers(self) -> list[write_ledger.Ledger]:
        """What has been written so far."""
        return write_ledger.ledgers(self.notes)

    def acknowledged(self) -> int:
        """Acknowledged writes of all threads."""
        return sum(book.acknowledged for book in self.ledgers())

    def go_on(self, more: int = 200) -> None:
        """Wait until `more` further writes were acknowledged: so the next harm hits in the middle of writing."""
        goal = self.acknowledged() + more
        self.host.wait(lambda: self.acknowledged() >= goal or self.failed(), 60, f"{more} more writes")
        if self.failed():
            self.stop()
            raise AssertionError(f"the writer failed: {[book.error for book in self.ledgers()]}")

    def failed(self) -> bool:
        """Whether it ended by itself, or a thread of it met an error."""
        return self.child.poll() is not None or any(book.error for book in self.ledgers())

    def stop(self, timeout: float = 180) -> int:
        """End the writer, return its exit status (0 = no write failed). AssertionError: a write of it is not answered
        (then it is killed when the block is left)."""
        if self.status is None:
            self._end(timeout)
            err = self._collect(f"the writer did not end within {timeout:.0f} s after it was told to")
            self.status = self.child.returncode
            if self.status not in (0, 1):
                raise AssertionError(f"the writer itself failed: {err}")
        return self.status

    def _end(self, timeout: float) -> None:
        """No more input. nsenter stops itself when it hears that its child was stopped, which may be after both were
        continued: so it is continued until it ends."""
        assert self.child.stdin is not None
        self.child.stdin.close()
        self.child.stdin = None
        end = time.monotonic() + timeout
        while self.child.poll() is None and time.monotonic() < end:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.child.pid, signal.SIGCONT)
            time.sleep(0.02)

    def __enter__(self) -> "RunningWriter":
        return self

    def _collect(self, otherwise: str, timeout: float = 5) -> str:
        """Its error output once it has ended; AssertionError with these words when it does not."""
        try:
            return self.child.communicate(timeout=timeout)[1]
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{otherwise}: the device hangs") from None

    def __exit__(self, *_: object) -> None:
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.child.pid, signal.SIGKILL)
            self._collect("the writer did not end within 30 s after SIGKILL", 30)
            self.status = self.child.returncode
