"""Requests to the local marsd over its control socket: one JSON object a line, one answer a line.

An answer `{"error": text, "hint": text, "exit": code}` becomes the error class of that exit status; lines
`{"progress": {...}}` before the answer go to the caller's function. Nothing the socket sends is believed to be
well-formed: what is not a JSON object, or longer than LINE_MAX, is an error.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from typing import Any

from marsx.base.errors import DaemonDownError, MarsError, PermissionDeniedError, TimeoutExpired, from_exit_code

LINE_MAX = 16 << 20
SOCKET_NAME = "marsd.sock"
START_HINT = "start it with: marsd start"

Answer = dict[str, Any]
Progress = Callable[[dict[str, Any]], None]


def raise_answer(answer: Answer) -> None:
    """Raise what an error answer says; do nothing for a good one."""
    if "error" not in answer:
        return
    code = answer.get("exit")
    text, hint = str(answer["error"]), str(answer.get("hint") or "")
    raise from_exit_code(code if isinstance(code, int) else MarsError.exit_code, text, hint)


class Control:
    """The control socket of the marsd of one run directory. Each request is a connection of its own."""

    def __init__(self, run_dir: str | os.PathLike[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.path = os.path.join(run_dir, SOCKET_NAME)
        self._clock = clock

    def request(self, message: dict[str, Any], timeout: float = 30.0, progress: Progress | None = None) -> Answer:
        """Send one request and return its good answer; every kind of failure is a MarsError."""
        deadline = self._clock() + timeout
        with self._connect(timeout) as sock:
            try:
                sock.sendall(json.dumps(message).encode() + b"\n")
                return self._answer(sock, deadline, progress)
            except TimeoutError as exc:
                raise TimeoutExpired(
                    f"marsd has not answered '{message.get('cmd')}' within {timeout:g} s",
                    "look at its messages: marsd.log in the run directory",
                ) from exc
            except (ConnectionError, BrokenPipeError) as exc:
                raise DaemonDownError("marsd went away before it answered", START_HINT) from exc

    def ping(self) -> None:
        """Return if marsd runs and answers, else raise DaemonDownError."""
        self.request({"cmd": "ping"}, timeout=10.0)

    def do(self, what: str, resource: str, timeout: float = 600.0, **args: Any) -> Answer:
        """Have marsd carry out what touches facts (rule 26e)."""
        return self.request({"cmd": "do", "what": what, "resource": resource, "args": args}, timeout)

    def _connect(self, timeout: float) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        sock.settimeout(timeout)
        try:
            sock.connect(self.path)
        except PermissionError as exc:
            sock.close()
            raise PermissionDeniedError(f"{self.path}: only root may talk to marsd", "run it as root") from exc
        except OSError as exc:
            sock.close()
            raise DaemonDownError("marsd does not run on this host", START_HINT) from exc
        return sock

    def _answer(self, sock: socket.socket, deadline: float, progress: Progress | None) -> Answer:
        buffer = b""
        while True:
            line, found, buffer = buffer.partition(b"\n")
            if not found:
                buffer = line + self._more(sock, deadline)
                if len(buffer) > LINE_MAX:
                    raise MarsError(
                        "marsd's answer is longer than any answer can be", "restart marsd and look at marsd.log"
                    )
                continue
            answer = _parse(line)
            if "progress" in answer and isinstance(answer["progress"], dict):
                if progress is not None:
                    progress(answer["progress"])
                continue
            raise_answer(answer)
            return answer

    def _more(self, sock: socket.socket, deadline: float) -> bytes:
        left = deadline - self._clock()
        if left <= 0:
            raise TimeoutError
        sock.settimeout(left)
        data = sock.recv(1 << 16)
        if not data:
            raise ConnectionResetError
        return data


def _parse(line: bytes) -> Answer:
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise MarsError("marsd's answer is not understood", "are marsadm and marsd of the same version?") from exc
    if not isinstance(answer, dict):
        raise MarsError("marsd's answer is not understood", "are marsadm and marsd of the same version?")
    return answer
