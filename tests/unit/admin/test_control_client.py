"""The control socket, with a real one: answers, errors, progress, and what is no answer."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from marsx.admin import control_client
from marsx.admin.control_client import Control
from marsx.base.errors import DaemonDownError, MarsError, PreconditionError, TimeoutExpired, subclasses

Serve = Callable[[bytes], list[dict[str, object]]]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Callable[[bytes], list[dict[str, object]]]]:
    """Starts a socket that gives the same bytes to each request; what was asked."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "marsd.sock"))
    listener.listen()
    threads: list[threading.Thread] = []

    def start(reply: bytes, close: bool = True) -> list[dict[str, object]]:
        asked: list[dict[str, object]] = []

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
                asked.append(json.loads(connection.makefile("rb").readline()))
                connection.sendall(reply)
                if not close:
                    connection.recv(1)

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        return asked

    yield start
    for thread in threads:
        thread.join(10)
    listener.close()


def test_request_and_answer(daemon: Serve, tmp_path: Path) -> None:
    """One line each way."""
    asked = daemon(b'{"ok":true,"deleted":["x"]}\n')
    assert Control(tmp_path).do("log-delete", "data", force=True) == {"ok": True, "deleted": ["x"]}
    assert asked == [{"cmd": "do", "what": "log-delete", "resource": "data", "args": {"force": True}}]


def test_progress_comes_before_the_answer(daemon: Serve, tmp_path: Path) -> None:
    """Lines with progress are handed on, in order."""
    daemon(b'{"progress":{"done":1}}\n{"progress":{"done":2}}\n{"ok":true}\n')
    seen: list[object] = []
    assert Control(tmp_path).request({"cmd": "wait"}, progress=seen.append) == {"ok": True}
    assert seen == [{"done": 1}, {"done": 2}]


def test_errors_keep_their_class(daemon: Serve, tmp_path: Path) -> None:
    """The exit status of the answer finds the class; unknown ones are plain errors."""
    for cls in (cls for cls in subclasses() if cls.__module__ == MarsError.__module__):
        daemon(json.dumps({"error": "no", "hint": "do", "exit": cls.exit_code}).encode() + b"\n")
        with pytest.raises(MarsError) as caught:
            Control(tmp_path).ping()
        assert type(caught.value) is cls and (caught.value.text, caught.value.hint) == ("no", "do")
    daemon(b'{"error":"no","exit":"3"}\n')
    with pytest.raises(MarsError) as caught:
        Control(tmp_path).ping()
    assert not isinstance(caught.value, PreconditionError)


@pytest.mark.parametrize("reply", [b"garbage\n", b"[1]\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n"])
def test_no_answers(daemon: Serve, tmp_path: Path, reply: bytes) -> None:
    """What is no JSON object is an error, not a crash."""
    daemon(reply)
    with pytest.raises(MarsError, match="not understood"):
        Control(tmp_path).ping()


def test_endless_answer(daemon: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded."""
    monkeypatch.setattr(control_client, "LINE_MAX", 1000)
    daemon(b"x" * 5000)
    with pytest.raises(MarsError, match="longer than"):
        Control(tmp_path).ping()


def test_marsd_goes_away(daemon: Serve, tmp_path: Path) -> None:
    """A connection that ends without an answer is a daemon that is down."""
    daemon(b'{"ok":')
    with pytest.raises(DaemonDownError, match="went away"):
        Control(tmp_path).ping()


def test_marsd_does_not_answer(daemon: Serve, tmp_path: Path) -> None:
    """Every wait ends; the clock here has run out before the first look."""
    daemon(b"", close=False)  # type: ignore[call-arg]
    times = iter([0.0, 100.0])
    with pytest.raises(TimeoutExpired, match="within 5 s"):
        Control(tmp_path, clock=lambda: next(times)).request({"cmd": "ping"}, 5)


@pytest.mark.parametrize("name", ["no-such-dir", "."])
def test_no_socket(tmp_path: Path, name: str) -> None:
    """No socket, or one that nobody listens on: exit 6 and how to start."""
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / "marsd.sock"))
    dead.close()
    with pytest.raises(DaemonDownError) as caught:
        Control(tmp_path / name).ping()
    assert caught.value.exit_code == 6 and "marsd start" in caught.value.hint
