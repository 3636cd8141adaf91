"""The command marsd around the real keeper: start, stop, status, what a dead keeper leaves."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipapp
from pathlib import Path

import pytest

from marsx.daemon import runfile
from tests.device.harness import HERE, Mars, loops_of, until

MIB = 1 << 20


def run(*words: str | Path) -> None:
    subprocess.run([str(w) for w in words], check=True, capture_output=True, timeout=120)


def mounted(device: str, place: Path) -> Path:
    run("mkfs.ext4", "-q", "-F", device)
    place.mkdir()
    run("mount", device, place)
    return place


def kill_keeper(mars: Mars) -> None:
    keeper, worker = mars.keeper(), mars.state()["worker"]
    os.kill(keeper, signal.SIGKILL)
    until(lambda: not os.path.exists(f"/proc/{worker}") or not Path(f"/proc/{worker}/cmdline").read_bytes(),
          "the worker notices the keeper's death")


def test_life_of_a_daemon(mars: Mars) -> None:
    """start, second start, status, stop, status: exit statuses and what they say."""
    assert mars.marsd("status", check=False).returncode == 6
    mars.marsd("start")
    keeper = mars.keeper()
    assert keeper and int((mars.run_dir / "marsd.pid").read_text()) == keeper
    again = mars.marsd("start", check=False)
    assert again.returncode == 3 and f"already running (pid {keeper})" in again.stderr
    mars.make()
    said = mars.marsd("status").stdout
    assert f"running, pid {keeper}" in said and f"device {mars.name}: /dev/loop" in said
    mars.kill_worker()
    assert "1 worker restarts" in mars.marsd("status").stdout
    mars.marsd("stop")
    assert not mars.keeper()
    assert loops_of(mars.prefix) == [] and not os.path.lexists(mars.link)
    assert mars.marsd("status", check=False).returncode == 6
    assert mars.marsd("stop", check=False).returncode == 6
    mars.marsd("start")
    mars.marsd("stop")


def test_files_are_roots_alone(mars: Mars) -> None:
    mars.marsd("start")
    for name in ("marsd.pid", "worker.lock", "keeper.state", "marsd.log"):
        if (mars.run_dir / name).exists():
            assert (mars.run_dir / name).stat().st_mode & 0o077 == 0, name
    assert mars.run_dir.stat().st_mode & 0o077 == 0


def test_keeper_is_protected_and_small(mars: Mars) -> None:
    """The OOM killer spares it (or it says that it may not ask), its memory is locked, neither asyncio nor ssl."""
    mars.marsd("start")
    proc = Path(f"/proc/{mars.keeper()}")
    assert (proc / "oom_score_adj").read_text().strip() == "-1000" or "oom_score_adj" in mars.log()
    assert "marsd-keeper" in (proc / "comm").read_text()
    status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    assert int(status["VmLck"].split()[0]) > 1000
    assert int(status["Threads"]) == 1
    maps = (proc / "maps").read_text()
    assert "_ssl" not in maps and "_asyncio" not in maps


def test_worker_holds_nothing_of_the_keeper(mars: Mars) -> None:
    """A worker gets its line, the worker lock, the files 0 to 2; everything else it has to ask for."""
    mars.marsd("start")
    worker = mars.state()["worker"]
    links = {os.readlink(f"/proc/{worker}/fd/{fd}") for fd in os.listdir(f"/proc/{worker}/fd")}
    assert str(mars.run_dir / "worker.lock") in links
    assert str(mars.run_dir / "marsd.pid") not in links
    assert not any("fuse" in link for link in links)


def test_stop_is_refused_while_mounted(mars: Mars, tmp_path: Path) -> None:
    """The message names the mount; everything goes on; after umount it stops."""
    mars.marsd("start")
    place = mounted(mars.make(), tmp_path / "mnt")
    refused = mars.marsd("stop", check=False)
    assert refused.returncode == 3 and str(place) in refused.stderr
    (place / "file").write_text("alive")
    assert mars.marsd("status").returncode == 0
    run("umount", place)
    mars.marsd("stop")


def test_forced_stop_ends_with_io_errors_and_leaves_nothing(mars: Mars, tmp_path: Path) -> None:
    mars.marsd("start")
    place = mounted(mars.make(), tmp_path / "mnt")
    mars.marsd("stop", "--force")
    assert not mars.keeper()
    with pytest.raises(OSError):
        fd = os.open(place / "file", os.O_CREAT | os.O_WRONLY)
        os.write(fd, b"x")
        os.fsync(fd)
    run("umount", place)
    until(lambda: not loops_of(mars.prefix), "the dead loop device goes with its last user")


def test_leftover_of_a_dead_keeper_is_cleared(mars: Mars) -> None:
    """Facts 6: both dead, nobody uses the device: the next start takes it away and begins anew."""
    mars.marsd("start")
    node = os.path.realpath(mars.make())
    kill_keeper(mars)
    assert mars.marsd("status", check=False).returncode == 6
    assert loops_of(mars.prefix) == [os.path.basename(node)]
    mars.marsd("start")
    assert loops_of(mars.prefix) == []
    assert not os.path.lexists(mars.link) and mars.state()["bound"] == {}
    mars.make()


def test_mounted_leftover_is_named_and_goes_at_umount(mars: Mars, tmp_path: Path) -> None:
    mars.marsd("start")
    place = mounted(mars.make(), tmp_path / "mnt")
    kill_keeper(mars)
    said = mars.marsd("start").stderr
    assert "dead marsd" in said and str(place) in said
    assert not os.path.lexists(mars.link)
    device = mars.make()
    assert os.path.basename(os.path.realpath(device)) in loops_of(mars.prefix) and len(loops_of(mars.prefix)) == 2
    run("umount", place)
    until(lambda: len(loops_of(mars.prefix)) == 1, "the old loop device goes with its mount")


def test_link_without_record_is_found(mars: Mars) -> None:
    """The state file is lost: the link in /dev/mars still leads to what a dead keeper left."""
    mars.marsd("start")
    mars.make()
    kill_keeper(mars)
    (mars.run_dir / runfile.STATE_FILE).unlink()
    mars.marsd("start")
    assert loops_of(mars.prefix) == []


def test_no_second_worker_beside_one_that_outlived_its_keeper(mars: Mars, tmp_path: Path) -> None:
    """Rule 3: while the old worker lives (here: it does not end by itself), a new marsd starts none beside it."""
    mars.marsd("start")
    reason = tmp_path / "linger"
    reason.touch()
    mars.ask(do="linger", **{"while": str(reason)})
    keeper, worker = mars.keeper(), mars.state()["worker"]
    os.kill(keeper, signal.SIGKILL)
    until(lambda: not mars.keeper(), "the lock falls")
    command = [sys.executable, str(HERE / "nullmarsd.py"), "start", *mars.args]
    with subprocess.Popen(command, env=mars.env) as starting:
        try:
            until(mars.keeper, "the new keeper")
            with pytest.raises(subprocess.TimeoutExpired):
                starting.wait(1.5)
            assert mars.state()["worker"] == worker and os.path.exists(f"/proc/{worker}")
        finally:
            reason.unlink()
        assert starting.wait(30) == 0, mars.log()
    assert mars.state()["worker"] not in (0, worker)


@pytest.mark.parametrize(("command", "status"), [("echo the reason >&2; exit 8", 8), ("kill -9 $$", 1)])
def test_start_fails_when_the_worker_never_serves(mars: Mars, command: str, status: int) -> None:
    """A worker that dies before it is ready: start says why, with its status, and nothing runs on."""
    mars.env["NULL_COMMAND"] = command
    done = mars.marsd("start", check=False)
    assert done.returncode == status and "did not start" in done.stderr
    assert status != 8 or "the reason" in done.stderr
    assert not mars.keeper()


def test_device_is_kept_while_no_worker_can_live(mars: Mars) -> None:
    """A worker that dies at once, again and again: the device stays, and the first worker that lives serves it."""
    mars.marsd("start")
    mars.make()
    library = Path(mars.env["NULL_LIBRARY"])
    hidden = library.with_suffix(".hidden")
    library.rename(hidden)
    try:
        os.kill(mars.state()["worker"], signal.SIGKILL)
        until(lambda: mars.state()["restarts"] >= 3, "restarts")
        assert loops_of(mars.prefix), "the device is kept while no worker lives"
    finally:
        hidden.rename(library)
    until(lambda: mars.state()["phase"] == "serving", "a worker that lives again")
    mars.marsd("stop")


@pytest.mark.parametrize(("words", "status", "text"), [
    (["start", "--mars-dir=/nothing/here"], 3, "does not exist"),
    (["start", "--mars-dir=/etc/hostname"], 3, "not a directory"),
    (["start", "--run-dir=/proc/nope"], 10, "cannot make"),
    (["start", "--frontend=ublk"], 2, "no front end"),
    (["stop", "--for"], 2, "unknown option"),
    (["halt"], 2, "not understood"),
    (["start", "--timeout=soon"], 2, "not a number"),
])
def test_bad_input(mars: Mars, words: list[str], status: int, text: str) -> None:
    """One clear line on stderr, the documented status, nothing started."""
    kept = [arg for arg in mars.args if arg.partition("=")[0] not in {word.partition("=")[0] for word in words}]
    done = subprocess.run([sys.executable, str(HERE / "nullmarsd.py"), *words, *kept], env=mars.env,
                          capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.splitlines()[0].find(text) >= 0) == (status, True), done.stderr
    assert not mars.keeper()


def test_run_in_the_foreground_ends_with_the_daemon(mars: Mars) -> None:
    """Ctrl-C reaches the keeper alone, which lets the worker take the devices away first."""
    command = [sys.executable, str(HERE / "nullmarsd.py"), "run", *mars.args]
    daemon = subprocess.Popen(command, env=mars.env, stderr=subprocess.PIPE, process_group=0)
    try:
        until(lambda: mars.state().get("phase") == "serving", "the worker")
        mars.make()
        os.killpg(daemon.pid, signal.SIGINT)
        assert daemon.wait(30) == 0
    finally:
        if daemon.poll() is None:
            daemon.kill()
            daemon.wait()
        assert daemon.stderr
        said = daemon.stderr.read()
        daemon.stderr.close()
    assert b"starting it again" not in said, "the worker got the Ctrl-C too"
    assert loops_of(mars.prefix) == []


def test_stale_pid_file_never_hits_a_stranger(mars: Mars) -> None:
    """A pid file that names a living process which does not hold the lock: not running, nobody is signalled."""
    mars.run_dir.mkdir(mode=0o700)
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        (mars.run_dir / "marsd.pid").write_text(f"{stranger.pid}\n")
        (mars.run_dir / runfile.STATE_FILE).write_text(json.dumps({"pid": stranger.pid, "worker": stranger.pid}))
        assert mars.marsd("stop", "--force", check=False).returncode == 6
        assert stranger.poll() is None
    finally:
        stranger.terminate()
        stranger.wait()


WORKER_IN_A_ZIP = """
import asyncio, os
from marsx.daemon.keeperlink import KeeperLink

