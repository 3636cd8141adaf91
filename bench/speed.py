"""One primary by itself: what an application sees of /dev/mars, in bursts and for long."""

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.null_paths import NullPath, build_server
from bench.rig import MIB, RESOURCE, Bench, Group, Options, Result, clock, fill, memory, process_time, written_disk
from tools import scenario
from tools.hosts import Cluster, HostError

DEPTHS = (1, 2, 4, 8, 16, 32, 64, 128)


@contextmanager
def alone(options: Options) -> Iterator[Bench]:
    """One host, log and data on one disk, and the other sides on the same disk."""
    with tempfile.TemporaryDirectory(prefix="marsx-bench-") as folder, written_disk(32768 * MIB) as mars, \
            Cluster(["a"], Path(options.pyz).resolve(), options.size, mars_device=mars) as cluster:
        a = cluster["a"]
        twin, stored = a.add_device("twin.img", options.size).path, a.add_device("path.img", options.size).path
        for device in (a.data_device, twin, stored):
            fill(a, device)
        scenario.form_cluster(cluster)
        scenario.create_resource(a, RESOURCE)
        server = build_server(Path(folder))
        with NullPath(server, "bench-empty", options.size) as empty, \
                NullPath(server, "bench-path", options.size, stored) as path:
            yield Bench(cluster, options, {"raw": twin, "empty": empty.path, "path": path.path,
                                           "mars": a.mars_device(RESOURCE)})


def random_write_depth_32(bench: Bench) -> None:
    """4k random write, depth 32, in bursts that the shadow absorbs."""
    found = bench.compare(["raw", "empty", "mars"], "randwrite", "4k", 32)
    ours = found["mars"].iops
    for side, goal in (("raw", ">= 0.8"), ("empty", "")):
        bench.add(f"4k random write, depth 32, burst, against {side}", ours, "IOPS",
                  f"{side}: {found[side].iops:.0f} IOPS", ours / found[side].iops, goal)
    bench.processor("processor time per 4k write, depth 32", found)


def random_write_depth_1(bench: Bench) -> None:
    """4k write, depth 1, latency."""
    found = bench.compare(["raw", "empty", "mars"], "randwrite", "4k", 1)
    below = found["raw"].latency_us + found["empty"].latency_us
    bench.add("4k random write, depth 1, latency", found["mars"].latency_us, "us",
              f"raw {found['raw'].latency_us:.1f} us + empty path {found['empty'].latency_us:.1f} us",
              found["mars"].latency_us / below, "<= 1.3")
    bench.add("4k random write, depth 1, against raw", found["mars"].iops, "IOPS", f"raw: {found['raw'].iops:.0f} IOPS",
              found["mars"].iops / found["raw"].iops)


def flush_rate(bench: Bench) -> None:
    """fdatasync behind each 4k write, depth 1."""
    found = bench.compare(["raw", "path", "mars"], "randwrite", "4k", 1, flush=True)
    ours = found["mars"].iops
    for side, goal in (("raw", ">= 0.9"), ("path", "")):
        bench.add(f"4k random write + fdatasync, depth 1, against {side}", ours, "1/s",
                  f"{side}: {found[side].iops:.0f} 1/s", ours / found[side].iops, goal)


def random_read(bench: Bench) -> None:
    """4k random read of what is written back."""
    found = bench.compare(["raw", "path", "mars"], "randread", "4k", 32)
    ours = found["mars"].iops
    for side, goal in (("path", ">= 0.9"), ("raw", "")):
        bench.add(f"4k random read, depth 32, against {side}", ours, "IOPS", f"{side}: {found[side].iops:.0f} IOPS",
                  ours / found[side].iops, goal)


def _backlog_gone(bench: Bench, found: Result, seconds: float, name: str, unit: str) -> None:
    """Wait for the write-back; a row with the rate over the whole time, and one with the memory at its fullest."""
    began = time.monotonic()
    used = memory(bench.a.worker()) + memory(bench.a.keeper())
    bench.quiet()
    whole = seconds + time.monotonic() - began
    bench.add(f"{name}, until all is written back", found.operations / whole, unit,
              f"{whole - seconds:.1f} s of write-back behind the {seconds:.0f} s")
    bench.add(f"resident memory of marsd after: {name}", used / MIB, "MiB",
              "100 MiB + shadow_limit_mb 64 + ring_mb 32", goal="<= 196")


