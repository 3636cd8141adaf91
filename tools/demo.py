#!/usr/bin/env python3
"""The demo: two hosts replicate a live file system, end to end, out of one `mars.pyz`, and every byte is compared.

Makes two hosts on this machine (`hosts.py`), a cluster and a resource; puts an XFS on /dev/mars/data; copies a real
directory tree onto it while the initial sync runs; hands the primary role over; compares every file through the file
system and all bytes of the two data devices. Ends with one line that says what was proved. Needs root. Nothing is left
behind, also after Ctrl-C. Exit status: 0 proved, 1 not proved, 2 cannot run like this, 130 interrupted.

Usage: demo.py [--pyz=FILE] [--megabytes=N]
"""

import hashlib
import os
import shutil
import signal
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools import loops, scenario  # noqa: E402
from tools.hosts import MIB, TOP, Cluster, HostError  # noqa: E402

RESOURCE = "data"
DEVICE_SIZE = 1024 * MIB


class Show:
    """What the demo tells: headings, and on a terminal one line of bars that moves."""

    def __init__(self) -> None:
        self.live = sys.stdout.isatty()
        self.started = self.last = time.monotonic()
        self.drawn = False

    def step(self, text: str) -> None:
        """Begin the next step."""
        self.end_bars()
        print(f"[{time.monotonic() - self.started:6.1f} s] {text}", flush=True)

    def bars(self, **parts: tuple[int, int]) -> None:
        """Draw `name=(done, total)` as bars; without a terminal a plain line every two seconds."""
        now = time.monotonic()
        if not self.live and now - self.last < 2:
            return
        self.last = now
        width = shutil.get_terminal_size().columns - 1 if self.live else 120
        length = 16 if width >= 110 else 5
        texts = [self._bar(name, *part, length) for name, part in parts.items() if part[1]]
        if self.live:
            print("\r\x1b[K" + "   ".join(texts)[:width], end="", flush=True)
            self.drawn = True
        else:
            print("           " + "   ".join(texts), flush=True)

    @staticmethod
    def _bar(name: str, done: int, total: int, length: int) -> str:
        part = min(max(done / total, 0.0), 1.0)
        filled = int(part * length)
        return f"{name} [{'#' * filled}{'.' * (length - filled)}] {part:4.0%} of {total / MIB:.0f} MiB"

    def end_bars(self) -> None:
        """Leave the moving line."""
        if self.drawn:
            print(flush=True)
            self.drawn = False


def folders_to_copy(limit: int) -> list[tuple[Path, int]]:
    """Real directories of this machine and their sizes, together at most `limit` bytes."""
    tops = [Path("/usr/share"), Path("/usr/lib/python3"), Path(sys.base_prefix) / "lib"]
    chosen, used, seen = [], 0, set()
    for folder in (entry for top in tops if top.is_dir() for entry in sorted(top.iterdir())):
        if folder.is_symlink() or not folder.is_dir() or folder.name in seen:
            continue
        size = sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir())
        if MIB <= size <= limit - used:
            chosen.append((folder, size))
            seen.add(folder.name)
            used += size
    if not chosen:
        raise HostError("found no directory tree of a useful size below /usr/share to copy")
    return chosen


def entries(top: Path) -> Iterator[tuple[str, str]]:
    """Everything below `top`: relative name, and a text of kind, mode, owner, time, contents."""
    for folder, folders, files in os.walk(top):
        for name in (*folders, *files):
            whole = Path(folder) / name
            status = whole.lstat()
            if stat.S_ISLNK(status.st_mode):
                what = "-> " + os.readlink(whole)
            elif stat.S_ISREG(status.st_mode):
                with open(whole, "rb") as opened:
                    what = hashlib.file_digest(opened, "sha256").hexdigest()
            else:
                what = ""
            when = 0 if stat.S_ISDIR(status.st_mode) else status.st_mtime_ns
            yield str(whole.relative_to(top)), f"{status.st_mode:o} {status.st_uid}:{status.st_gid} {when} {what}"


