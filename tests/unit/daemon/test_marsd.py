"""The command line of marsd and how a worker is started; what needs a daemon is in tests/device."""
from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path

import pytest

from marsx.base.config import Paths
from marsx.base.errors import DaemonDownError, PermissionDeniedError, PreconditionError, UsageError
from marsx.daemon import marsd


def paths(top: Path) -> Paths:
    (top / "mars").mkdir(exist_ok=True)
    return Paths(f"{top}/mars", f"{top}/run", f"{top}/dev", f"{top}/etc")


@pytest.mark.parametrize("argv", [["halt"], [], ["start", "stop"], ["stop", "--for"], ["worker"],
                                  ["status", "--nonsense=1"], ["start", "--timeout=-1"],
                                  ["start", "--mars-dir=relative"]])
def test_what_is_not_understood(argv: list[str]) -> None:
    """Also abbreviations: `--for` must never mean --force."""
    with pytest.raises(UsageError):
        marsd.main(argv)


def test_status_and_stop_where_nothing_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert marsd.status(paths(tmp_path)) == 6
    assert capsys.readouterr().out == "marsd: not running\n"
    with pytest.raises(DaemonDownError):
        marsd.stop(paths(tmp_path), True, 1.0)


def test_check_host_makes_what_it_may(tmp_path: Path) -> None:
    here = paths(tmp_path)
    if not os.path.exists("/dev/fuse") or not os.path.exists("/dev/loop-control"):
        pytest.skip("no /dev/fuse or /dev/loop-control")
    with pytest.raises(PreconditionError, match="no cluster"):
        marsd.check_host(here)
    assert not os.path.exists(here.run_dir)
    os.symlink("cluster", os.path.join(here.mars_dir, "uuid"))
    marsd.check_host(here)
    assert os.stat(here.run_dir).st_mode & 0o777 == 0o700
    assert os.path.isdir(here.dev_dir)


def test_check_host_refuses_what_is_not_there(tmp_path: Path) -> None:
    here = paths(tmp_path)
    os.rmdir(here.mars_dir)
    with pytest.raises(PreconditionError, match="does not exist"):
        marsd.check_host(here)
    Path(here.mars_dir).touch()
    with pytest.raises(PreconditionError, match="not a directory"):
        marsd.check_host(here)
    assert not os.path.exists(here.run_dir), "nothing may be changed by a refusal"


def test_run_dir_of_others_is_refused(tmp_path: Path) -> None:
    """Whoever can write there could plant a socket or a state file."""
    here = paths(tmp_path)
    os.symlink("cluster", os.path.join(here.mars_dir, "uuid"))
    os.mkdir(here.run_dir)
    os.chmod(here.run_dir, 0o777)
    with pytest.raises(PermissionDeniedError, match="by others"):
        marsd.check_host(here)


def test_worker_starts_by_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A .pyz starts itself again, also through a link and with a #! line in front; a package by -m."""
    pyz = tmp_path / "mars.pyz"
    with open(pyz, "wb") as file:
        file.write(b"#!/usr/bin/env python3\n")
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("__main__.py", "")
    os.symlink(pyz, tmp_path / "marsd")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "marsd"), "start"])
    command = marsd.worker_command(paths(tmp_path))
    assert command[0] == sys.executable and str(pyz) in command and "-m" not in command
    assert command[-6:-4] == ["marsd", "worker"] and f"--run-dir={tmp_path}/run" in command
    monkeypatch.setattr(sys, "argv", [str(Path(marsd.__file__)), "start"])
    assert "-m" in marsd.worker_command(paths(tmp_path))


def test_failure_quotes_only_what_was_said_since(tmp_path: Path) -> None:
    here = paths(tmp_path)
    os.mkdir(here.run_dir)
    log = Path(here.messages_file)
    log.write_text("old trouble\n")
    before = log.stat().st_size
    with log.open("a") as file:
        file.write("new trouble\n")
    error = marsd._failure(here, before, 8)
    assert error.exit_code == 8 and "new trouble" in error.text and "old trouble" not in error.text