def sustained_random(bench: Bench) -> None:
    """4k random write, depth 32, for long, with write-back running."""
    seconds = 20 * bench.options.seconds
    raw = bench.run("raw", "randwrite", "4k", 32, seconds // 3)
    found = bench.run("mars", "randwrite", "4k", 32, seconds)
    name = f"4k random write, depth 32, {seconds} s"
    bench.add(f"{name}, against raw", found.iops, "IOPS", f"raw: {raw.iops:.0f} IOPS", found.iops / raw.iops, ">= 0.5")
    bench.add(f"{name}, slowest write", found.slowest_us / 1000, "ms", f"raw: {raw.slowest_us / 1000:.1f} ms")
    _backlog_gone(bench, found, seconds, name, "IOPS")


def sustained_sequential(bench: Bench) -> None:
    """1 MiB sequential write for long, with write-back running; log and data on one disk."""
    seconds = 10 * bench.options.seconds
    sides = {side: bench.run(side, "write", "1m", 4, seconds // 3) for side in ("path", "raw", "empty")}
    sides["mars"] = found = bench.run("mars", "write", "1m", 4, seconds)
    name = f"1 MiB sequential write, {seconds} s"
    for side, goal in (("path", ">= 0.45"), ("raw", ">= 0.45"), ("empty", "")):
        bench.add(f"{name}, against {side}", found.rate, "MB/s", f"{side}: {sides[side].rate:.0f} MB/s",
                  found.rate / sides[side].rate, goal)
    bench.processor("processor time per MiB, sequential write", sides)
    _backlog_gone(bench, found, seconds, name, "MiB/s")


def depth_curve(bench: Bench) -> None:
    """4k random write at every depth: rows for the plot (bench/plot.py)."""
    for depth in DEPTHS:
        for side in ("raw", "empty", "mars"):
            found = bench.run(side, "randwrite", "4k", depth, max(1, bench.options.seconds // 2))
            bench.add(f"curve, depth {depth}, {side}", found.iops, "IOPS", f"mean latency {found.latency_us:.1f} us")
        bench.quiet()


def idle(bench: Bench) -> None:
    """Processor time and memory of a marsd with one resource and nothing to do."""
    bench.quiet()
    time.sleep(3)
    pids = [bench.a.worker(), bench.a.keeper()]
    before, began = sum(map(process_time, pids)), time.monotonic()
    time.sleep(10)
    spent = sum(map(process_time, pids)) - before
    bench.add("idle marsd, 1 resource, processor", spent / (time.monotonic() - began) * 100, "% of a core", goal="<= 1")
    bench.add("idle marsd, 1 resource (primary), resident memory", sum(map(memory, pids)) / MIB, "MiB",
              "100 MiB + shadow_limit_mb 64 + ring_mb 32", goal="<= 196")


GROUP = Group("alone", alone, (random_write_depth_32, random_write_depth_1, flush_rate, random_read, depth_curve,
                               sustained_random, sustained_sequential, idle))


@contextmanager
def crashing(options: Options) -> Iterator[Bench]:
    """One host over a data device that is slow, so that a backlog stays."""
    with tempfile.TemporaryDirectory(prefix="marsx-bench-") as folder:
        server = build_server(Path(folder))
        with NullPath(server, "bench-slow", options.size, delay_us=40_000) as slow, \
                Cluster(["a"], Path(options.pyz).resolve(), 16 * MIB, mars_size=8192 * MIB) as cluster:
            scenario.form_cluster(cluster)
            scenario.create_resource(cluster["a"], RESOURCE, slow.path)
            yield Bench(cluster, options, {"mars": cluster["a"].mars_device(RESOURCE)})


def recovery(bench: Bench) -> None:
    """kill -9 of the worker under load with a log of 1 GiB that is not written back."""
    a = bench.a

    def rest() -> int:
        return a.status().get(RESOURCE, {}).get("state", {}).get("writeback_rest", 0)

    load = a.popen(["fio", "--name=load", f"--filename={bench.sides['mars']}", "--rw=randwrite", "--bs=4k",
                    "--iodepth=32", "--direct=1", "--ioengine=libaio", "--time_based", "--runtime=300",
                    "--output-format=json"], stdout=-1)
    try:
        clock(lambda: rest() >= 1 << 30, 120, 0.05)
        log = rest()
        dead = a.kill9_worker()
        reader = a.popen(["dd", f"if={bench.sides['mars']}", "of=/dev/null", "bs=4096", "count=1", "iflag=direct",
                          "status=none"])
        answered = clock(lambda: reader.poll() is not None, 120)
        if reader.returncode:
            raise HostError("the device failed in the crash")
        clock(lambda: a.worker() not in (None, dead), 60)
    finally:
        for pid, words in a.pids().items():
            if words[0] == "fio":                       # its jobs are in sessions of their own
                os.kill(pid, signal.SIGKILL)
        load.communicate()
    bench.add("recovery after kill -9 under load, until the device answers", answered, "s",
              f"{log / MIB:.0f} MiB of log not written back")
    bench.add("recovery after kill -9, rate", log / answered / 1e6, "MB/s of log")


CRASH = Group("crash", crashing, (recovery,))
