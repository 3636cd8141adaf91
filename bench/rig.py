"""What every whole-system measurement uses: options, fio, processor time, rounds in turns, rows of the report.

Sides of a comparison, each a block device of the same size over the same disk:

    raw    a twin of the data device: a loop device over a file, all blocks written, O_DIRECT
    path   the same FUSE + loop path with a server (8 threads) that stores the bytes on such a twin, without any log
    empty  the same path with a server that drops the bytes
    mars   /dev/mars/data of a real marsd

Sides take turns, one round of each, and the median counts. Between rounds the write-back of /dev/mars/data
is awaited, so that no side pays for another.
"""

import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path

from bench import report
from bench.report import Row
from tools import scenario
from tools.hosts import MIB, Cluster, Host, HostError
from tools.loops import Loop

TOP = Path(__file__).resolve().parent.parent
RESOURCE = "data"
DEVICE = f"/dev/mars/{RESOURCE}"
TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Options:
    """The command line."""

    pyz: str = str(TOP / "mars.pyz")
    seconds: int = 3
    rounds: int = 3
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

    @property
    def size(self) -> int:
        """Bytes of each device."""
        return self.size_mib * MIB


@dataclass
class Result:
    """One fio run. Processor time is that of the whole machine, fio included, and of marsd alone."""

    iops: float
    rate: float
    latency_us: float
    slowest_us: float
    operations: float
    machine_s: float = 0
    marsd_s: float = 0

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
        return cls(sum(side["iops"] for side in sides), sum(side["bw_bytes"] for side in sides) / 1e6, latency,
                   max(side["clat_ns"]["max"] for side in sides) / 1000, count)

    @classmethod
    def median(cls, results: Sequence["Result"]) -> "Result":
        """Of each number by itself."""
        return cls(*(statistics.median(getattr(one, each.name) for one in results) for each in fields(cls)))


def machine_busy() -> float:
    """Seconds of processor time that the machine has spent on anything."""
    numbers = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(numbers) - numbers[3] - numbers[4]) / TICK


def process_time(pid: int | None) -> float:
    """Seconds of processor time of one process, user and system."""
    if not pid:
        return 0.0
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / TICK


def memory(pid: int | None) -> int:
    """Resident bytes of a process; a page that is mapped twice (the ring is) counts once."""
    if not pid:
        return 0
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024


def fio(host: Host, device: str, mode: str, block: str, depth: int, seconds: int, seed: int = 1, *,
        flush: bool = False, more: Sequence[str] = ()) -> Result:
    """One O_DIRECT run with libaio. flush: fdatasync behind each write."""
    worker = host.worker()
    machine, marsd = machine_busy(), process_time(worker)
    done = host.run(["fio", "--name=run", f"--filename={device}", f"--rw={mode}", f"--bs={block}", f"--iodepth={depth}",
                     "--direct=1", "--ioengine=libaio", "--time_based", f"--runtime={seconds}", f"--randseed={seed}",
                     "--norandommap", "--output-format=json", *(["--fdatasync=1"] if flush else []), *more],
                    timeout=seconds + 120)
    result = Result.of(done.stdout)
    result.machine_s, result.marsd_s = machine_busy() - machine, process_time(worker) - marsd
    return result


def fill(host: Host, device: str, seconds: int = 600) -> None:
    """Write every block once with bytes that do not compress: overwriting written space is the ordinary case."""
    host.run(["fio", "--name=fill", f"--filename={device}", "--rw=write", "--bs=1m", "--iodepth=4", "--direct=1",
              "--ioengine=libaio", "--refill_buffers", "--end_fsync=1", "--output-format=json"], timeout=seconds)


@contextmanager
def written_disk(size: int, where: str | None = None) -> Iterator[str]:
    """A loop device over a file whose blocks are all there, as those of a disk are: a log on a sparse file would pay
    for making them, and what it is compared with would not."""
    with tempfile.TemporaryDirectory(prefix="marsx-bench-", dir=where) as folder:
        file = Path(folder) / "disk"
        subprocess.run(["dd", "if=/dev/zero", f"of={file}", "bs=4M", f"count={size >> 22}", "oflag=direct",
                        "status=none"], check=True)
        loop = Loop(file)
        try:
            yield loop.path
        finally:
            loop.close()


@dataclass
class Bench:
    """A running cluster, the sides, and the rows so far."""

    cluster: Cluster | None
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

    def quiet(self, seconds: float = 300) -> None:
        """Wait until everything is written back and replayed."""
        self.a.wait(lambda: scenario.settled(self.a, RESOURCE), seconds, "write-back to end")
        if "b" in self.cluster.hosts:
            scenario.wait_caught_up(self.a, self.b, RESOURCE, seconds)

    def run(self, side: str, mode: str, block: str, depth: int, seconds: int = 0, seed: int = 1, **more) -> Result:
        """One fio run on one side."""
        return fio(self.a, self.sides[side], mode, block, depth, seconds or self.options.seconds, seed, **more)

    def compare(self, sides: Sequence[str], mode: str, block: str, depth: int, **more) -> dict[str, Result]:
        """Rounds in turns; the medians of each side."""
        found: dict[str, list[Result]] = {side: [] for side in sides}
        for number in range(self.options.rounds):
            for side in sides:
                found[side].append(self.run(side, mode, block, depth, seed=number, **more))
                if side == "mars":
                    self.quiet()
        return {side: Result.median(results) for side, results in found.items()}

    def processor(self, name: str, found: dict[str, Result], per: float = 1.0) -> None:
        """A row with the processor time of one operation (or of `per` operations)."""
        us = {side: one.machine_s / one.operations * 1e6 * per for side, one in found.items()}
        others = ", ".join(f"{side} {value:.1f} us" for side, value in us.items() if side != "mars")
        own = found["mars"].marsd_s / found["mars"].operations * 1e6 * per
        self.add(name, us["mars"], "us", f"all of the machine, fio included; marsd {own:.1f} us; {others}",
                 us["mars"] / us["empty"])


Measurement = Callable[[Bench], None]


@dataclass(frozen=True)
class Group:
    """Measurements on one set-up. `extra`: only when --only names it."""

    name: str
    open: Callable[[Options], AbstractContextManager["Bench"]]
    measurements: tuple[Measurement, ...]
    extra: bool = False

    def chosen(self, only: str) -> list[Measurement]:
        """Those that one of the comma separated words names, by group or by a part of the measurement's name."""
        words = [word for word in only.split(",") if word]
        if not words:
            return [] if self.extra else list(self.measurements)
        return [one for one in self.measurements
                if any(word == self.name or word in one.__name__ for word in words)]


def clock(condition: Callable[[], object], seconds: float, pause: float = 0.002) -> float:
    """Seconds until the condition holds."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise HostError(f"waited {seconds:.0f} s in vain")
        time.sleep(pause)
    return time.monotonic() - began
