"""Full sync and verify beside what else could do their work: reading the disks, rsync, and a plain copy over the line.

All sides of a comparison run between the same two hosts, over the same line and on the same devices, in turns. The
clock of a sync runs from the moment when the replica counts as not synced to the moment when it is synced, durable and
consistent again; that of rsync and dd ends when all is durable as well. Both hosts share one disk and the processors.

rsync: a daemon on the source, block devices as files (--copy-devices, --write-devices), --inplace, deltas on.
A far line is `tools/delay.py`; its other side is the same detour without delay, for the detour costs processor time.
"""

import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.pairs import received
from bench.rig import MIB, RESOURCE, Bench, Group, Options, clock, fio, memory
from tools import scenario
from tools.delay import Delay
from tools.hosts import Cluster, Host, HostError

BLOCK = 4096
FAR_S = 0.025
PORT = 9873
RSYNCD = f"""use chroot = no
port = {PORT}
uid = root
gid = root
refuse options = !copy-devices
[dev]
path = /dev
"""
CHANGE = """import mmap, os, random, sys
device, blocks, count, seed = sys.argv[1], *map(int, sys.argv[2:])
numbers = random.Random(seed)
fd, page = os.open(device, os.O_RDWR | os.O_DIRECT), mmap.mmap(-1, 4096)
for block in sorted(numbers.sample(range(blocks), count)):
    page[:] = numbers.randbytes(4096)
    os.pwrite(fd, page, block * 4096)
os.fsync(fd)
"""
SERVE = """import socket, subprocess, sys
listener = socket.create_server(("0.0.0.0", 9874))
print("ready", flush=True)
line, _ = listener.accept()
subprocess.run(["dd", "if=" + sys.argv[1], "bs=1M", "iflag=direct", "status=none"], stdout=line, check=True)
"""
TAKE = """import socket, subprocess, sys
line = socket.create_connection((sys.argv[1], 9874))
subprocess.run(["dd", "of=" + sys.argv[2], "bs=1M", "iflag=fullblock", "oflag=direct", "conv=notrunc,fdatasync",
                "status=none"], stdin=line, check=True)
"""
TLS = """import mmap, os, socket, ssl, sys
side, address, device = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if side == "send" else ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.minimum_version = False, ssl.TLSVersion.TLSv1_3
context.load_cert_chain("/etc/mars/tls/host.crt", "/etc/mars/tls/host.key")
context.load_verify_locations("/etc/mars/tls/ca.crt")
context.verify_mode = ssl.CERT_REQUIRED
fd, room = os.open(device, (os.O_RDONLY if side == "send" else os.O_WRONLY) | os.O_DIRECT), mmap.mmap(-1, 1 << 20)
view, at = memoryview(room), 0
if side == "send":
    listener = socket.create_server((address, 9875))
    print("ready", flush=True)
    line = context.wrap_socket(listener.accept()[0], server_side=True)
    while got := os.preadv(fd, [room], at):
        line.sendall(view[:got])
        at += got
    line.shutdown(socket.SHUT_WR)
else:
    line = context.wrap_socket(socket.create_connection((address, 9875)))
    while True:
        have = 0
        while have < len(view) and (got := line.recv_into(view[have:])):
            have += got
        if not have:
            break
        at += os.pwrite(fd, view[:have], at)
    os.fdatasync(fd)
"""
_seed = iter(range(1000, 10**9))


@contextmanager
def pair(options: Options) -> Iterator[Bench]:
    """Two hosts, in sync, all blocks written with noise."""
    with Cluster(["a", "b"], Path(options.pyz).resolve(), options.size, mars_size=8192 * MIB) as cluster:
        a, b = cluster
        for host in cluster:
            noise(host, 1)
        scenario.form_cluster(cluster)
        scenario.create_resource(a, RESOURCE)
        scenario.join_resource(b, RESOURCE)
        scenario.wait_equal(a, b, RESOURCE, 600)
        (b.folder / "rsyncd.conf").write_text(RSYNCD)
        yield Bench(cluster, options, {"mars": a.mars_device(RESOURCE)})


