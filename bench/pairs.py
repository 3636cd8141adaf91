"""A primary and its secondary: replay, full sync, lag, and what a slow line costs the application.

Both hosts share one disk and the processors here: a secondary that replays takes from the primary what it would not
take on a machine of its own.
"""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.rig import DEVICE, MIB, RESOURCE, Bench, Group, Options, fill, fio, memory, process_time
from tools import loops, scenario
from tools.hosts import Cluster, Host, HostError


@contextmanager
def pair(options: Options) -> Iterator[Bench]:
    """Two hosts, in sync."""
    with Cluster(["a", "b"], Path(options.pyz).resolve(), options.size, mars_size=16384 * MIB) as cluster:
        a, b = cluster
        twin = a.add_device("twin.img", options.size).path
        for host, device in ((a, a.data_device), (b, b.data_device), (a, twin)):
            fill(host, device)
        scenario.form_cluster(cluster)
        scenario.create_resource(a, RESOURCE)
        scenario.join_resource(b, RESOURCE)
        scenario.wait_equal(a, b, RESOURCE, 600)
        yield Bench(cluster, options, {"raw": twin, "mars": a.mars_device(RESOURCE)})


def _replay(bench: Bench, name: str, goal: str, more: tuple[str, ...] = ()) -> None:
    """A log is written while the secondary's replay is paused; then how fast it is replayed."""
    bench.a.run(f"marsadm log-rotate {RESOURCE}")
    bench.quiet()
    bench.b.run(f"marsadm pause-replay {RESOURCE}")
    start_at = scenario.backlog(bench.a, bench.b, RESOURCE)[1]
    began = time.monotonic()
    found = fio(bench.a, bench.sides["mars"], "randwrite", "4k", 32, 3 * bench.options.seconds, 77, more=more)
    writing = time.monotonic() - began
    bench.a.wait(lambda: scenario.settled(bench.a, RESOURCE), 300, "write-back to end")
    both = time.monotonic() - began
    wrote = scenario.backlog(bench.a, bench.b, RESOURCE)[1] - start_at
    began = time.monotonic()
    bench.b.run(f"marsadm resume-replay {RESOURCE}")
    scenario.wait_caught_up(bench.a, bench.b, RESOURCE, 600)
    replaying = time.monotonic() - began
    used = memory(bench.b.worker()) + memory(bench.b.keeper())
    bench.add(name, wrote / replaying / 1e6, "MB/s of log",
              f"written at {wrote / writing / 1e6:.0f} MB/s, {found.iops:.0f} IOPS (with its write-back: "
              f"{wrote / both / 1e6:.0f} MB/s)", writing / replaying, goal)
    bench.add(f"{name}: resident memory of the secondary's marsd", used / MIB, "MiB",
              "100 MiB + shadow_limit_mb 64 + ring_mb 32", goal="<= 196")


def replay_rate(bench: Bench) -> None:
    """Replay of random writes all over the device."""
    _replay(bench, "replay rate", ">= 1.5")


def replay_overwrites(bench: Bench) -> None:
    """Replay of a log that overwrites 64 MiB again and again: newest wins."""
    _replay(bench, "replay rate, overwrite-heavy log", ">= 3", ("--size=64m",))


def received(host: Host) -> int:
    """Bytes that came in over the host's line."""
    return int(host.path("/sys/class/net/eth0/statistics/rx_bytes").read_text())


def sync_rate(bench: Bench) -> None:
    """Full sync of equal data, against reading both devices at the same time; and what went over the line."""
    bench.a.run(f"marsadm log-rotate {RESOURCE}")           # a log that is fetched anew is no part of the sync
    bench.quiet()
    size = scenario.size(bench.a, RESOURCE)
    times, lines = [], []
    for _ in range(bench.options.rounds):
        before, began = received(bench.b), time.monotonic()
        bench.b.run(f"marsadm invalidate {RESOURCE}")
        bench.b.wait(lambda: not scenario.fully_synced(bench.b, RESOURCE), 60, "the sync to begin")
        scenario.wait_caught_up(bench.a, bench.b, RESOURCE, 600)
        times.append(time.monotonic() - began)
        lines.append(received(bench.b) - before)
    reads = []
    for _ in range(bench.options.rounds):
        began = time.monotonic()
        readers = [host.popen(["dd", f"if={device}", "of=/dev/null", "bs=1M", "iflag=direct", "status=none"])
                   for host, device in ((bench.a, bench.sides["raw"]), (bench.b, bench.b.data_device))]
        if any([reader.wait(300) for reader in readers]):
            raise HostError("reading the devices failed")
        reads.append(time.monotonic() - began)
    ours, reading = statistics.median(times), statistics.median(reads)
    bench.add("fast full sync of equal data", size / ours / 1e6, "MB/s",
              f"reading both devices: {size / reading / 1e6:.0f} MB/s", reading / ours, ">= 0.8")
    bench.add("fast full sync of equal data, bytes on the line", statistics.median(lines), "bytes",
              f"size of the device: {size} bytes", statistics.median(lines) / size, "<= 0.001")


