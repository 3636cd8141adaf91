"""A data device of 5 TiB (sparse files): beyond 4 TiB everything works, nothing costs space or time by size alone."""

import write_ledger

from tools import loops, scenario

SIZE = 5 << 40
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


def test_sync_starts_on_five_tebibytes_and_pauses(pair):
    """The full sync of 5 TiB makes progress, pauses and resumes where it was; it never goes back (rule 15)."""
    hosts = pair(data_size=SIZE)
    b = hosts["b"]
    b.wait(lambda: scenario.synced(b, "data") > 0, 120, "progress of the sync")
    b.run("marsadm pause-sync data")
    b.wait(lambda: b.link("resource-data/actual-b/is-syncing") == "0", 60, "the sync to pause")
    paused = scenario.synced(b, "data")
    assert 0 < paused < SIZE and paused % write_ledger.BLOCK == 0
    b.run("marsadm resume-sync data")
    b.wait(lambda: scenario.synced(b, "data") > paused, 120, "more progress")
