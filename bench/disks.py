"""Other disks below: the log on a disk of its own, and disks with one arm, where every way costs milliseconds.

elsewhere: /mars lies in memory (a loop device over tmpfs), the data device and its twins on the machine's disk. Memory
is faster than any disk: what is measured is whether /dev/mars costs more than its log.

seek: the disk is the model of tests/device/armdisk.h (7200 turns a minute, 120 MiB/s, seeks of 0.5 to 16 ms, the best
of up to 32 queued requests first, no write cache) behind a loop device. The raw side writes to a part of that same
disk, while /dev/mars rests. Two set-ups: log and data are parts of one such disk, or of one each.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.null_paths import NullPath, build_server
from bench.rig import MIB, RESOURCE, Bench, Group, Options, fill, written_disk
from tools import scenario
from tools.hosts import Cluster, HostError
from tools.loops import Loop

LOG_SIZE = 2048 * MIB
DATA_SIZE = 1024 * MIB


@contextmanager
def elsewhere(options: Options) -> Iterator[Bench]:
    """/mars in memory."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="marsx-bench-")))
        loops = {}
        for name in ("data", "raw", "path"):
            loops[name] = Loop(folder / name, options.size)
            stack.callback(loops[name].close)
        mars = stack.enter_context(written_disk(7168 * MIB, "/dev/shm"))
        cluster = stack.enter_context(Cluster(["a"], Path(options.pyz).resolve(), 16 * MIB, mars_device=mars))
        a = cluster["a"]
        for loop in loops.values():
            fill(a, loop.path)
        scenario.form_cluster(cluster)
        scenario.create_resource(a, RESOURCE, loops["data"].path)
        path = stack.enter_context(NullPath(build_server(folder), "bench-path", options.size, loops["path"].path))
        yield Bench(cluster, options, {"raw": loops["raw"].path, "path": path.path, "mars": a.mars_device(RESOURCE)})


def sequential_log_elsewhere(bench: Bench) -> None:
    """1 MiB sequential write with write-back running, the log on another disk."""
    seconds = 2 * bench.options.seconds                 # the log has to fit into memory
    sides = {side: bench.run(side, "write", "1m", 4, seconds) for side in ("path", "raw", "mars")}
    ours = sides["mars"].rate
    for side, goal in (("path", ">= 0.9"), ("raw", ">= 0.9")):
        bench.add(f"1 MiB sequential write, log elsewhere, against {side}", ours, "MB/s",
                  f"{side}: {sides[side].rate:.0f} MB/s", ours / sides[side].rate, goal)
    began = time.monotonic()
    bench.quiet()
    whole = seconds + time.monotonic() - began
    bench.add("1 MiB sequential write, log elsewhere, until all is written back",
              sides["mars"].operations * 1.048576 / whole, "MB/s", f"path: {sides['path'].rate:.0f} MB/s",
              sides["mars"].operations * 1.048576 / whole / sides["path"].rate)


ELSEWHERE = Group("elsewhere", elsewhere, (sequential_log_elsewhere,))


@contextmanager
def nothing(options: Options) -> Iterator[Bench]:
    """Each measurement makes its own disks and its own host."""
    yield Bench(None, options, {})


def arm_disk(stack: ExitStack, folder: Path, server: str, name: str, sizes: dict[str, int]) -> dict[str, str]:
    """A disk with one arm, cut into parts; `stack` takes it away."""
    whole, image = sum(sizes.values()), folder / f"{name}.img"
    with open(image, "xb") as made:
        block = bytes(MIB)
        for _ in range(0, whole, MIB):
            made.write(block)
    disk = stack.enter_context(NullPath(server, f"bench-{name}", whole, str(image), arm=True))
    at, parts = 0, {}
    for part, size in sizes.items():
        loop = Loop(Path(disk.path), part=(at, size))
        stack.callback(loop.close)
        parts[part], at = loop.path, at + size
    return parts