def main(fd, paths):
    link = KeeperLink(fd)
    assert link.call_now("hello")[0]["disks"] == []
    link.call_now("ready")
    async def serve():
        link.start(asyncio.get_running_loop(), lambda event: os._exit(0), lambda: os._exit(1))
        await asyncio.Event().wait()
    asyncio.run(serve())
"""


def test_out_of_one_file(mars: Mars, tmp_path: Path) -> None:
    """Started from a .pyz by a relative path, the keeper starts its workers from the same file, in any directory."""
    import docopt

    stage = tmp_path / "stage"
    for source in (HERE.parents[1] / "marsx").rglob("*.py"):
        target = stage / "marsx" / source.relative_to(HERE.parents[1] / "marsx")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    (stage / "marsx" / "daemon" / "worker.py").write_text(WORKER_IN_A_ZIP)
    package = Path(docopt.__file__).parent
    for source in package.glob("*.py"):
        (stage / package.name).mkdir(exist_ok=True)
        (stage / package.name / source.name).write_bytes(source.read_bytes())
    zipapp.create_archive(stage, tmp_path / "x.pyz", interpreter=sys.executable, main="marsx.__main__:main")
    command = ["./x.pyz", "marsd", "start", *mars.args]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr + mars.log()
    try:
        assert f"{tmp_path}/x.pyz".encode() in Path(f"/proc/{mars.state()['worker']}/cmdline").read_bytes()
        mars.kill_worker()
    finally:
        done = subprocess.run(["./x.pyz", "marsd", "stop", *mars.args], cwd=tmp_path, timeout=60)
    assert done.returncode == 0 and not mars.keeper()
