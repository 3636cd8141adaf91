#!/usr/bin/env python3
"""Whole-system measurements: fio on /dev/mars/data of a real cluster, beside the same fio on what lies below it.

Two hosts in name spaces (`tools/hosts.py`), resource "data" with primary a. Compared in the same run, in turns (one
round of each side, again and again; the median counts):

    raw    a twin of the data device: a loop device over a file on the same disk, all blocks written, O_DIRECT
    path   the same FUSE + loop path with a server that stores the bytes on such a twin, without any log
    empty  the same path with a server that drops the bytes

Between rounds the write-back of /dev/mars/data is awaited, so that no side pays for another. Rows go to report.json.

Usage: system.py [--pyz=FILE] [--seconds=N] [--rounds=N] [--size-mib=N] [--only=WORD] [--to=FILE]
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP))

from bench import report  # noqa: E402
from bench.null_paths import NullPath, build_server  # noqa: E402
from bench.report import Row  # noqa: E402
from tools import loops, scenario  # noqa: E402
from tools.hosts import MIB, Cluster, Host, HostError  # noqa: E402

RESOURCE = "data"
DEVICE = f"/dev/mars/{RESOURCE}"


@dataclass
class Options:
    """The command line."""

    pyz: str = str(TOP / "mars.pyz")
    seconds: int = 4
    rounds: int = 5
    size_mib: int = 1024
    only: str = ""
    to: str = str(report.REPORT)

    @classmethod
    def parse(cls, words: list[str]) -> "Options":
        """`--name=value` words; ValueError says what is wrong."""
        one = cls()
        for word in words:
            name, equals, value = word.removeprefix("--").partition("=")
            name = name.replace("-", "_")
            if not word.startswith("--") or not equals or name not in vars(one):
                raise ValueError(f"{word} is not understood; see the top of bench/system.py")
            setattr(one, name, int(value) if isinstance(getattr(one, name), int) else value)
        if one.seconds < 1 or one.rounds < 1 or one.size_mib < 256:
            raise ValueError("--seconds and --rounds must be at least 1, --size-mib at least 256")
        return one


@dataclass
class Result:
    """One fio run."""

    iops: float
    rate: float
    latency_us: float

    @classmethod
    def of(cls, text: str) -> "Result":
        """From fio's JSON; reads and writes are added."""
        job = json.loads(text[text.index("{"):])["jobs"][0]
        if job["error"]:
            raise HostError(f"fio met error {job['error']}")
        sides = [job["write"], job["read"]]
        count = sum(side["total_ios"] for side in sides)
        if not count:
            raise HostError("fio did nothing")
        latency = sum(side["clat_ns"]["mean"] * side["total_ios"] for side in sides) / count / 1000
        return cls(sum(side["iops"] for side in sides), sum(side["bw_bytes"] for side in sides) / 1e6, latency)


def fio(host: Host, device: str, mode: str, block: str, depth: int, seconds: int, seed: int) -> Result:
    """One O_DIRECT run with libaio."""
    done = host.run(["fio", "--name=run", f"--filename={device}", f"--rw={mode}", f"--bs={block}", f"--iodepth={depth}",
                     "--direct=1", "--ioengine=libaio", "--time_based", f"--runtime={seconds}", f"--randseed={seed}",
                     "--norandommap", "--output-format=json"], timeout=seconds + 120)
    return Result.of(done.stdout)


@dataclass
class Bench:
    """The running cluster, the other sides, and the rows so far."""

    cluster: Cluster
    options: Options
    sides: dict[str, str]
    rows: list[Row] = field(default_factory=list)

    @property
    def a(self) -> Host:
        """The primary."""
        return self.cluster["a"]

    @property
    def b(self) -> Host:
        """The secondary."""
        return self.cluster["b"]

    def add(self, name: str, value: float, unit: str, against: str = "", ratio: float | None = None,
            goal: str = "") -> None:
        """Note one row and say it."""
        row = Row(name, round(value, 3), unit, against, None if ratio is None else round(ratio, 4), goal)
        self.rows.append(row)
        print(report.table([row]).splitlines()[1], flush=True)

    def quiet(self) -> None:
        """Wait until everything is written back and replayed."""
        self.a.wait(lambda: scenario.settled(self.a, RESOURCE), 300, "write-back to end")
        scenario.wait_caught_up(self.a, self.b, RESOURCE, 300)

    def compare(self, sides: list[str], mode: str, block: str, depth: int) -> dict[str, Result]:
        """Rounds in turns; the medians of each side."""
        found: dict[str, list[Result]] = {side: [] for side in sides}
        for number in range(self.options.rounds):
            for side in sides:
                found[side].append(fio(self.a, self.sides[side], mode, block, depth, self.options.seconds, number))
                if side == "mars":
                    self.quiet()
        return {side: Result(*(statistics.median(getattr(one, name) for one in results)
                               for name in ("iops", "rate", "latency_us"))) for side, results in found.items()}


def random_write_depth_32(bench: Bench) -> None:
    """4k random write, depth 32, in bursts."""
    found = bench.compare(["raw", "empty", "mars"], "randwrite", "4k", 32)
    ours = found["mars"].iops
    for side, goal in (("raw", ">= 0.8"), ("empty", "")):
        bench.add(f"4k random write, depth 32, against {side}", ours, "IOPS", f"{side}: {found[side].iops:.0f} IOPS",
                  ours / found[side].iops, goal)


