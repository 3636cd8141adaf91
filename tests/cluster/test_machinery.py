"""The hosts, the network and the ledger themselves, with a stand-in for the product: what all others rest on."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import write_ledger

from bench.null_paths import NullPath, build_server
from tests.fix_cluster import missing
from tools import loops
from tools.hosts import MIB, TOP, Cluster, HostError

SMALL = {"data_size": 16 * MIB, "mars_size": 64 * MIB}
LISTEN = "import socket; s=socket.create_server(('', 7777)); c,_=s.accept(); print(c.recv(99).decode(), flush=True)"
SEND = "import socket; s=socket.create_connection(('{ip}', 7777), 2); s.sendall(b'{word}')"


def listens(host) -> bool:
    """Whether a process of the host listens at port 7777 (state 0A; a connection in TIME_WAIT does not count)."""
    lines = Path(f"/proc/{host.holder.pid}/net/tcp").read_text().splitlines()
    return any(":1E61 00000000:0000 0A" in line for line in lines)


def talk(sender, receiver, word: str) -> tuple[bool, str]:
    """Send one word over TCP; whether the sender was content, and what arrived."""
    listener = receiver.popen([sys.executable, "-c", LISTEN], stdout=subprocess.PIPE)
    receiver.wait(lambda: listens(receiver), 10, "the listener")
    sent = sender.run([sys.executable, "-c", SEND.format(ip=receiver.ip, word=word)], check=False)
    if sent.returncode:
        os.killpg(listener.pid, signal.SIGKILL)
    return sent.returncode == 0, listener.communicate(timeout=10)[0].strip()


def test_hosts_have_their_own_everything(machinery):
    """Name, address, folders and processes of a host are not those of the other, nor of the machine."""
    hosts = machinery("a", "b", **SMALL)
    for host in hosts:
        assert host.run("hostname").stdout.strip() == host.name
        for folder in ("/mars", "/run/mars", "/dev/mars", "/etc/mars", "/var/cache/mars"):
            host.run(["mkdir", "-p", folder])
            host.run(["touch", f"{folder}/of-{host.name}"])
            assert f"of-{host.name}" in os.listdir(host.path(folder))
            assert not os.path.exists(f"{folder}/of-{host.name}"), "visible on the machine"
        assert host.run("stat -f -c %T /mars").stdout.strip() == "ext2/ext3"
        assert "on " + host.name in host.run("marsadm view").stdout
    assert hosts["a"].data_device != hosts["b"].data_device
    assert "of-b" not in os.listdir(hosts["a"].path("/mars"))
    assert [words for words in hosts["b"].pids().values()] == []


def test_marsd_is_found_and_killed(machinery):
    """Worker and keeper are told apart by the control socket; a killed worker comes again, a killed keeper does not."""
    host = machinery("a", **SMALL)["a"]
    host.marsd_start()
    first, keeper = host.worker(), host.keeper()
    assert first and keeper and first != keeper and set(host.pids()) == {first, keeper}
    assert host.kill9_worker() == first
    host.wait(lambda: host.worker() not in (None, first), 10, "another worker")
    assert host.keeper() == keeper
    host.kill9_keeper()
    host.wait(lambda: not host.pids(), 10, "the end of both")
    with pytest.raises(HostError, match="no worker runs"):
        host.kill9_worker()


def test_failures_tell_all(machinery):
    """A failing command, one without end, and a wait in vain each raise with the words of the host."""
    host = machinery("a", **SMALL)["a"]
    with pytest.raises(HostError, match=r"(?s)exit 3.*marsadm fail on a.*mars-status on a"):
        host.run("marsadm fail")
    assert host.run("marsadm fail", check=False).returncode == 3
    with pytest.raises(HostError, match="no end after"):
        host.run("sleep 1000", timeout=0.3)
    assert host.pids() == {}, "a command that timed out is gone"
    with pytest.raises(HostError, match="waited 0 s for a miracle"):
        host.wait(lambda: False, 0.1, "a miracle")


def test_line_is_cut_and_heals(machinery):
    """A cut line drops packets between its two hosts only, both ways, and works after the heal."""
    hosts = machinery("a", "b", "c", **SMALL)
    a, b, c = hosts
    assert talk(a, b, "one") == (True, "one")
    hosts.net.cut("a", "b")
    assert talk(a, b, "two") == (False, "")
    assert talk(b, a, "three") == (False, "")
    assert talk(a, c, "four") == (True, "four")
    hosts.net.heal("a", "b")
    assert talk(b, a, "five") == (True, "five")
    hosts.net.isolate("c")
    assert talk(a, c, "six") == (False, "")
    hosts.net.heal_all()
    assert talk(c, a, "seven") == (True, "seven")


def test_line_is_shaped(machinery):
    """A shaped line is slower than the same line without the limit."""
    hosts = machinery("a", "b", **SMALL)
    a, b = hosts
    receive = "import socket; s=socket.create_server(('', 7777)); c,_=s.accept()\nwhile c.recv(1<<20): pass"
    send = (f"import socket; s=socket.create_connection(('{b.ip}', 7777)); "
            "s.sendall(bytes(2 << 20)); s.shutdown(1); s.recv(1)")

    def seconds() -> float:
        sink = b.popen([sys.executable, "-c", receive])
        b.wait(lambda: listens(b), 10, "the listener")
        start = time.monotonic()
        a.run([sys.executable, "-c", send])
        sink.wait(30)
        return time.monotonic() - start

    fast = seconds()
    hosts.net.shape("a", "10mbit")
    slow = seconds()
    assert slow > fast and slow > 2 * 8 / 10 * 0.5, f"{fast:.2f} s free, {slow:.2f} s at 10 Mbit/s"


def test_nothing_stays_when_the_runner_is_killed(machinery, tmp_path):
    """SIGKILL of the process that made a cluster: its hosts, mounts and loop devices vanish by themselves."""
    program = tmp_path / "runner.py"
    program.write_text(textwrap.dedent(f"""
        import sys, time
        sys.path.insert(0, {str(TOP)!r})
        from pathlib import Path
        from tools.hosts import Cluster
        pyz = Path({str(Path(__file__).parent / "stand_in.py")!r})
        c = Cluster(["a"], pyz, data_size=1 << 24, mars_size=1 << 26, where={str(tmp_path)!r})
        c["a"].marsd_start()
        c["a"].popen("sleep 1000")
        print(c["a"].holder.process.pid, *c["a"].pids(), flush=True)
        time.sleep(1000)
    """))
    runner = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True)
    try:
        pids = [int(word) for word in runner.stdout.readline().split()]
    finally:
        runner.kill()
        runner.wait()
        runner.stdout.close()
    assert len(pids) >= 3, "holder, keeper and worker lived"
    end = time.monotonic() + 20
    while time.monotonic() < end:
        alive = [pid for pid in pids if os.path.exists(f"/proc/{pid}")]
        bound = [file for file in loops.all_backing_files().values() if file.startswith(str(tmp_path))]
        if not alive and not bound:
            return
        time.sleep(0.05)
    pytest.fail(f"left behind: processes {alive}, loop devices {bound}")


def test_device_of_a_dead_daemon_is_cleared(tmp_path):
    """A FUSE + loop device is left alone while somebody serves it, and taken away with its node when nobody does."""
    if missing():
        pytest.skip(missing())
    with NullPath(build_server(tmp_path), "h8-dead", 16 * MIB) as device:
        assert loops.read_device(device.path, 0, 4096) == bytes(4096)
        assert not loops.clear_dead_mars_loop(device.path), "it is alive"
        os.kill(device.server, signal.SIGKILL)
        os.waitid(os.P_PID, device.server, os.WEXITED | os.WNOWAIT)
        assert loops.clear_dead_mars_loop(device.path)
        assert not loops.backing_file(device.path) and not os.path.exists(device.path)


def test_interrupted_demo_cleans_up(tmp_path):
    """Ctrl-C in the middle: exit 130, no host, mount, device or folder stays."""
    if missing():
        pytest.skip(missing())
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    stand_in = Path(__file__).parent / "stand_in.py"
    run = subprocess.Popen([sys.executable, str(TOP / "tools/demo.py"), f"--pyz={stand_in}"], stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    try:
        for line in run.stdout:
            if "resource data" in line:
                break
        os.killpg(run.pid, signal.SIGINT)
        _, err = run.communicate(timeout=60)
    finally:
        run.kill()
        run.wait()
    assert run.returncode == 130 and "interrupted" in err, err
    assert os.listdir(tmp_path) == []
    assert not [file for file in loops.all_backing_files().values() if file.startswith(str(tmp_path))]


def test_cluster_that_cannot_be_made_is_cleaned_up(tmp_path):
    """An error half way (no such pyz) leaves nothing."""
    if missing():
        pytest.skip(missing())
    with pytest.raises(HostError, match="make pyz"):
        Cluster(["a"], tmp_path / "none.pyz", where=str(tmp_path), **SMALL)
    assert os.listdir(tmp_path) == []
    assert not [file for file in loops.all_backing_files().values() if file.startswith(str(tmp_path))]


def test_devices_are_compared_without_reading_holes(tmp_path):
    """5 TiB sparse files: holes equal zeros, one different byte is found at its place, sizes count."""
    a, b = tmp_path / "a", tmp_path / "b"
    size = 5 << 40
    for file in (a, b):
        with open(file, "wb") as made:
            made.truncate(size)
            made.seek(4 << 40)
            made.write(b"same" * 4096)
    assert loops.first_difference(a, b) is None
    with open(a, "r+b") as file:
        file.seek(3 << 40)
        file.write(bytes(8192))
    assert loops.first_difference(a, b) is None, "zeros and a hole are the same"
    with open(b, "r+b") as file:
        file.seek((5 << 40) - 7)
        file.write(b"x")
    assert loops.first_difference(a, b) == (5 << 40) - 7
    with open(a, "r+b") as file:
        file.seek((3 << 40) + 5)
        file.write(b"y")
    assert loops.first_difference(a, b) == (3 << 40) + 5
    b.unlink()
    b.write_bytes(bytes(4096))
    assert loops.first_difference(a, b) == 4096
    assert loops.data_bytes(a) < MIB


def test_ledger_finds_lost_and_mixed_writes(machinery, tmp_path):
    """The writer's own device passes; a lost, an old, a torn and a misplaced block are each found."""
    host = machinery("a", **SMALL)["a"]
    notes = tmp_path / "ledger"
    blocks = 64
    host.run([sys.executable, write_ledger.__file__, host.data_device, str(notes), str(blocks), "2", "7", "500"])
    data = host.read_bytes(host.data_device, 0, blocks * 4096)
    books = write_ledger.ledgers(notes)
    assert write_ledger.check_nothing_lost(data, books) == 1000
    assert all(book.flushed == book.acknowledged == 500 for book in books)
    lost = bytearray(data)
    lost[4096:8192] = bytes(4096)
    old = bytearray(data)
    old[0:4096] = write_ledger.content(1, 0)
    torn = bytearray(data)
    torn[100:612] = bytes(512)
    other = bytearray(data)
    other[8192:12288] = data[0:4096]
    for broken, words in ((lost, "may only hold"), (old, "may only hold"), (torn, "mixture"), (other, "mixture")):
        with pytest.raises(AssertionError, match=words):
            write_ledger.check_nothing_lost(bytes(broken), books)


def test_ledger_finds_what_is_no_prefix(tmp_path):
    """A device that has a later write but lacks an earlier one is not a state that ever was."""
    (tmp_path / "thread-0").write_text("W 1 0\nA 1 0\nW 2 1\nA 2 1\nW 3 0\nA 3 0\nS 3\nW 4 2\n")
    book = write_ledger.ledgers(tmp_path)[0]

    def image(*seqs: int) -> bytes:
        return b"".join(write_ledger.content(seq, block) if seq else bytes(4096) for block, seq in enumerate(seqs))

    assert write_ledger.check_prefix(image(0, 0, 0), book) == 0
    assert write_ledger.check_prefix(image(1, 2, 0), book) == 2
    assert write_ledger.check_prefix(image(3, 2, 0), book) == 3
    assert write_ledger.check_nothing_lost(image(3, 2, 0), [book]) == 3
    assert write_ledger.check_nothing_lost(image(3, 2, 4), [book]) == 3
    with pytest.raises(AssertionError, match="not a prefix"):
        write_ledger.check_prefix(image(3, 0, 0), book)
    with pytest.raises(AssertionError, match="not a prefix"):
        write_ledger.check_prefix(image(1, 2, 4), book)
