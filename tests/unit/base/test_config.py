"""Paths and tunables: what is given is used, what is bad is said and not used."""
from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import marsx
from marsx.base.config import TUNABLES, Paths, Settings, self_command
from marsx.base.errors import NotFoundError, PreconditionError, UsageError

Announce = Callable[[str], None]


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    """An installation of its own."""
    for name in ("run/sys", "etc"):
        (tmp_path / name).mkdir(parents=True)
    return Paths(*(str(tmp_path / name) for name in ("mars", "run", "dev", "etc")))


def live(paths: Paths, name: str, text: str | bytes) -> None:
    """What a shell does to set a tunable."""
    path = Path(paths.sys_dir, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def test_defaults_are_the_documented_places() -> None:
    """Without options and environment."""
    assert Paths.of({}, {}) == Paths("/mars", "/run/mars", "/dev/mars", "/etc/mars")


def test_option_wins_over_environment() -> None:
    """Both spellings of an option; docopt gives None for an option that was not used."""
    environ = {"MARS_DIR": "/e/mars", "MARS_RUN_DIR": "/e/run"}
    assert Paths.of({"--mars-dir": "/o/mars", "--run-dir": None}, environ) == Paths("/o/mars", "/e/run")
    assert Paths.of({"mars_dir": "/o/mars"}, {}).mars_dir == "/o/mars"


def test_paths_are_normalised_and_checked() -> None:
    """One spelling per directory; no relative path, no control character."""
    assert Paths(mars_dir="//a/../b/").mars_dir == "/b"
    for bad in ("mars", "", "/a\nb", "/a\0b"):
        with pytest.raises(UsageError):
            Paths(mars_dir=bad)


def test_environment_round_trip(paths: Paths) -> None:
    """A child process gets the same paths."""
    assert Paths.of({}, paths.environment()) == paths


def test_value_counts_at_once_and_is_lost_with_the_file(paths: Paths) -> None:
    """Live on write, default when the file goes."""
    settings = Settings(paths)
    assert settings.get("logger_flush_ms") == 20
    live(paths, "logger_flush_ms", "7\n")
    assert settings.get("logger_flush_ms") == 7
    os.unlink(f"{paths.sys_dir}/logger_flush_ms")
    assert settings.get("logger_flush_ms") == 20


def test_name_with_slash_is_a_folder(paths: Paths) -> None:
    """As /proc/sys/mars had it."""
    name = "tcp_tuning_2_sync_traffic/ip_tos"
    settings = Settings(paths)
    assert settings.put(name, "123") == 123
    assert Path(paths.sys_dir, name).read_text() == "123\n"
    assert settings.get(name) == 123


@pytest.mark.parametrize("bad", ["x", "1x", "0x10", "1 2", "1.5", "99999999999999999999", "70000", "-1", "\u0661"])
def test_bad_content_is_the_default_and_a_message(paths: Paths, expect_messages: Announce, bad: str) -> None:
    """Said once, not at every look; said again when it is bad in another way."""
    expect_messages("mars_port.*7777")
    live(paths, "mars_port", bad)
    settings = Settings(paths)
    assert [settings.get("mars_port") for _ in range(3)] == [7777] * 3


def test_bad_content_is_told_once(paths: Paths, expect_messages: Announce, caplog: pytest.LogCaptureFixture) -> None:
    """A planner that looks every second must not fill the messages."""
    expect_messages("mars_port")
    settings = Settings(paths)
    for text, times in (("x", 3), ("y", 3)):
        live(paths, "mars_port", text)
        for _ in range(times):
            settings.get("mars_port")
    assert len([record for record in caplog.records if "mars_port" in record.getMessage()]) == 2


def test_half_written_file_keeps_the_value(paths: Paths) -> None:
    """`echo 5 > FILE` empties the file first: that instant must not bring the default back."""
    settings = Settings(paths)
    live(paths, "ring_mb", "64")
    assert settings.get("ring_mb") == 64
    live(paths, "ring_mb", "")
    assert settings.get("ring_mb") == 64
    assert Settings(paths).get("ring_mb") == TUNABLES["ring_mb"].default


def test_symlink_and_fifo_are_not_read(paths: Paths, tmp_path: Path, expect_messages: Announce) -> None:
    """Nothing can make the daemon read another file or hang."""
    expect_messages("mars_port")
    expect_messages("sync_limit")
    (tmp_path / "five").write_text("5")
    os.symlink(tmp_path / "five", f"{paths.sys_dir}/mars_port")
    os.mkfifo(f"{paths.sys_dir}/sync_limit")
    settings = Settings(paths)
    assert (settings.get("mars_port"), settings.get("sync_limit")) == (7777, 0)


def test_toml_gives_lasting_values(paths: Paths, expect_messages: Announce) -> None:
    """Plain names, quoted names, nested tables; unknown and bad ones are said and not used."""
    expect_messages("no_such_thing")
    expect_messages("sync_limit.*True")
    Path(paths.config_file).write_text(
        '[tunables]\nlogger_flush_ms = 5\n"tcp_tuning_2_sync_traffic/ip_tos" = 8\nno_such_thing = 1\n'
        "sync_limit = true\n[tunables.tcp_tuning_0_meta_traffic]\nip_tos = 4\n[other]\nx = 1\n")
    settings = Settings(paths)
    assert settings.get("logger_flush_ms") == 5
    assert settings.get("tcp_tuning_2_sync_traffic/ip_tos") == 8
    assert settings.get("tcp_tuning_0_meta_traffic/ip_tos") == 4
    assert settings.get("sync_limit") == 0
    assert settings.file["other"] == {"x": 1}
    live(paths, "logger_flush_ms", "9")
    assert settings.get("logger_flush_ms") == 9


@pytest.mark.parametrize("text", ["[tunables", "tunables = 5\n", "x = 1\nx = 2\n", b"\xff"])
def test_broken_toml_stops(paths: Paths, text: str | bytes) -> None:
    """A configuration that cannot be understood is never half used."""
    Path(paths.config_file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(PreconditionError) as caught:
        Settings(paths)
    assert paths.config_file in caught.value.text and caught.value.hint


def test_put_checks_before_it_writes(paths: Paths) -> None:
    """A refused value leaves the old one."""
    settings = Settings(paths)
    settings.put("mars_port", "7000")
    with pytest.raises(UsageError):
        settings.put("mars_port", "0")
    assert settings.get("mars_port") == 7000
    assert os.stat(f"{paths.sys_dir}/mars_port").st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["no_such", "../marsd.sock", "mars_port/../x", ""])
def test_unknown_names_are_refused(paths: Paths, name: str) -> None:
    """Only names of the table become paths."""
    settings = Settings(paths)
    for call in (lambda: settings.get(name), lambda: settings.put(name, "1"), lambda: settings.default(name)):
        with pytest.raises(NotFoundError):
            call()


def test_publish_shows_all_and_overwrites_none(paths: Paths) -> None:
    """After marsd has started, every tunable is a file with the value that counts."""
    live(paths, "ring_mb", "64")
    settings = Settings(paths)
    settings.publish()
    shown = {str(path.relative_to(paths.sys_dir)) for path in Path(paths.sys_dir).rglob("*") if path.is_file()}
    assert shown == set(TUNABLES)
    assert settings.get("ring_mb") == 64


def test_table_is_sound() -> None:
    """Every default lies in its range; every name can be a file; every entry says what it means."""
    for name, tunable in TUNABLES.items():
        assert name == tunable.name and tunable.low <= tunable.default <= tunable.high, name
        assert all(part.replace("_", "").isalnum() and part.isascii() for part in name.split("/")), name
        assert tunable.meaning and len(tunable.meaning) < 100, name


def test_self_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the .pyz a child is started through the same .pyz, isolated."""
    assert self_command("marsd") == [sys.executable, "-m", "marsx", "marsd"]
    monkeypatch.setattr(marsx, "archive", "/opt/mars.pyz")
    assert self_command("marsd") == [sys.executable, "-IS", "/opt/mars.pyz", "marsd"]
