"""`kill -9` of worker and keeper, on the primary and on the secondary, in the middle of writes.

The ledger knows every acknowledged write: none may be missing on the primary (a worker's death loses nothing
acknowledged, rule 1), and the secondary must end with the same bytes.
"""

import errno

import write_ledger
from running_writer import RunningWriter

from tools import scenario


def check_all(hosts, writer: RunningWriter, blocks: int) -> int:
    """Nothing acknowledged is lost on the device, on both disks, and both disks are equal."""
    a, b = hosts
    length = blocks * write_ledger.BLOCK
    books = writer.ledgers()
    count = write_ledger.check_nothing_lost(a.read_bytes("/dev/mars/data", 0, length), books)
    scenario.wait_equal(a, b, "data")
    for host in (a, b):
        write_ledger.check_nothing_lost(host.read_bytes(host.data_device, 0, length), books)
    return count


def test_worker_of_the_primary_is_killed(pair, tmp_path):
    """Five kills under four writing threads: no write fails, nothing acknowledged is lost (rules 1, 3, 11)."""
    hosts = pair()
    a, b = hosts
    with RunningWriter(a, "/dev/mars/data", tmp_path / "ledger", threads=4) as writer:
        for _ in range(5):
            writer.go_on()
            dead = a.kill9_worker()
            a.wait(lambda dead=dead: a.worker() not in (None, dead), 60, "another worker")
        writer.go_on()
        assert writer.stop() == 0, "a killed worker must not be an error of the application"
    assert check_all(hosts, writer, 4096) >= 1200


def test_worker_of_the_secondary_is_killed(pair, tmp_path):
    """Kills on the secondary while it syncs and replays: the primary does not notice, the secondary ends equal."""
    hosts = pair()
    a, b = hosts
    with RunningWriter(a, "/dev/mars/data", tmp_path / "ledger", threads=2) as writer:
        for _ in range(5):
            writer.go_on()
            dead = b.kill9_worker()
            b.wait(lambda dead=dead: b.worker() not in (None, dead), 60, "another worker")
        writer.go_on()
        assert writer.stop() == 0
    assert check_all(hosts, writer, 4096) >= 1200


def test_keeper_of_the_primary_is_killed(pair, tmp_path):
    """With the keeper dead the device fails (EIO); after `marsd start` everything acknowledged is there again."""
    hosts = pair()
    a, b = hosts
    with RunningWriter(a, "/dev/mars/data", tmp_path / "ledger", threads=2) as writer:
        writer.go_on(500)
        a.kill9_keeper()
        a.wait(lambda: all(book.error for book in writer.ledgers()), 60, "the writers' errors")
        assert writer.stop() == 1
    assert all(f"[Errno {errno.EIO}]" in book.error for book in writer.ledgers())
    a.wait(lambda: a.pids() == {}, 30, "the end of the worker without its keeper")
    a.marsd_start()
    scenario.wait_device(a, "data")
    assert check_all(hosts, writer, 4096) >= 500
    with RunningWriter(a, "/dev/mars/data", tmp_path / "again", threads=1, seed=2, blocks=64) as again:
        again.go_on(100)
        assert again.stop() == 0
    scenario.wait_equal(a, b, "data")


def test_keeper_of_the_secondary_is_killed(pair, tmp_path):
    """The secondary loses both processes under load; after `marsd start` it goes on and ends equal."""
    hosts = pair()
    a, b = hosts
    with RunningWriter(a, "/dev/mars/data", tmp_path / "ledger", threads=2) as writer:
        writer.go_on(500)
        b.kill9_keeper()
        b.wait(lambda: b.pids() == {}, 30, "the end of the worker without its keeper")
        writer.go_on(500)
        b.marsd_start()
        writer.go_on(200)
        assert writer.stop() == 0
    assert check_all(hosts, writer, 4096) >= 1200


def test_both_workers_are_killed_at_once(pair, tmp_path):
    """Primary and secondary lose their workers in the same moment, three times."""
    hosts = pair()
    a, b = hosts
    with RunningWriter(a, "/dev/mars/data", tmp_path / "ledger", threads=2) as writer:
        for _ in range(3):
            writer.go_on()
            dead = {host.name: host.kill9_worker() for host in hosts}
            for host in hosts:
                old = dead[host.name]
                host.wait(lambda host=host, old=old: host.worker() not in (None, old), 60, "another worker")
        writer.go_on()
        assert writer.stop() == 0
    assert check_all(hosts, writer, 4096) >= 800
