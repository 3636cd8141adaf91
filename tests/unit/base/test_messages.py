"""What people are told: one line per message, in bounded files, and never an exception for the teller."""
from __future__ import annotations

import io
import os
import socket
import sys
from pathlib import Path

import pytest

from marsx.base import messages


@pytest.fixture(autouse=True)
def silent_again():
    """Take the handlers away that a test installed."""
    yield
    messages.setup("test", stderr=False)
    while messages._installed:
        handler = messages._installed.pop()
        handler.close()


@pytest.mark.expect_messages("evil")
def test_hostile_text_stays_one_line(tmp_path: Path) -> None:
    """A peer cannot forge a second message or move the cursor."""
    path = tmp_path / "marsd.log"
    messages.setup("marsd", stderr=False, file=str(path))
    messages.get("peer.link").warning("%s", "evil\n2026 ERROR marsx: fake \x1b[2J\u202e")
    lines = path.read_text().splitlines()
    assert len(lines) == 1 and "\x1b" not in lines[0] and "\u202e" not in lines[0]
    assert "WARNING marsx.peer.link: evil\\n2026" in lines[0]


def test_file_is_roots_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mode 0600, and at most two parts: the run directory is memory."""
    monkeypatch.setattr(messages, "FILE_BYTES_MAX", 2000)
    old = os.umask(0)
    try:
        messages.setup("marsd", stderr=False, file=str(tmp_path / "marsd.log"))
        for number in range(200):
            messages.get("x").info("message %d", number)
    finally:
        os.umask(old)
    parts = sorted(tmp_path.iterdir())
    assert [part.name for part in parts] == ["marsd.log", "marsd.log.1"]
    assert all(part.stat().st_size <= 2100 and part.stat().st_mode & 0o777 == 0o600 for part in parts)
    assert "message 199" in parts[0].read_text()


def test_level_and_second_setup(tmp_path: Path) -> None:
    """A second setup replaces the places of the first."""
    messages.setup("marsd", stderr=False, file=str(tmp_path / "one"))
    messages.setup("marsd", level="error", stderr=False, file=str(tmp_path / "two"))
    messages.get("x").info("quiet")
    assert (tmp_path / "one").read_text() == "" and (tmp_path / "two").read_text() == ""


@pytest.mark.expect_messages("lost")
def test_dead_stderr_does_not_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed terminal loses the message, not the daemon."""
    broken = io.StringIO()
    broken.close()
    messages.setup("marsd")
    monkeypatch.setattr(sys, "stderr", broken)
    messages.get("x").error("lost")


@pytest.mark.expect_messages("number 0")
def test_stuck_syslog_does_not_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A syslog that never reads: its queue fills, further messages are lost, nobody waits."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stuck:
        stuck.bind(str(tmp_path / "log"))
        stuck.settimeout(10)
        monkeypatch.setattr(messages, "SYSLOG_SOCKET", str(tmp_path / "log"))
        messages.setup("marsd", stderr=False, syslog=True)
        logger = messages.get("x")
        for number in range(5000):
            logger.warning("number %d", number) if number == 0 else logger.info("number %d", number)
        assert b"marsx.x: number 0" in stuck.recv(65536)


@pytest.mark.parametrize(("text", "shown"), [("plain \u00e4", "plain \u00e4"), ("a\tb", "a\\tb"), ("\x00", "\\x00"),
                                             ("x" * 20, "x" * 10 + "...")])
def test_printable(text: str, shown: str) -> None:
    """Control characters become visible, length is bounded."""
    assert messages.printable(text, 10) == shown


def test_throttle() -> None:
    """Once per key and period, by the given clock; keys of peers cannot fill the memory."""
    now = [0.0]
    throttle = messages.Throttle(10, lambda: now[0])
    assert [throttle.due("a"), throttle.due("a"), throttle.due("b")] == [True, False, True]
    now[0] = 10
    assert throttle.due("a")
    for number in range(5000):
        throttle.due(str(number))
    assert len(throttle._told) <= throttle.KEYS_MAX