# -- what differs, and those who make it equal

def noise(host: Host, seed: int) -> None:
    """All blocks of the data device, behind marsd's back where it runs; equal for equal seeds."""
    host.run(["fio", "--name=noise", f"--filename={host.data_device}", "--rw=write", "--bs=1m", "--iodepth=4",
              "--direct=1", "--ioengine=libaio", "--refill_buffers", f"--randseed={seed}", "--end_fsync=1",
              "--output-format=json"], timeout=600)


def nothing(bench: Bench) -> None:
    """Equal data."""


def one_percent(bench: Bench) -> None:
    """1 % of the target's blocks, anywhere."""
    blocks = bench.options.size // BLOCK
    bench.b.run(["python3", "-c", CHANGE, bench.b.data_device, str(blocks), str(blocks // 100), str(next(_seed))],
                timeout=600)


def everything(bench: Bench) -> None:
    """Every block of the target."""
    noise(bench.b, next(_seed))


def rest(bench: Bench) -> None:
    """Nothing of the preparation is still on its way."""
    bench.a.run(f"marsadm log-rotate {RESOURCE}")           # a log that is fetched anew is no part of the sync
    bench.quiet()


def by_mars(bench: Bench) -> float:
    """Seconds of a full sync."""
    b = bench.b
    child = b.popen(f"marsadm invalidate {RESOURCE}", stdout=subprocess.DEVNULL)
    clock(lambda: not scenario.fully_synced(b, RESOURCE), 60)
    took = clock(lambda: scenario.fully_synced(b, RESOURCE), 600)
    if child.wait(60):
        raise HostError("marsadm invalidate failed")
    return took


def by_rsync(bench: Bench) -> float:
    """Seconds of rsync."""
    a, b = bench.a, bench.b
    for host in (a, b):
        host.run(["blockdev", "--flushbufs", host.data_device])
    daemon = a.popen(["rsync", "--daemon", "--no-detach", f"--config={b.folder}/rsyncd.conf"])
    try:
        time.sleep(0.5)
        began = time.monotonic()
        b.run(["rsync", "--copy-devices", "--write-devices", "--inplace", "--no-whole-file", "--ignore-times",
               f"rsync://{a.ip}:{PORT}{a.data_device}", b.data_device], timeout=600)
        b.run(["blockdev", "--flushbufs", b.data_device])
        return time.monotonic() - began
    finally:
        daemon.terminate()
        daemon.wait(20)


def by_dd(bench: Bench) -> float:
    """Seconds of dd on one host, a TCP connection, dd on the other."""
    server = bench.a.popen(["python3", "-c", SERVE, bench.a.data_device], stdout=subprocess.PIPE)
    if server.stdout.readline().strip() != "ready":
        raise HostError("dd cannot be served")
    began = time.monotonic()
    bench.b.run(["python3", "-c", TAKE, bench.a.ip, bench.b.data_device], timeout=600)
    took = time.monotonic() - began
    if server.wait(60):
        raise HostError("dd failed")
    return took


def by_tls(bench: Bench) -> float:
    """Seconds of the same copy as by_dd over TLS: blocks of 1 MiB, the certificates and the library of marsd."""
    words = ["python3", "-c", TLS]
    server = bench.a.popen([*words, "send", bench.a.ip, bench.a.data_device], stdout=subprocess.PIPE)
    if server.stdout.readline().strip() != "ready":
        raise HostError("the copy cannot be served")
    began = time.monotonic()
    bench.b.run([*words, "take", bench.a.ip, bench.b.data_device], timeout=600)
    took = time.monotonic() - began
    if server.wait(60):
        raise HostError("the copy over TLS failed")
    return took


def by_reading(bench: Bench) -> float:
    """Seconds of reading both devices at once, as a comparison has to."""
    began = time.monotonic()
    readers = [host.popen(["dd", f"if={host.data_device}", "of=/dev/null", "bs=4M", "iflag=direct", "status=none"])
               for host in (bench.a, bench.b)]
    if any([reader.wait(600) for reader in readers]):
        raise HostError("reading the devices failed")
    return time.monotonic() - began


Way = Callable[[Bench], float]


def rounds(bench: Bench) -> int:
    """Not more than two, or the group would last longer than three minutes on a machine that rests."""
    return min(2, bench.options.rounds)


def in_turns(bench: Bench, differ: Callable[[Bench], None], *ways: Way) -> list[tuple[float, float]]:
    """The same work by each way, in turns: medians of (MB/s of the device, bytes on the line)."""
    found: list[list[tuple[float, int]]] = [[] for _ in ways]
    for _ in range(rounds(bench)):
        for way, results in zip(ways, found, strict=True):
            differ(bench)
            rest(bench)
            before = received(bench.b)
            took = way(bench)
            results.append((took, received(bench.b) - before))
    return [(bench.options.size / statistics.median(took for took, _ in results) / 1e6,
             statistics.median(line for _, line in results)) for results in found]


# -- measurements

def equal_data(bench: Bench) -> None:
    """Full sync of equal data, and verify, against reading both devices."""
    (ours, line), (reading, _), (verify, _) = in_turns(bench, nothing, by_mars, by_reading, by_verify)
    bench.add("sync, equal data", ours, "MB/s", f"reading both devices: {reading:.0f} MB/s", ours / reading, ">= 0.8")
    bench.add("sync, equal data, bytes on the line", line, "bytes", f"device: {bench.options.size} bytes",
              line / bench.options.size, "<= 0.001")
    bench.add("verify", verify, "MB/s", f"reading both devices: {reading:.0f} MB/s, sync: {ours:.0f} MB/s",
              verify / reading, ">= 0.8")


def by_verify(bench: Bench) -> float:
    """Seconds of a verify, without the start of marsadm."""
    b = bench.b
    state = f"resource-{RESOURCE}/actual-b/verify-state"
    child = b.popen(f"marsadm verify {RESOURCE}", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    clock(lambda: b.link(state) == "running", 60)
    took = clock(lambda: b.link(state) != "running", 600)
    if child.wait(60) or b.link(state) != "equal":
        raise HostError(f"the verify found differences\n{bench.cluster.dump()}")
    return took


def changed_data(bench: Bench) -> None:
    """1 % changed at random blocks: sync, rsync --inplace and dd | dd over the same line."""
    (ours, line), (rsync, rsync_line), (dd, _) = in_turns(bench, one_percent, by_mars, by_rsync, by_dd)
    bench.add("sync, 1 % of the blocks differ", ours, "MB/s", f"rsync --inplace: {rsync:.0f} MB/s", ours / rsync,
              ">= 2")
    bench.add("sync, 1 % of the blocks differ, against dd | dd", ours, "MB/s", f"dd | dd: {dd:.0f} MB/s", ours / dd)
    bench.add("sync, 1 % of the blocks differ, bytes on the line", line, "bytes",
              f"device: {bench.options.size} bytes, rsync: {rsync_line:.0f} bytes", line / bench.options.size,
              "<= 0.03")


def different_data(bench: Bench) -> None:
    """All blocks differ: sync and dd | dd, which is what disk and line give; and the same copy over TLS."""
    (ours, _), (dd, _), (tls, _) = in_turns(bench, everything, by_mars, by_dd, by_tls)
    bench.add("sync, all blocks differ", ours, "MB/s", f"dd | dd over the same line: {dd:.0f} MB/s", ours / dd,
              ">= 0.8")
    bench.add("sync, all blocks differ, against a copy over TLS", ours, "MB/s",
              f"blocks of 1 MiB, read, sent, written one after the other: {tls:.0f} MB/s", ours / tls)


def far_line(bench: Bench) -> None:
    """At 50 ms there and back against the same detour without delay."""
    for name, differ in (("equal data", nothing), ("1 % of the blocks differ", one_percent)):
        found = {}
        for seconds in (0.0, FAR_S):
            with Delay(bench.cluster, "a", "b", seconds):
                found[seconds] = in_turns(bench, differ, by_mars)[0][0]
        bench.add(f"sync at 50 ms, {name}", found[FAR_S], "MB/s", f"without delay: {found[0.0]:.0f} MB/s",
                  found[FAR_S] / found[0.0], ">= 0.9")


def application(bench: Bench) -> None:
    """4k random write on the primary while a sync runs, against the same without; in turns."""
    for name, differ in (("equal data", nothing), ("all blocks differ", everything)):
        alone, beside, synced = [], [], []
        for number in range(rounds(bench)):
            differ(bench)
            rest(bench)
            alone.append(write_rate(bench, number))
            rest(bench)
            bench.b.run(f"marsadm invalidate {RESOURCE}")
            before = scenario.synced(bench.b, RESOURCE)
            beside.append(write_rate(bench, number))
            synced.append((scenario.synced(bench.b, RESOURCE) - before) / bench.options.seconds / 1e6)
            scenario.wait_caught_up(bench.a, bench.b, RESOURCE, 600)
        ours, free = statistics.median(beside), statistics.median(alone)
        bench.add(f"4k random write on the primary while a sync runs, {name}", ours, "IOPS",
                  f"without sync: {free:.0f} IOPS; the sync went on at {statistics.median(synced):.0f} MB/s",
                  ours / free, ">= 0.9")


def write_rate(bench: Bench, seed: int) -> float:
    """IOPS of the application."""
    return fio(bench.a, bench.sides["mars"], "randwrite", "4k", 32, bench.options.seconds, seed).iops


GROUP = Group("syncs", pair, (equal_data, changed_data, different_data, far_line, application))

HUGE = 5 << 40


@contextmanager
def huge(options: Options) -> Iterator[Bench]:
    """Two hosts with 5 TiB of sparse devices; the full sync runs."""
    with Cluster(["a", "b"], Path(options.pyz).resolve(), HUGE) as cluster:
        a, b = cluster
        scenario.form_cluster(cluster)
        scenario.create_resource(a, RESOURCE)
        scenario.join_resource(b, RESOURCE)
        yield Bench(cluster, options, {})


def huge_device(bench: Bench) -> None:
    """Memory of both daemons in the course of a sync of 5 TiB."""
    b = bench.b
    b.wait(lambda: scenario.synced(b, RESOURCE) > 1 << 30, 120, "the sync to begin")
    began, first = time.monotonic(), scenario.synced(b, RESOURCE)
    seen = []
    for _ in range(10):
        time.sleep(bench.options.seconds / 2)
        seen.append(memory(bench.a.worker()) + memory(b.worker()))
    took, done = time.monotonic() - began, scenario.synced(b, RESOURCE) - first
    bench.add("sync of 5 TiB of zeros", done / took / 1e6, "MB/s", f"the whole would take {HUGE / (done / took):.0f} s")
    bench.add("sync of 5 TiB, memory of both daemons at the end", seen[-1] / MIB, "MiB",
              f"at the beginning: {seen[0] / MIB:.0f} MiB", seen[-1] / seen[0], "<= 1.05")
    told = int(b.run(f"marsadm view-sync-remain {RESOURCE}").stdout)
    found = (HUGE - scenario.synced(b, RESOURCE)) / (done / took)
    bench.add("sync of 5 TiB, remaining time as told", told, "s", f"by what was measured: {found:.0f} s", told / found)


BIG = Group("huge", huge, (huge_device,))