class Demo:
    """The steps, in order."""

    def __init__(self, cluster: Cluster, megabytes: int) -> None:
        self.cluster, self.show = cluster, Show()
        self.alpha, self.beta = cluster
        self.empty = 0  # bytes that the file system takes for itself
        chosen = folders_to_copy(megabytes * MIB)
        half = max(1, len(chosen) // 2)
        self.first, self.second = chosen[:half], chosen[half:]

    def total(self) -> int:
        """Bytes of all files that are copied."""
        return sum(size for _, size in (*self.first, *self.second))

    def run(self) -> str:
        """All steps; returns the line that says what was proved."""
        self._set_up()
        self._copy_while_syncing()
        self._wait_for_everything()
        self._hand_over()
        files = self._compare_files()
        written = self._compare_devices()
        self.show.step("mars-status on beta:")
        print(self.beta.run("mars-status", check=False).stdout, flush=True)
        return (f"PROVED: {files} files and folders ({self.total() / MIB:.0f} MiB), written on alpha before and while "
                f"beta synced, are equal on beta one by one after a planned handover; and both data devices "
                f"({DEVICE_SIZE / MIB:.0f} MiB, {written / MIB:.0f} MiB of it in use) hold the same bytes.")

    def _set_up(self) -> None:
        self.show.step("cluster: create-cluster, marsd start on alpha; join-cluster with a token, marsd start on beta")
        scenario.form_cluster(self.cluster)
        self.show.step(f"resource {RESOURCE} on alpha's {self.alpha.data_device}; XFS on /dev/mars/{RESOURCE}; mount")
        scenario.create_resource(self.alpha, RESOURCE)
        scenario.make_file_system(self.alpha, RESOURCE, "xfs")
        room = os.statvfs(self.alpha.path("/mnt"))
        self.empty = (room.f_blocks - room.f_bfree) * room.f_frsize

    def _copy(self, folders: list[tuple[Path, int]]) -> None:
        """Copy on alpha, with bars."""
        command = ["cp", "-a", *(str(folder) for folder, _ in folders), "/mnt/"]
        child = self.alpha.popen(command)
        while child.poll() is None:
            self._progress()
            time.sleep(0.1)
        if child.returncode:
            raise HostError(f"cp on alpha ended with exit status {child.returncode}\n{self.cluster.dump()}")

    def _progress(self) -> None:
        room = os.statvfs(self.alpha.path("/mnt"))
        used = (room.f_blocks - room.f_bfree) * room.f_frsize - self.empty
        self.show.bars(
            disk=(used, self.total()),
            sync=(scenario.synced(self.beta, RESOURCE), scenario.size(self.beta, RESOURCE)),
            replay=scenario.backlog(self.alpha, self.beta, RESOURCE))

    def _copy_while_syncing(self) -> None:
        self.show.step(f"copy {len(self.first)} folders to alpha, before beta has a replica")
        self._copy(self.first)
        self.show.step(f"beta joins, its full sync starts; meanwhile copy {len(self.second)} more folders on alpha")
        scenario.join_resource(self.beta, RESOURCE)
        self._copy(self.second)
        self.alpha.run("sync -f /mnt")

    def _wait_for_everything(self) -> None:
        self.show.step("wait until beta has everything")
        end = time.monotonic() + 120
        while not scenario.caught_up(self.alpha, self.beta, RESOURCE):
            if time.monotonic() > end:
                raise HostError(f"beta has not caught up after 120 s\n{self.cluster.dump()}")
            self._progress()
            time.sleep(0.1)
        self._progress()

    def _hand_over(self) -> None:
        self.show.step("umount on alpha, primary on beta, mount there")
        self.alpha.run("umount /mnt")
        scenario.hand_over(self.alpha, self.beta, RESOURCE)
        self.beta.run(f"mount -t xfs /dev/mars/{RESOURCE} /mnt")

    def _compare_files(self) -> int:
        self.show.step("compare every file on beta with its source")
        count = 0
        names = {folder.name for folder, _ in (*self.first, *self.second)}
        extra = set(os.listdir(self.beta.path("/mnt"))) ^ names
        if extra:
            raise HostError(f"the top folder on beta is not what was copied: {sorted(extra)}")
        for folder, _ in (*self.first, *self.second):
            wanted, found = dict(entries(folder)), dict(entries(self.beta.path(f"/mnt/{folder.name}")))
            wrong = [name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)]
            if wrong:
                raise HostError(f"{len(wrong)} entries of {folder} differ on beta, for example {sorted(wrong)[:3]}")
            count += 1 + len(found)
        return count

    def _compare_devices(self) -> int:
        self.show.step("umount on beta; wait until alpha, now secondary, has all; compare all bytes of the devices")
        self.beta.run("umount /mnt")
        scenario.wait_equal(self.beta, self.alpha, RESOURCE)
        written = loops.data_bytes(self.beta.data.file)
        if written < self.total() // 2:
            raise HostError(f"the data devices are equal, but hold only {written} bytes: the comparison proves nothing")
        return written


def option(name: str, default: str) -> str:
    """Value of `--name=VALUE` on the command line."""
    found = [word.partition("=")[2] for word in sys.argv[1:] if word.startswith(f"--{name}=")]
    return found[-1] if found else default


def refuse_bad_call() -> str:
    """Why the demo cannot run as it was called ("" = it can)."""
    unknown = [word for word in sys.argv[1:] if not word.startswith(("--pyz=", "--megabytes="))]
    if unknown:
        return f"unknown argument {unknown[0]}; usage: demo.py [--pyz=FILE] [--megabytes=N]"
    if not option("megabytes", "200").isdigit() or not 8 <= int(option("megabytes", "200")) <= 600:
        return "--megabytes must be a number from 8 to 600"
    if os.geteuid() != 0:
        return "the demo makes hosts in name spaces and needs root: sudo make demo"
    for tool in ("unshare", "nsenter", "ip", "mkfs.ext4", "mkfs.xfs", "openssl"):
        if not shutil.which(tool):
            return f"the program {tool} is missing: apt-get install util-linux iproute2 e2fsprogs xfsprogs openssl"
    return ""


def interrupted(_number: int, _frame: object) -> None:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does: with the clean-up."""
    raise KeyboardInterrupt


def main() -> int:
    """Run the demo and clean up."""
    problem = refuse_bad_call()
    if problem:
        print(f"demo: {problem}", file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    try:
        with Cluster(["alpha", "beta"], Path(option("pyz", str(TOP / "mars.pyz"))).resolve(), DEVICE_SIZE) as cluster:
            proved = Demo(cluster, int(option("megabytes", "200"))).run()
            for host in cluster:
                host.marsd_stop()
        left = cluster.leftovers()
        if left:
            raise HostError(f"left behind on this machine: {left}")
    except KeyboardInterrupt:
        print("\ndemo: interrupted; hosts, mounts and devices are removed", file=sys.stderr)
        return 130
    except HostError as failure:
        print(f"\ndemo: NOT PROVED: {failure}", file=sys.stderr)
        return 1
    print(proved)
    return 0


if __name__ == "__main__":
    sys.exit(main())
