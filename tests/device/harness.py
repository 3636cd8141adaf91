"""What the device tests share: one private marsd with the null server behind it, and how to leave nothing of it."""
from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from marsx.daemon import runfile
from marsx.device import loop

HERE = Path(__file__).parent
PATIENCE_S = 30.0


def until(what: Callable[[], Any], message: str, seconds: float = PATIENCE_S) -> Any:
    """What `what` returns as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (got := what()):
        assert time.monotonic() < deadline, f"not in {seconds} s: {message}"
        time.sleep(0.02)
    return got


def loops_of(prefix: str) -> list[str]:
    """Bound loop devices whose file has a name of this test."""
    found = []
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if entry.read_text().strip().startswith(f"/{prefix}"):
                found.append(entry.parts[3])
    return found


def children_of(pid: int) -> set[int]:
    """Living children of a process."""
    return {int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


class Mars:
    """One marsd of a test."""

    def __init__(self, top: Path, library: str) -> None:
        self.top = top
        self.prefix = f"t{secrets.token_hex(4)}"
        self.name = f"{self.prefix}-data"
        for name in ("mars", "backing"):
            (top / name).mkdir()
        (top / "mars/uuid").symlink_to("null")
        self.run_dir, self.dev_dir, self.backing = top / "run", top / "dev", top / "backing"
        self.control = top / "s"
        self.env = {**os.environ, "NULL_LIBRARY": library, "NULL_SOCKET": str(self.control),
                    "NULL_BACKING": str(self.backing)}
        self.args = [f"--mars-dir={top}/mars", f"--run-dir={self.run_dir}", f"--dev-dir={self.dev_dir}",
                     f"--etc-dir={top}/etc"]
        self._line: socket.socket | None = None

    def marsd(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(HERE / "nullmarsd.py"), *words, *self.args]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=120)
        assert not check or done.returncode == 0, f"{words}: {done.returncode}\n{done.stderr}\n{self.log()}"
        return done

    def log(self) -> str:
        path = self.run_dir / "marsd.log"
        return path.read_text() if path.exists() else ""

    def state(self) -> dict[str, Any]:
        return runfile.read_state(str(self.run_dir))

    def keeper(self) -> int:
        return runfile.keeper_pid(str(self.run_dir))

    def ask(self, **command: Any) -> dict[str, Any]:
        """One command for the worker, and its answer."""
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(120)
            until(lambda: _connects(line, str(self.control)), "the worker's socket")
            line.sendall(json.dumps(command).encode() + b"\n")
            data = b""
            while not data.endswith(b"\n"):
                chunk = line.recv(1 << 16)
                assert chunk, f"the worker left during {command}\n{self.log()}"
                data += chunk
        return json.loads(data)

    @contextlib.contextmanager
    def sent(self, **command: Any) -> Iterator[None]:
        """A command on its way, whose answer nobody reads."""
        with socket.socket(socket.AF_UNIX) as line:
            until(lambda: _connects(line, str(self.control)), "the worker's socket")
            line.sendall(json.dumps(command).encode() + b"\n")
            yield

    def make(self, size: int = 64 << 20, **more: Any) -> str:
        """The device of this test; its link."""
        answer = self.ask(make=self.name, size=size, **more)
        assert "ok" in answer, f"{answer}\n{self.log()}"
        assert os.readlink(self.link) == answer["loop"]
        return self.link

    @property
    def link(self) -> str:
        return str(self.dev_dir / self.name)

    def kill_worker(self) -> int:
        """kill -9; the new worker's pid, when it serves."""
        old = self.state()["worker"]
        os.kill(old, signal.SIGKILL)
        return until(lambda: (s := self.state())["phase"] == "serving" and s["worker"] != old and s["worker"],
                     f"a new worker\n{self.log()}")

    def clean(self) -> None:
        """Leave nothing, whatever happened before."""
        for place in _mounts_below(str(self.top)):
            subprocess.run(["umount", "-l", place], check=False)
        if self.keeper():
            self.marsd("stop", "--force", "--timeout=30", check=False)
        state = self.state()
        for pid in (self.keeper(), state.get("worker", 0)):
            if pid and str(self.top).encode() in _cmdline(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for number in self.state().get("bound", {}):
            if f"loop{number}" not in loops_of(""):
                loop.remove_number(int(number))
        for name in loops_of(self.prefix):
            with contextlib.suppress(AssertionError):
                until(lambda: self._released(int(name.removeprefix("loop"))), f"{name} released", 5)  # noqa: B023

    def _released(self, number: int) -> bool:
        gone = loop.release(number, lambda now: now.tag.startswith(f"mars:{self.prefix}".encode()), keep_autoclear=True)
        return gone and loop.remove_number(number)


def _cmdline(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _connects(line: socket.socket, path: str) -> bool:
    try:
        line.connect(path)
    except OSError:
        return False
    return True


def _mounts_below(top: str) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [place for line in lines if (place := line.split()[4]).startswith(top + "/")]