def random_write_depth_1(bench: Bench) -> None:
    """4k write, depth 1, latency."""
    found = bench.compare(["raw", "empty", "mars"], "randwrite", "4k", 1)
    below = found["raw"].latency_us + found["empty"].latency_us
    bench.add("4k random write, depth 1, latency", found["mars"].latency_us, "us",
              f"raw {found['raw'].latency_us:.1f} us + empty path {found['empty'].latency_us:.1f} us",
              found["mars"].latency_us / below, "<= 1.3")
    bench.add("4k random write, depth 1, against raw", found["mars"].iops, "IOPS", f"raw: {found['raw'].iops:.0f} IOPS",
              found["mars"].iops / found["raw"].iops)


def sequential_write(bench: Bench) -> None:
    """1 MiB sequential write; log and data are on one disk here."""
    found = bench.compare(["raw", "path", "empty", "mars"], "write", "1m", 4)
    ours = found["mars"].rate
    for side, goal in (("path", ">= 0.45"), ("raw", ""), ("empty", "")):
        bench.add(f"1 MiB sequential write, against {side}", ours, "MB/s", f"{side}: {found[side].rate:.0f} MB/s",
                  ours / found[side].rate, goal)


def random_read(bench: Bench) -> None:
    """4k random read of what is written back."""
    found = bench.compare(["raw", "empty", "mars"], "randread", "4k", 32)
    bench.add("4k random read, depth 32, against raw", found["mars"].iops, "IOPS", f"raw: {found['raw'].iops:.0f} IOPS",
              found["mars"].iops / found["raw"].iops)


def replay_rate(bench: Bench) -> None:
    """A log is written while the secondary's replay is paused; then how fast it is replayed."""
    bench.quiet()
    bench.b.run(f"marsadm pause-replay {RESOURCE}")
    start_at = scenario.backlog(bench.a, bench.b, RESOURCE)[1]
    began = time.monotonic()
    fio(bench.a, bench.sides["mars"], "randwrite", "4k", 32, 2 * bench.options.seconds, 77)
    writing = time.monotonic() - began
    bench.a.wait(lambda: scenario.settled(bench.a, RESOURCE), 300, "write-back to end")
    wrote = scenario.backlog(bench.a, bench.b, RESOURCE)[1] - start_at
    began = time.monotonic()
    bench.b.run(f"marsadm resume-replay {RESOURCE}")
    scenario.wait_caught_up(bench.a, bench.b, RESOURCE, 600)
    replaying = time.monotonic() - began
    bench.add("replay rate", wrote / replaying / 1e6, "MB/s of log", f"written at {wrote / writing / 1e6:.0f} MB/s",
              writing / replaying, ">= 1.5")


def received(host: Host) -> int:
    """Bytes that came in over the host's line."""
    return int(host.path("/sys/class/net/eth0/statistics/rx_bytes").read_text())


def sync_rate(bench: Bench) -> None:
    """Full sync of equal data, against reading both devices at the same time; and what went over the line."""
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


MEASUREMENTS: list[Callable[[Bench], None]] = [
    random_write_depth_32, random_write_depth_1, sequential_write, random_read, replay_rate, sync_rate, lag, slow_line]


def fill(host: Host, device: str) -> None:
    """Write every block once with bytes that do not compress: overwriting written space is the ordinary case."""
    host.run(["fio", "--name=fill", f"--filename={device}", "--rw=write", "--bs=1m", "--iodepth=4", "--direct=1",
              "--ioengine=libaio", "--refill_buffers", "--end_fsync=1", "--output-format=json"], timeout=600)


def prepare(cluster: Cluster, size: int) -> str:
    """Cluster, resource, sync; all blocks of the devices and of the twin are written. Returns the twin."""
    a, b = cluster
    twin = a.add_device("twin.img", size)
    for host, device in ((a, a.data_device), (b, b.data_device), (a, twin.path)):
        fill(host, device)
    scenario.form_cluster(cluster)
    scenario.create_resource(a, RESOURCE)
    scenario.join_resource(b, RESOURCE)
    scenario.wait_equal(a, b, RESOURCE, 600)
    return twin.path


def measure(options: Options) -> list[Row]:
    """Set everything up and run the measurements."""
    size = options.size_mib * MIB
    chosen = [one for one in MEASUREMENTS if options.only in one.__name__]
    if not chosen:
        raise ValueError(f"--only={options.only} matches none of {', '.join(one.__name__ for one in MEASUREMENTS)}")
    with tempfile.TemporaryDirectory(prefix="marsx-bench-") as folder, \
            Cluster(["a", "b"], Path(options.pyz).resolve(), size, mars_size=16384 * MIB) as cluster:
        twin = prepare(cluster, size)
        stored = cluster["a"].add_device("path.img", size)
        fill(cluster["a"], stored.path)
        server = build_server(Path(folder))
        with NullPath(server, "bench-empty", size) as empty, NullPath(server, "bench-path", size, stored.path) as path:
            sides = {"raw": twin, "empty": empty.path, "path": path.path, "mars": cluster["a"].mars_device(RESOURCE)}
            bench = Bench(cluster, options, sides)
            for one in chosen:
                print(f"-------- {one.__doc__.splitlines()[0]}", flush=True)
                one(bench)
        return bench.rows


def main(argv: list[str]) -> int:
    """Measure, write the report."""
    try:
        options = Options.parse(argv[1:])
        rows = measure(options)
        report.save(Path(options.to), report.merge(report.load(Path(options.to)), rows))
    except (HostError, OSError, ValueError) as problem:
        print(f"bench: {problem}", file=sys.stderr)
        return 1
    missed = [row.name for row in rows if row.verdict() == "missed"]
    print(f"{len(rows)} rows in {options.to}; goals missed: {', '.join(missed) or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