def lag(bench: Bench) -> None:
    """From the acknowledged, flushed write on the primary to the same bytes on the secondary's disk."""
    bench.quiet()
    writer = ("import mmap,os,sys,time; fd=os.open(sys.argv[1],os.O_RDWR|os.O_DIRECT); m=mmap.mmap(-1,4096)\n"
              "for line in sys.stdin:\n"
              " m[:]=line.strip().encode().ljust(4096,b'.'); os.pwrite(fd,m,0); os.fdatasync(fd)\n"
              " print('done',flush=True)")
    child = bench.a.popen(["python3", "-c", writer, DEVICE], stdin=-1, stdout=-1)
    found = []
    try:
        for number in range(200):
            mark = f"mark-{number}-{time.monotonic_ns()}"
            child.stdin.write(mark + "\n")
            child.stdin.flush()
            child.stdout.readline()
            began = time.monotonic()
            while not loops.read_device(bench.b.data_device, 0, 4096).startswith(mark.encode() + b"."):
                if time.monotonic() - began > 60:
                    raise HostError(f"a write does not arrive\n{bench.cluster.dump()}")
                time.sleep(0.001)
            found.append((time.monotonic() - began) * 1000)
    finally:
        child.communicate()
    found.sort()
    bench.add("lag, p50", statistics.median(found), "ms", goal="<= 50")
    bench.add("lag, p99", found[int(len(found) * 0.99) - 1], "ms", goal="<= 500")


def slow_line(bench: Bench) -> None:
    """The application's rate with the line at 20 Mbit/s, and without any line, in turns."""
    slow, without = [], []
    for number in range(bench.options.rounds):
        bench.quiet()
        bench.cluster.net.isolate("b")
        without.append(fio(bench.a, bench.sides["mars"], "randwrite", "4k", 32, bench.options.seconds, number).iops)
        bench.cluster.net.heal_all()
        bench.quiet()
        bench.cluster.net.shape("b", "20mbit")
        slow.append(fio(bench.a, bench.sides["mars"], "randwrite", "4k", 32, bench.options.seconds, number).iops)
        bench.cluster.net.unshape("b")
    ours, free = statistics.median(slow), statistics.median(without)
    bench.add("4k random write while the line has 20 Mbit/s", ours, "IOPS", f"without any line: {free:.0f} IOPS",
              ours / free, ">= 0.95")


def idle_secondary(bench: Bench) -> None:
    """Processor time and memory of the secondary's marsd with one resource and nothing to do."""
    bench.quiet()
    time.sleep(3)
    pids = [bench.b.worker(), bench.b.keeper()]
    before, began = sum(map(process_time, pids)), time.monotonic()
    time.sleep(10)
    spent = sum(map(process_time, pids)) - before
    bench.add("idle marsd, 1 resource (secondary), processor", spent / (time.monotonic() - began) * 100, "% of a core",
              goal="<= 1")
    bench.add("idle marsd, 1 resource (secondary), resident memory", sum(map(memory, pids)) / MIB, "MiB",
              goal="<= 100")


GROUP = Group("pair", pair, (replay_rate, replay_overwrites, sync_rate, lag, slow_line, idle_secondary))

MANY = 100


@contextmanager
def many(options: Options) -> Iterator[Bench]:
    """A host with many small resources, and one that is secondary of all of them."""
    with Cluster(["a", "b"], Path(options.pyz).resolve(), 16 * MIB, mars_size=8192 * MIB) as cluster:
        a, b = cluster
        scenario.form_cluster(cluster)
        for number in range(MANY):
            for host in (a, b):
                host.add_device(f"data{number}.img", 4 * MIB)
        for number in range(MANY):
            name = f"r{number:03d}"
            scenario.create_resource(a, name, a._loops[-MANY + number].path)
            scenario.join_resource(b, name, b._loops[-MANY + number].path)
            b.wait(lambda name=name: scenario.fully_synced(b, name), 60, f"the sync of {name}")
            a.run(f"marsadm secondary {name}")          # a hundred primaries would need a hundred rings
        yield Bench(cluster, options, {})


def idle_many(bench: Bench) -> None:
    """Processor time and memory of a marsd that is secondary of 100 resources with nothing to do."""
    time.sleep(5)
    pids = [bench.b.worker(), bench.b.keeper()]
    before, began = sum(map(process_time, pids)), time.monotonic()
    time.sleep(20)
    spent = sum(map(process_time, pids)) - before
    bench.add(f"idle marsd, {MANY} resources, processor", spent / (time.monotonic() - began) * 100, "% of a core",
              goal="<= 1")
    bench.add(f"idle marsd, {MANY} resources, resident memory", sum(map(memory, pids)) / MIB, "MiB", goal="<= 100")


CROWD = Group("many", many, (idle_many,), extra=True)
