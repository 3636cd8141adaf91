"""mars-status and marsd: what the daemon says of itself, with a real socket."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from marsx.monitor.mars_status import ask_daemon


@pytest.mark.parametrize(
    ("reply", "name", "heard"),
    [
        (b'{"ok":true,"version":"9.9","heard":{"b":1.5,"c":"x"}}\n', "marsd 9.9 (running)", {"b": 1.5}),
        (b'{"ok":true,"version":"\\u001b[2J"}\n', "marsd \\x1b[2J (running)", None),
        (b"garbage\n", "(running)", None),
        (b"[1]\n", "(running)", None),
        (b"", "(running)", None),
    ],
)
def test_running(tmp_path: Path, reply: bytes, name: str, heard: object) -> None:
    """Whatever it answers: it runs. Only well-formed parts are believed."""
    path = str(tmp_path / "marsd.sock")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(100) == b'{"cmd":"status"}\n'
            connection.sendall(reply)

    thread = threading.Thread(target=serve)
    thread.start()
    said, ages = ask_daemon(path)
    thread.join()
    listener.close()
    assert name in said and ages == heard


def test_not_running(tmp_path: Path) -> None:
    """No socket: it does not run."""
    assert ask_daemon(str(tmp_path / "marsd.sock")) == ("", None)
