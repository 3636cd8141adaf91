"""First process of one test host: builds the host's own root, then keeps its name spaces alive.

Started by `tools/hosts.py` under `unshare --mount --net --uts --pid --fork`. It promises:

* the host sees the machine's programs (bind mounts), but its own `/etc`, `/run`, `/opt`, `/mnt`, `/mars`, `/var/cache`,
  `/proc`, `/sys` and its own `/dev/mars`; nothing of these is visible on the machine;
* orphans are reaped (a daemon that detaches gets this process as parent);
* when standard input ends, however its writer died, this process ends; as it is process 1 of its PID name space, the
  kernel then kills everything in the host and takes its mounts away.

Usage: host_init.py '{"name": "a", "needed": ["/work/main"], "mars": "/dev/loop7", "hosts": {"a": "10.77.1.2"}}'
Prints one JSON line `{"pid": N}` (N as the machine sees it) when the host is ready, or `{"error": TEXT}`.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

OWN = {"proc", "sys", "dev", "run", "etc", "opt", "mnt", "mars", "lost+found", "old_root", "media"}


def call(*argv: str) -> None:
    """Run one mount tool; its own words become the error."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")


def bind_machine(root: Path, needed: list[str]) -> None:
    """Bind the machine's top folders and copy its top-level links.

    Not recursively: mounts of others below /tmp must not be held busy from here. Only those file systems that carry a
    `needed` path (the work tree, the interpreter, the cluster's folder) are bound as well.
    """
    for entry in sorted(Path("/").iterdir()):
        target = root / entry.name
        if entry.name in OWN:
            continue
        if entry.is_symlink():
            target.symlink_to(os.readlink(entry))
        elif entry.is_dir():
            target.mkdir()
            call("mount", "--bind", str(entry), str(target))
    for point in sorted({mount_point(Path(path)) for path in needed}):
        if len(point.parts) > 2 and point.parts[1] not in OWN:
            call("mount", "--bind", str(point), f"{root}{point}")


def mount_point(path: Path) -> Path:
    """The mount point that carries `path`."""
    path = path.resolve()
    while not os.path.ismount(path):
        path = path.parent
    return path


def own_folders(root: Path, wanted: dict) -> None:
    """The folders that are this host's alone."""
    for name in ("proc", "sys", "dev", "run", "opt", "mnt", "mars", ".old"):
        (root / name).mkdir(mode=0o755)
    shutil.copytree("/etc", root / "etc", symlinks=True, ignore_dangling_symlinks=True)
    (root / "etc/mars").mkdir(mode=0o700, exist_ok=True)
    (root / "etc/hostname").write_text(wanted["name"] + "\n")
    lines = ["127.0.0.1 localhost", *(f"{ip} {name}" for name, ip in wanted["hosts"].items())]
    (root / "etc/hosts").write_text("\n".join(lines) + "\n")
    call("mount", "--rbind", "/dev", str(root / "dev"))
    (root / "dev/mars").mkdir(mode=0o755, exist_ok=True)
    for folder in ("run", "var/cache", "dev/mars"):
        call("mount", "-t", "tmpfs", "-o", "mode=0755,size=256m", "tmpfs", str(root / folder))
    (root / "run/lock").mkdir(mode=0o1777)
    call("mount", "-t", "ext4", wanted["mars"], str(root / "mars"))
    (root / "mars").chmod(0o700)


def enter(root: Path) -> None:
    """Make `root` the root of this mount name space and let go of the machine's."""
    os.chdir(root)
    call("pivot_root", ".", ".old")
    os.chdir("/")
    call("mount", "-t", "proc", "proc", "/proc")
    call("mount", "-t", "sysfs", "sysfs", "/sys")
    call("umount", "-l", "/.old")
    os.rmdir("/.old")


def build(wanted: dict) -> int:
    """Build the host; returns this process's number as the machine sees it."""
    outer_pid = int(os.readlink("/proc/self"))
    root = Path("/mnt")
    call("mount", "-t", "tmpfs", "-o", "mode=0755,size=256m", "tmpfs", str(root))
    bind_machine(root, wanted["needed"])
    own_folders(root, wanted)
    enter(root)
    socket.sethostname(wanted["name"])
    call("ip", "link", "set", "lo", "up")
    return outer_pid


def reap(_number: int, _frame: object) -> None:
    """Collect every dead child; daemons that detached have no other parent."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def main() -> int:
    """Build, say so, wait for the end of standard input."""
    os.umask(0o022)
    try:
        pid = build(json.loads(sys.argv[1]))
    except (OSError, KeyError, ValueError) as problem:
        print(json.dumps({"error": str(problem)}), flush=True)
        return 1
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    print(json.dumps({"pid": pid}), flush=True)
    signal.signal(signal.SIGCHLD, reap)
    reap(0, None)
    while os.read(0, 4096):
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