def _seek(bench: Bench, disks: tuple[dict[str, int], ...], what: str) -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="marsx-bench-")))
        server, parts = build_server(folder), {}
        for number, sizes in enumerate(disks):
            parts |= arm_disk(stack, folder, server, f"arm{number}", sizes)
        cluster = stack.enter_context(Cluster(["a"], Path(bench.options.pyz).resolve(), 16 * MIB,
                                              mars_device=parts["log"]))
        inner = Bench(cluster, bench.options, {"raw": parts["raw"]}, bench.rows)
        scenario.form_cluster(cluster)
        scenario.create_resource(cluster["a"], RESOURCE, parts["data"])
        inner.sides["mars"] = cluster["a"].mars_device(RESOURCE)
        seconds = 4 * bench.options.seconds
        raw = inner.run("raw", "randwrite", "4k", 32, seconds)
        found = inner.run("mars", "randwrite", "4k", 32, seconds)
        name = f"4k random write, depth 32, seek-bound disk, {what}"
        inner.add(f"{name}, {seconds} s", found.iops, "IOPS",
                  f"raw: {raw.iops:.0f} IOPS", found.iops / raw.iops, ">= 2")
        inner.add(f"{name}, slowest write", found.slowest_us / 1e6, "s", f"raw: {raw.slowest_us / 1e6:.2f} s", None,
                  "<= 1")
        began = time.monotonic()
        try:
            inner.quiet(90)
        except HostError:
            print("-------- not all is written back after 90 s", flush=True)
            return
        whole = seconds + time.monotonic() - began
        inner.add(f"{name}, until all is written back", found.operations / whole, "IOPS",
                  f"raw: {raw.iops:.0f} IOPS", found.operations / whole / raw.iops)


def seek_one_disk(bench: Bench) -> None:
    """4k random write on a disk with one arm, log and data on the same one."""
    _seek(bench, ({"log": LOG_SIZE, "data": DATA_SIZE // 2, "raw": DATA_SIZE // 2},), "log on the same disk")


def seek_own_disk(bench: Bench) -> None:
    """4k random write on a disk with one arm, the log on another one of the same kind."""
    _seek(bench, ({"log": LOG_SIZE}, {"data": DATA_SIZE, "raw": DATA_SIZE}), "log on a disk of its own")


def full_shadow(bench: Bench) -> None:
    """4k random write over a data device that takes 2 ms for each write, 32 at a time, with memory for 25,000 blocks
    that are not written back: writers come down to its rate, none stands still for long."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="marsx-bench-")))
        image = folder / "slow.img"
        image.write_bytes(bytes(256 * MIB))
        disk = stack.enter_context(NullPath(build_server(folder), "bench-slow", 256 * MIB, str(image), delay_us=2000))
        mars = stack.enter_context(written_disk(2048 * MIB))
        cluster = stack.enter_context(Cluster(["a"], Path(bench.options.pyz).resolve(), 16 * MIB, mars_device=mars))
        a, seconds = cluster["a"], 4 * bench.options.seconds
        inner = Bench(cluster, bench.options, {"raw": disk.path}, bench.rows)
        scenario.form_cluster(cluster)
        a.run(["sh", "-c", "echo 1 > /run/mars/sys/shadow_limit_mb"])
        raw = inner.run("raw", "randwrite", "4k", 32, seconds)
        scenario.create_resource(a, RESOURCE, disk.path)
        inner.sides["mars"] = a.mars_device(RESOURCE)
        found = inner.run("mars", "randwrite", "4k", 32, seconds)
        name = f"4k random write, depth 32, slow data device, shadow full, {seconds} s"
        inner.add(name, found.iops, "IOPS", f"raw: {raw.iops:.0f} IOPS", found.iops / raw.iops)
        inner.add(f"{name}, slowest write", found.slowest_us / 1e6, "s",
                  f"mean: {found.latency_us / 1000:.1f} ms; raw: {raw.slowest_us / 1e6:.2f} s", None, "<= 1")


SEEK = Group("seek", nothing, (seek_one_disk, seek_own_disk, full_shadow))
