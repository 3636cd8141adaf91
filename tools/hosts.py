"""Hosts on one machine: real `mars.pyz` daemons, each in its own network, mount, UTS and PID name space.

`Cluster` makes hosts and the switch between them; `Host` runs commands in one and looks into it from outside. The demo,
the cluster tests and the measurements use this. It promises:

* nothing of the machine is touched: links between hosts exist only inside name spaces, `/mars`, `/etc`, `/run`,
  `/dev/mars` and `/var/cache` of a host are its own;
* everything ends with `Cluster.close()`, and also when this process is killed: each host's first process dies when its
  standard input ends (`host_init.py`), which kills all others in the host; loop devices are AUTOCLEAR (`loops.py`).

A host is found by its name, `cluster["a"]`. Host number i has the address 10.77.i.2, its router is 10.77.i.1.
A cut link drops packets silently in the switch (a rule of the routing table), as a broken line does.
"""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from tools import loops
from tools.loops import Loop

TOP = Path(__file__).resolve().parent.parent
COMMANDS = ("marsadm", "marsd", "mars-status")
MIB = 1 << 20
TIMEOUT = 60.0
MKFS = ("mkfs.ext4", "-q", "-F", "-I", "256", "-m", "0", "-E", "lazy_itable_init=1,nodiscard")


class HostError(AssertionError):
    """A host did not do what was asked of it; the text says what, and what the host said."""


