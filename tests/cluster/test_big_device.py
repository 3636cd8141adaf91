"""A data device of 5 TiB (sparse files): beyond 4 TiB everything works, nothing costs space or time by size alone."""

import os
import signal
from pathlib import Path

import write_ledger

from tools import loops, scenario
from tools.hosts import Host

SIZE = 5 << 40
MIB, GIB = 1 << 20, 1 << 30
END = "import os,sys; fd=os.open('/dev/mars/data', os.O_RDWR); os.pwrite(fd, b'end!'*1024, {0}-4096); os.fsync(fd)"


def test_five_tebibytes(pair):
    """XFS on 5 TiB, files, and the very last block: equal on the secondary (the empty start is a fake-sync)."""
    hosts = pair(data_size=SIZE)
    a, b = hosts
    assert scenario.size(a, "data") == SIZE
    b.run("marsadm pause-sync data")
    b.run("marsadm fake-sync data")
    b.run("marsadm resume-sync data")
    b.wait(lambda: scenario.fully_synced(b, "data"), 60, "fake-sync")
    scenario.make_file_system(a, "data", "xfs")
    a.run(["sh", "-c", "mkdir /mnt/d; for i in $(seq 50); do head -c 100000 /dev/urandom > /mnt/d/$i; done"])
    a.run("umount /mnt")
    a.run(["python3", "-c", END.format(SIZE)])
    assert a.read_bytes("/dev/mars/data", SIZE - 4096, 4096) == b"end!" * 1024
    scenario.wait_equal(a, b, "data", timeout=300)
    assert b.read_bytes(b.data_device, SIZE - 4096, 4096) == b"end!" * 1024
    assert loops.data_bytes(b.data.file) < 8 << 30, "a whole-device discard was replayed as written zeros"
    scenario.hand_over(a, b, "data")
    assert b.read_bytes("/dev/mars/data", SIZE - 4096, 4096) == b"end!" * 1024
    b.run("mount -t xfs /dev/mars/data /mnt")
    assert len(list(b.path("/mnt/d").iterdir())) == 50
    b.run("umount /mnt")
    scenario.wait_caught_up(b, a, "data")
    verify_is_flat(a)
    scrub_goes_on(a)


def memory(*hosts: Host) -> int:
    """Bytes of the workers."""
    found = [Path(f"/proc/{host.worker()}/smaps_rollup").read_text().split("Pss:")[1].split()[0] for host in hosts]
    return sum(map(int, found)) * 1024


def compared(host: Host) -> int:
    """How far the verify of this host is."""
    return int(host.link(f"resource-data/actual-{host.name}/verify-pos") or 0)


def verify_is_flat(host: Host) -> None:
    """Memory does not grow with what is compared."""
    child = host.popen("marsadm verify data", stdout=-1, stderr=-1)
    host.wait(lambda: compared(host) > 3 * GIB, 120, "progress of the verify")  # all its buffers are made by then
    before, at = memory(host), compared(host)
    host.wait(lambda: compared(host) > at + 4 * GIB, 120, "more progress")
    assert memory(host) < before + 16 * MIB
    os.kill([pid for pid, words in host.pids().items() if "verify" in words][-1], signal.SIGINT)
    assert child.wait(60) == 130
    child.communicate()


def scrub_goes_on(host: Host) -> None:
    """A scrub goes on where it was when its worker dies, far behind 4 GiB too."""
    host.path("/run/mars/sys/verify_scrub_kb").write_text(f"{8 << 20}\n")
    host.wait(lambda: host.link("resource-data/actual-a/verify-state") == "running" and compared(host) > GIB, 120,
              "progress of the scrub")
    place = host.path("/mars/resource-data/.scrub")
    host.wait(place.exists, 60, "the place of the scrub")
    host.kill9_worker()
    host.wait(lambda: host.link("resource-data/actual-a/verify-state") == "stopped", 60, "a new worker")
    host.wait(lambda: host.link("resource-data/actual-a/verify-state") == "running", 60, "the scrub to go on")
    assert compared(host) > 4 * GIB


def test_sync_starts_on_five_tebibytes_and_pauses(pair):
    """The full sync of 5 TiB makes progress, pauses and resumes where it was; it never goes back (rule 15). Zeros are
    freed on the target, memory stays flat, the time that is left is told."""
    hosts = pair(data_size=SIZE)
    a, b = hosts
    b.wait(lambda: scenario.synced(b, "data") > 0, 120, "progress of the sync")
    b.run("marsadm pause-sync data")
    b.wait(lambda: b.link("resource-data/actual-b/is-syncing") == "0", 60, "the sync to pause")
    paused = scenario.synced(b, "data")
    assert 0 < paused < SIZE and paused % write_ledger.BLOCK == 0
    noise = paused // GIB + 1
    b.run(["dd", "if=/dev/urandom", f"of={b.data_device}", "bs=1M", "count=64", f"seek={noise * 1024}", "oflag=direct",
           "conv=notrunc", "status=none"])
    assert loops.data_bytes(b.data.file) >= 64 * MIB
    b.run("marsadm resume-sync data")
    b.wait(lambda: scenario.synced(b, "data") > (noise + 1) * GIB, 120, "more progress")
    assert loops.data_bytes(b.data.file) < 8 * MIB, "zeros take room on the target"
    before, at = memory(a, b), scenario.synced(b, "data")
    b.wait(lambda: scenario.synced(b, "data") > at + 8 * GIB, 120, "more progress")
    assert memory(a, b) < before + 16 * MIB
    rate = int(b.link("resource-data/actual-b/amount-sync_rate"))
    told = int(b.run("marsadm view-sync-remain data").stdout)
    assert 0.5 < told * rate * 1024 / (SIZE - scenario.synced(b, "data")) < 2