def _quiet(argv: list[str], timeout: float = 60) -> str:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        raise HostError(f"{shlex.join(argv)}: exit {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


class Holder:
    """A process in new name spaces that lives until `close()` or until we die."""

    def __init__(self, flags: list[str], argv: list[str]) -> None:
        self.process = subprocess.Popen(
            ["unshare", *flags, "--kill-child", "--propagation", "private", "--", *argv] if "--mount" in flags
            else ["unshare", *flags, "--", *argv],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
        line = self.process.stdout.readline()
        answer = json.loads(line) if line.strip() else {"error": "it died without a word"}
        if "error" in answer:
            self.close()
            raise HostError(f"cannot make a host: {answer['error']}")
        self.pid = int(answer["pid"])

    def close(self, patience: float = 20) -> None:
        """End everything in the name spaces and wait for it."""
        if not self.process.stdin.closed:
            self.process.stdin.close()
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(patience)
        self.process.stdout.close()


class Switch:
    """The network between the hosts: a router in a name space of its own."""

    def __init__(self) -> None:
        say = "import os,sys; print('{\"pid\": %d}' % os.getpid(), flush=True); sys.stdin.read()"
        self.holder = Holder(["--net"], [sys.executable, "-ISc", say])
        self._ports: dict[str, tuple[int, int]] = {}
        self._cuts: set[tuple[str, str]] = set()
        self._inside("ip", "link", "set", "lo", "up")
        self._inside("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")

    def _inside(self, *argv: str, pid: int | None = None) -> None:
        _quiet(["nsenter", "-t", str(pid or self.holder.pid), "-n", "--", *argv])

    def plug(self, name: str, pid: int, number: int) -> None:
        """Give the host at `pid` an `eth0` and a port here."""
        self._ports[name] = (number, pid)
        self._inside("ip", "link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        self._inside("ip", "addr", "add", f"10.77.{number}.1/24", "dev", f"port{number}")
        self._inside("ip", "link", "set", f"port{number}", "up")
        self._inside("ip", "addr", "add", f"{address(number)}/24", "dev", "eth0", pid=pid)
        self._inside("ip", "link", "set", "eth0", "up", pid=pid)
        self._inside("ip", "route", "add", "default", "via", f"10.77.{number}.1", pid=pid)
        self._wait_for_carrier(pid)

    @staticmethod
    def _wait_for_carrier(pid: int) -> None:
        """The kernel reports a new link as up a moment after it was set up."""
        end = time.monotonic() + 10
        while Path(f"/proc/{pid}/root/sys/class/net/eth0/operstate").read_text().strip() != "up":
            if time.monotonic() > end:
                raise HostError("eth0 of a new host does not come up: this kernel's veth does not work as expected")
            time.sleep(0.01)

    def cut(self, a: str, b: str) -> None:
        """Packets between `a` and `b` vanish, both ways, without an error to anybody."""
        for pair in ((a, b), (b, a)):
            if pair not in self._cuts:
                self._inside("ip", "rule", "add", *self._pair(pair), "blackhole")
                self._cuts.add(pair)

    def heal(self, a: str, b: str) -> None:
        """The line between `a` and `b` works again."""
        for pair in ((a, b), (b, a)):
            if pair in self._cuts:
                self._inside("ip", "rule", "del", *self._pair(pair), "blackhole")
                self._cuts.discard(pair)

    def isolate(self, name: str) -> None:
        """Cut one host off from all others."""
        for other in self._ports:
            if other != name:
                self.cut(name, other)

    def heal_all(self) -> None:
        """Every line works again."""
        for a, b in list(self._cuts):
            self.heal(a, b)

    def _pair(self, pair: tuple[str, str]) -> list[str]:
        return ["from", address(self._ports[pair[0]][0]), "to", address(self._ports[pair[1]][0])]

    def shape(self, name: str, rate: str) -> None:
        """Limit the line of one host to `rate` (as tc writes it: "20mbit"), both directions."""
        number, pid = self._ports[name]
        for device, where in ((f"port{number}", None), ("eth0", pid)):
            self._inside("tc", "qdisc", "replace", "dev", device, "root", "tbf", "rate", rate, "burst", "128k",
                         "latency", "100ms", pid=where)

    def unshape(self, name: str) -> None:
        """The line of one host has its full rate again."""
        number, pid = self._ports[name]
        for device, where in ((f"port{number}", None), ("eth0", pid)):
            self._inside("tc", "qdisc", "del", "dev", device, "root", pid=where)


def address(number: int) -> str:
    """IP address of host number `number`."""
    return f"10.77.{number}.2"


class Host:
    """One host: its own name, address, `/mars`, data device, and installed commands."""

    def __init__(self, cluster: "Cluster", name: str, number: int, data_size: int, mars_size: int,
                 mars_device: str = "") -> None:
        self.cluster, self.name, self.number, self.ip = cluster, name, number, address(number)
        self.folder = cluster.folder / name
        self.folder.mkdir()
        self._loops: list[Loop] = []
        self._children: list[subprocess.Popen[str]] = []
        self._mars_loops: dict[str, str] = {}  # device -> its sequence number: others may get the name later
        self.holder: Holder | None = None
        self.marsd_environment: dict[str, str] = {}             # more for `marsd start` (the I/O layer of tests/fault)
        try:
            self._build(data_size, mars_size, mars_device)
        except BaseException:
            self.close()
            raise

    def _build(self, data_size: int, mars_size: int, mars_device: str) -> None:
        if mars_device:
            _quiet([*MKFS, mars_device], 300)
        mars = mars_device or self._loop("mars.img", mars_size, make_ext4=True).path
        self.data = self._loop("data.img", data_size)
        self.data_device = self.data.path
        needed = [str(TOP), sys.prefix, sys.base_prefix, str(self.folder)]
        wanted = {"name": self.name, "needed": needed, "mars": mars, "hosts": self.cluster.addresses}
        self.holder = Holder(["--mount", "--net", "--uts", "--pid", "--fork"],
                             [sys.executable, "-IS", str(TOP / "tools/host_init.py"), json.dumps(wanted)])
        self.install(self.cluster.pyz)

    def _loop(self, name: str, size: int, make_ext4: bool = False) -> Loop:
        file = self.folder / name
        if make_ext4:
            with open(file, "xb") as made:
                made.truncate(size)
            _quiet([*MKFS, str(file)])
        loop = Loop(file, None if make_ext4 else size)
        self._loops.append(loop)
        return loop

    def add_device(self, name: str, size: int) -> Loop:
        """One more block device of this host (a sparse file behind a loop device)."""
        return self._loop(name, size)

    # -- looking in from outside

    def path(self, inside: str) -> Path:
        """A path of the host as this process can open it (do not follow absolute links with it)."""
        return Path(f"/proc/{self.holder.pid}/root{inside}")

    def link(self, rel: str) -> str:
        """Value of an entry of the host's tree; "" if it is missing or deleted."""
        try:
            value = os.readlink(self.path(f"/mars/{rel}"))
        except OSError:
            return ""
        return "" if value == ".deleted" else value

    def links(self, folder: str, prefix: str = "") -> dict[str, str]:
        """Entries of one folder of the tree whose names begin with `prefix`."""
        try:
            names = os.listdir(self.path(f"/mars/{folder}"))
        except OSError:
            return {}
        found = {name: self.link(f"{folder}/{name}") for name in names if name.startswith(prefix)}
        return {name: value for name, value in found.items() if value}

    def tree(self) -> dict[str, str]:
        """The whole tree: links with their values, files with their sizes."""
        top, found = self.path("/mars"), {}
        for folder, folders, files in os.walk(top):
            for name in [*folders, *files]:
                whole = Path(folder) / name
                rel = str(whole.relative_to(top))
                if whole.is_symlink():
                    found[rel] = os.readlink(whole)
                elif whole.is_file():
                    found[rel] = f"<{whole.stat().st_size} bytes>"
        return found

    def pids(self) -> dict[int, list[str]]:
        """The living processes of this host (numbers as the machine sees them) and their arguments."""
        found = {}
        mine = os.readlink(f"/proc/{self.holder.pid}/ns/pid")
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != self.holder.pid:
                try:
                    if os.readlink(f"/proc/{entry}/ns/pid") == mine:
                        words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
                        found[int(entry)] = [word.decode(errors="replace") for word in words if word]
                except OSError:
                    continue
        return {pid: words for pid, words in found.items() if words}

    # -- commands

    def install(self, pyz: Path) -> None:
        """Copy the one file into the host and link the commands to it."""
        if not pyz.is_file():
            raise HostError(f"{pyz} is not there: run `make pyz` first")
        target = self.path("/opt/mars")
        target.mkdir(exist_ok=True)
        target.chmod(0o755)
        shutil.copy2(pyz, target / "mars.pyz")
        (target / "mars.pyz").chmod(0o755)
        for name in COMMANDS:
            if not (target / name).is_symlink():
                (target / name).symlink_to("mars.pyz")

    def _enter(self, command: str | Iterable[str]) -> list[str]:
        words = shlex.split(command) if isinstance(command, str) else list(command)
        return ["nsenter", "-t", str(self.holder.pid), "-m", "-n", "-u", "-p", "--", *words]

    def environment(self) -> dict[str, str]:
        """What a fresh root shell on the host has."""
        python = str(Path(sys.executable).resolve().parent)
        path = f"/opt/mars:{python}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return {"PATH": path, "HOME": "/root", "LC_ALL": "C.UTF-8", "TERM": "dumb"}

    def popen(self, command: str | Iterable[str], **options: object) -> "subprocess.Popen[str]":
        """Start a command in the host; it ends with the host at the latest."""
        settings: dict = {"stdin": subprocess.DEVNULL, "text": True, "start_new_session": True,
                          "env": self.environment(), **options}
        child = subprocess.Popen(self._enter(command), **settings)
        self._children.append(child)
        return child

    def run(self, command: str | Iterable[str], *, check: bool = True, timeout: float = TIMEOUT,
            **options: object) -> "subprocess.CompletedProcess[str]":
        """Run a command in the host; with `check`, an exit status other than 0 is an error that tells everything."""
        words = shlex.split(command) if isinstance(command, str) else list(command)
        child = self.popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
        try:
            out, err = child.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            out, err = child.communicate()
            raise HostError(f"{self.name}: {shlex.join(words)}: no end after {timeout:.0f} s\n{out}{err}\n"
                            f"{self.cluster.dump()}") from None
        finally:
            self._children.remove(child)
            self._note_devices()
        if check and child.returncode:
            raise HostError(f"{self.name}: {shlex.join(words)}: exit {child.returncode}\n{out}{err}\n"
                            f"{self.cluster.dump()}")
        return subprocess.CompletedProcess(words, child.returncode, out, err)

    def _note_devices(self) -> None:
        for name in self.devices():
            try:
                device = self.mars_device(name)
            except OSError:
                continue  # gone in this moment, or no link: then it is none of the daemon's
            self._mars_loops[device] = loops.sequence(device)

    def devices(self) -> list[str]:
        """Names in the host's /dev/mars."""
        try:
            return sorted(os.listdir(self.path("/dev/mars")))
        except OSError:
            return []

    def mars_device(self, resource: str) -> str:
        """The loop device behind /dev/mars/RESOURCE."""
        value = os.readlink(self.path(f"/dev/mars/{resource}"))
        return value if value.startswith("/") else os.path.normpath(f"/dev/mars/{value}")

    # -- the daemon

    def marsd_start(self) -> None:
        """Start the daemon; returns when it serves."""
        self.run("marsd start", env={**self.environment(), **self.marsd_environment})

    def marsd_stop(self) -> None:
        """Stop the daemon in the ordinary way."""
        self.run("marsd stop")

    def worker(self) -> int | None:
        """The daemon's worker: the process that listens at the control socket."""
        inodes = set()
        for line in self._proc_text(self.holder.pid, "net/unix").splitlines()[1:]:
            words = line.split()
            if len(words) > 7 and "marsd.sock" in words[7] and int(words[3], 16) & 0x10000:
                inodes.add(f"socket:[{words[6]}]")
        owners = [pid for pid in self.pids() if inodes & self._open_files(pid)]
        young = [pid for pid in owners if self._parent(pid) in owners]
        return (young or owners or [None])[0]

    def status(self) -> dict:
        """What the worker says of its resources at this moment; {} when none answers."""
        try:
            with socket.socket(socket.AF_UNIX) as line:
                line.settimeout(5)
                line.connect(f"/proc/{self.holder.pid}/root/run/mars/marsd.sock")
                line.sendall(b'{"cmd": "status"}\n')
                return json.loads(line.makefile().readline()).get("resources", {})
        except (OSError, ValueError):
            return {}

    def keeper(self) -> int | None:
        """The worker's parent, which holds the devices (found only while a worker runs)."""
        worker = self.worker()
        parent = self._parent(worker) if worker else None
        return parent if parent != self.holder.pid else None

    @staticmethod
    def _proc_text(pid: int, name: str) -> str:
        try:
            return Path(f"/proc/{pid}/{name}").read_text()
        except OSError:
            return ""

    def _parent(self, pid: int) -> int:
        rest = self._proc_text(pid, "stat").rpartition(")")[2].split()
        return int(rest[1]) if rest else 0

    @staticmethod
    def _open_files(pid: int) -> set[str]:
        found = set()
        try:
            for number in os.listdir(f"/proc/{pid}/fd"):
                found.add(os.readlink(f"/proc/{pid}/fd/{number}"))
        except OSError:
            pass
        return found

    def kill9_worker(self) -> int:
        """SIGKILL the worker; returns its number. The keeper is expected to start another."""
        worker = self.worker()
        if worker is None:
            raise HostError(f"{self.name}: no worker runs\n{self.cluster.dump()}")
        os.kill(worker, signal.SIGKILL)
        return worker

    def kill9_keeper(self) -> int:
        """SIGKILL the keeper (and so, by their contract, the end of the worker); returns its number."""
        keeper = self.keeper()
        if keeper is None:
            raise HostError(f"{self.name}: no keeper runs\n{self.cluster.dump()}")
        os.kill(keeper, signal.SIGKILL)
        return keeper

    def wait(self, condition: Callable[[], object], timeout: float = TIMEOUT, what: str = "the condition") -> None:
        """Wait until `condition()` is true; when it does not become so, fail with the state of all hosts."""
        end = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > end:
                raise HostError(f"{self.name}: waited {timeout:.0f} s for {what}\n{self.cluster.dump()}")
            time.sleep(0.05)

    def read_bytes(self, device: str, offset: int, length: int) -> bytes:
        """Bytes of a device as the host names it (`/dev/mars/R` or a loop device), past the page cache."""
        whole = self.mars_device(device.removeprefix("/dev/mars/")) if device.startswith("/dev/mars/") else device
        return loops.read_device(whole, offset, length)

    def close(self) -> None:
        """End all processes, mounts and devices of this host."""
        if self.holder is not None:
            self._note_devices()
            for child in self._children:
                if child.poll() is None:
                    os.killpg(child.pid, signal.SIGKILL)
            self.holder.close()
            for child in self._children:
                child.wait()
                for stream in (child.stdin, child.stdout, child.stderr):
                    if stream is not None and not stream.closed:
                        stream.close()
        for device, sequence in self._mars_loops.items():
            if "/loop" in device and loops.sequence(device) == sequence:
                loops.clear_dead_mars_loop(device)
        for loop in self._loops:
            loop.close()


class Cluster:
    """Some hosts and the switch between them, in one folder that is removed at the end."""

    def __init__(self, names: Iterable[str], pyz: Path | None = None, data_size: int = 256 * MIB,
                 mars_size: int = 2048 * MIB, where: str | None = None, mars_device: str = "") -> None:
        """mars_device: /mars of the (only) host is made on this block device instead of a sparse file."""
        names = list(names)
        self.pyz = pyz or TOP / "mars.pyz"
        self.folder = Path(tempfile.mkdtemp(prefix="marsx-hosts-", dir=where))
        self.addresses = {name: address(number) for number, name in enumerate(names, 1)}
        self.hosts: dict[str, Host] = {}
        self._switch: Switch | None = None
        try:
            self._switch = Switch()
            for number, name in enumerate(names, 1):
                self.hosts[name] = Host(self, name, number, data_size, mars_size, mars_device)
                self.net.plug(name, self.hosts[name].holder.pid, number)
        except BaseException:
            self.close()
            raise

    @property
    def net(self) -> Switch:
        """The network: `cut`, `heal`, `isolate`, `shape`."""
        assert self._switch is not None
        return self._switch

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def __iter__(self):
        return iter(self.hosts.values())

    def dump(self, lines: int = 40) -> str:
        """What an engineer needs when a test failed: display, messages and tree of every host."""
        parts = []
        for host in self:
            parts.append(f"======== {host.name}: processes {list(host.pids().values())}")
            try:
                shown = subprocess.run(host._enter("mars-status"), stdin=subprocess.DEVNULL, capture_output=True,
                                       text=True, timeout=15, env=host.environment())
                parts.append(shown.stdout + shown.stderr)
            except subprocess.TimeoutExpired:
                parts.append("mars-status: no end after 15 s")
            messages = host.path("/run/mars/marsd.log")
            text = messages.read_text(errors="replace") if messages.is_file() else "(no marsd.log)"
            parts.append("-------- marsd.log\n" + "\n".join(text.splitlines()[-lines:]))
            parts.append("-------- tree\n" + "\n".join(f"{k} -> {v}" for k, v in sorted(host.tree().items())))
        return "\n".join(parts)

    def leftovers(self) -> list[str]:
        """What of this cluster still exists on the machine after `close()` (nothing, if all is well)."""
        mine = str(self.folder)
        found = [f"{dev} on {file}" for dev, file in loops.all_backing_files().items() if file.startswith(mine)]
        found += [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if mine in line]
        holders = [host.holder for host in self if host.holder] + ([self._switch.holder] if self._switch else [])
        found += [f"process {holder.process.pid}" for holder in holders if holder.process.poll() is None]
        found += [f"{device} of a dead marsd" for host in self for device, sequence in host._mars_loops.items()
                  if loops.sequence(device) == sequence and loops.backing_file(device) and not loops._answers(device)]
        return found + ([mine] if self.folder.exists() else [])

    def close(self) -> None:
        """End everything, in any state, and remove the folder."""
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            for host in self:
                host.close()
            if self._switch is not None:
                self._switch.holder.close()
            self._settle()
            shutil.rmtree(self.folder, ignore_errors=True)
        finally:
            signal.signal(signal.SIGINT, previous)

    def _settle(self) -> None:
        """The kernel ends mounts and loop devices of dead processes a moment later."""
        mine, end = str(self.folder), time.monotonic() + 20
        while time.monotonic() < end and any(f.startswith(mine) for f in loops.all_backing_files().values()):
            time.sleep(0.02)

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
