"""marsd, the command: start, run, stop, status; and the door through which the keeper starts its worker.

Promises: `start` returns 0 only when the worker serves; otherwise the reason is printed and nothing of it runs on,
except after a time-out: then it goes on starting. `stop` signals only the process that the kernel names as the holder
of our lock, through a pidfd, so never a stranger; and it never takes a device from its users unless told to by
--force.
"""
from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from marsx.base.config import Paths
from marsx.base.errors import (
    DaemonDownError,
    MarsError,
    PermissionDeniedError,
    PreconditionError,
    TimeoutExpired,
    UsageError,
    from_exit_code,
)
from marsx.base.text import printable
from marsx.daemon import runfile
from marsx.tree import paths as tree

USAGE = """The daemon of MARS: keeps the devices /dev/mars/RES, their logs and their replication.

Usage:
  marsd start [options]
  marsd run [options]
  marsd stop [--force] [options]
  marsd status [options]
  marsd worker --keeper-fd=N [options]
  marsd (-h | --help)

Commands:
  start     start in the background; returns when the daemon serves, with status 0 only then
  run       the same in the foreground; ends with the daemon
  stop      take the devices away and end; refused while a device is in use
  status    say whether marsd runs (exit status 0) or not (6), and what it holds
  worker    for marsd itself

Options:
  --mars-dir=DIR   logs and state of the cluster (MARS_DIR, else /mars)
  --run-dir=DIR    pid file, socket, messages (MARS_RUN_DIR, else /run/mars)
  --dev-dir=DIR    the devices (MARS_DEV_DIR, else /dev/mars)
  --etc-dir=DIR    settings and keys (MARS_ETC_DIR, else /etc/mars)
  --frontend=NAME  how devices are made: fuse [default: fuse]
  --timeout=S      longest wait of start and stop, in seconds [default: 60]
  --force          stop although devices are in use: their users get I/O errors
  --keeper-fd=N    line to the keeper
  -h, --help       this text
"""

_OPTIONS = {"--mars-dir", "--run-dir", "--dev-dir", "--etc-dir", "--frontend", "--timeout", "--force",
            "--keeper-fd", "--help"}
_TAIL_BYTES = 8192
_TAIL_LINES = 12
_NAME = "marsd-keeper"


def main(argv: Sequence[str]) -> int:
    """One call of marsd; `argv` without the program's name. Returns the exit status."""
    options = _parse(list(argv))
    paths = Paths.of(options)
    if options["worker"]:
        from marsx.daemon import worker

        return int(worker.main(_number(options, "--keeper-fd"), paths) or 0)
    if options["--frontend"] != "fuse":
        raise UsageError(f"no front end {printable(str(options['--frontend']))!r} here", "--frontend=fuse")
    timeout = float(_number(options, "--timeout"))
    if options["status"]:
        return status(paths)
    if os.geteuid() != 0:
        raise PermissionDeniedError("marsd needs root", "run it with sudo")
    if options["stop"]:
        return stop(paths, bool(options["--force"]), timeout)
    check_host(paths)
    return start(paths, timeout) if options["start"] else run(paths)


def _parse(argv: list[str]) -> dict[str, Any]:
    for word in argv:
        if word.startswith("--") and word.partition("=")[0] not in _OPTIONS:
            raise UsageError(f"unknown option {printable(word)!r}", "see marsd --help")
    from docopt import DocoptExit, docopt

    try:
        return dict(docopt(USAGE, argv=argv))
    except DocoptExit:
        said = " ".join(printable(word) for word in argv)
        raise UsageError(f"not understood: marsd {said}".rstrip(), "see marsd --help") from None


def _number(options: dict[str, Any], name: str) -> int:
    text = str(options[name])
    if not (text.isascii() and text.isdigit() and len(text) < 8):
        raise UsageError(f"{name}: not a number: {printable(text)!r}", "see marsd --help")
    return int(text)


# ---- what must be there before anything starts ----------------------------------------------------------------------

def check_host(paths: Paths) -> None:
    """All that can be known to be wrong before anything is started; makes run_dir and dev_dir."""
    if not os.path.lexists(paths.mars_dir):
        raise PreconditionError(f"{paths.mars_dir} does not exist", "mount its file system, or make the cluster first")
    if not os.path.isdir(paths.mars_dir):
        raise PreconditionError(f"{paths.mars_dir} is not a directory", "give the right one with --mars-dir")
    if not os.access(paths.mars_dir, os.R_OK | os.W_OK | os.X_OK):
        raise PermissionDeniedError(f"{paths.mars_dir} is not writable", "is its file system mounted read-only?")
    if not os.path.lexists(os.path.join(paths.mars_dir, tree.uuid())):
        if os.path.exists(os.path.join(paths.etc_dir, "tls", "host.crt")):
            name = f"{paths.mars_dir}/uuid"
            raise PreconditionError(f"{name} is missing, but this host has certificates of a cluster",
                                    f"ln -s VALUE {name}, with what `readlink {name}` says on another host")
        raise PreconditionError("this host is in no cluster", "marsadm create-cluster, or: marsadm join-cluster HOST")
    for path, mode in ((paths.run_dir, 0o700), (paths.dev_dir, 0o755)):
        try:
            os.makedirs(path, mode=mode, exist_ok=True)
        except OSError as error:
            hint = "choose another directory, or mend this one"
            raise PermissionDeniedError(f"cannot make {path}: {error.strerror}", hint) from error
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionDeniedError(f"{path} is not writable", "is its file system mounted read-only?")
    facts = os.stat(paths.run_dir)
    if facts.st_uid != os.geteuid() or facts.st_mode & 0o022:
        hint = f"chown root {paths.run_dir}; chmod 700 {paths.run_dir}"
        raise PermissionDeniedError(f"{paths.run_dir} can be written by others", hint)
    for node, module in (("/dev/fuse", "fuse"), ("/dev/loop-control", "loop")):
        if not os.path.exists(node) and not _load_module(module, node):
            raise PreconditionError(f"no {node}", f"load the kernel module: modprobe {module}")


def _load_module(module: str, node: str) -> bool:
    with contextlib.suppress(OSError):
        pid = os.posix_spawnp("modprobe", ["modprobe", "-q", module], os.environ)
        os.waitpid(pid, 0)
    return os.path.exists(node)


# ---- start and run ---------------------------------------------------------------------------------------------------

def worker_command(paths: Paths) -> list[str]:
    """How the keeper starts a worker: the same interpreter, the same .pyz or package, the same directories."""
    flags = ["-I"] * sys.flags.isolated + ["-S"] * sys.flags.no_site + ["-B"] * sys.flags.dont_write_bytecode
    program = os.path.realpath(sys.argv[0])
    door = [program] if _is_zip(program) else ["-m", "marsx"]
    names = ("mars_dir", "run_dir", "dev_dir", "etc_dir")
    dirs = [f"--{name.replace('_', '-')}={getattr(paths, name)}" for name in names]
    return [sys.executable, *flags, *door, "marsd", "worker", *dirs]


def _is_zip(path: str) -> bool:
    """A zip file ends with its directory; a script or a package's __main__.py does not."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - (1 << 16)))
            return b"PK\x05\x06" in file.read()
    except OSError:
        return False


def _share_package() -> None:
    """A worker started by `-m marsx` must find the package and what it needs, whatever our directory is."""
    import marsx

    root = os.path.dirname(os.path.dirname(os.path.abspath(marsx.__file__)))
    old = os.environ.get("PYTHONPATH", "")
    if root not in old.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(part for part in (root, old) if part)


def keep(paths: Paths, report: Callable[[str], None], foreground: bool) -> int:
    """Be the keeper until the end; the exit status."""
    from marsx.daemon.keeper import Keeper
    from marsx.device.loop import FuseLoop

    command = worker_command(paths)
    if "-m" in command:
        _share_package()
    lock = runfile.lock_keeper(paths.run_dir)
    os.chdir("/")
    os.umask(0o077)
    tell = _teller(paths.messages_file, foreground)
    _harden(tell)
    keeper = Keeper(paths.run_dir, paths.dev_dir, command, FuseLoop(paths.dev_dir), tell=tell, report=report)
    code = keeper.run()
    os.ftruncate(lock, 0)
    return code


def _teller(path: str, foreground: bool) -> Callable[[str], None]:
    """Messages of the keeper. It opens the file for each one: the worker rotates it."""
    def tell(text: str) -> None:
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(now)) + f".{int(now * 1000) % 1000:03d}"
        line = f"{stamp} WARNING marsx.daemon.keeper: {printable(text, 4000)}\n"
        if foreground:
            sys.stderr.write(f"marsd: {printable(text, 4000)}\n")
            sys.stderr.flush()
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.write(fd, line.encode())
            finally:
                os.close(fd)

    return tell


def _harden(tell: Callable[[str], None]) -> None:
    """Stay alive and able to act when memory is short. What the host does not permit is said, not fatal."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    mcl_current, mcl_future, pr_set_io_flusher = 1, 2, 57
    for path, text in (("/proc/self/oom_score_adj", "-1000"), ("/proc/self/comm", _NAME)):
        try:
            with open(path, "w", encoding="ascii") as file:
                file.write(text)
        except OSError as error:
            tell(f"cannot write {text} to {path}: {error.strerror}")
    if libc.mlockall(mcl_current | mcl_future):
        tell(f"cannot lock the keeper's memory: {os.strerror(ctypes.get_errno())}")
    if libc.prctl(pr_set_io_flusher, 1, 0, 0, 0):
        tell(f"cannot become an I/O flusher: {os.strerror(ctypes.get_errno())} (harmless unless memory is short)")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def run(paths: Paths) -> int:
    """In the foreground."""
    return keep(paths, lambda line: None, foreground=True)


def start(paths: Paths, timeout: float) -> int:
    """In the background; back when it serves."""
    if runfile.keeper_pid(paths.run_dir):
        return _start_again(paths, timeout)
    before = _file_size(paths.messages_file)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _go_to_background(paths, writer)
    os.close(writer)
    os.waitpid(child, 0)
    code, deadline = 1, time.monotonic() + timeout
    try:
        for line in _lines(reader, deadline):
            word, _, rest = line.partition(" ")
            if word == "ready":
                return 0
            if word == "note:":
                sys.stderr.write(f"marsd: {printable(rest)}\n")
            elif word == "failed":
                code = int(rest)  # its process ends now, and with it the pipe
    finally:
        os.close(reader)
    while runfile.keeper_pid(paths.run_dir) and time.monotonic() < deadline:
        time.sleep(0.01)
    raise _failure(paths, before, code)


def _go_to_background(paths: Paths, writer: int) -> None:
    """Never returns: the second child becomes the keeper, a process of nobody's terminal."""
    code = 1
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        nothing = os.open(os.devnull, os.O_RDWR)
        log = os.open(paths.messages_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        for target, source in ((0, nothing), (1, log), (2, log)):
            os.dup2(source, target)
        os.close(nothing)
        os.close(log)

        def report(line: str) -> None:
            with contextlib.suppress(OSError):
                os.write(writer, line.replace("\n", " ").encode() + b"\n")

        try:
            code = keep(paths, report, foreground=False)
        except MarsError as error:
            sys.stderr.write(f"marsd: {error.text}\n")
            code = error.exit_code
        report(f"failed {code or 1}")
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _lines(fd: int, deadline: float) -> Iterator[str]:
    """Lines of a pipe until its end."""
    poller, data = select.poll(), b""
    poller.register(fd, select.POLLIN)
    while True:
        if not poller.poll(max(0, int((deadline - time.monotonic()) * 1000))):
            raise TimeoutExpired("marsd was started but does not serve yet", "marsd status and the messages say more")
        chunk = os.read(fd, 4096)
        if not chunk:
            return
        data += chunk
        *whole, data = data.split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)


def _file_size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return 0


def _failure(paths: Paths, before: int, code: int) -> MarsError:
    """The error of a start that came to nothing, with what the processes said meanwhile."""
    said: list[str] = []
    with contextlib.suppress(OSError), open(paths.messages_file, "rb") as file:
        size = _file_size(paths.messages_file)
        file.seek(max(before if before <= size else 0, size - _TAIL_BYTES))
        said = file.read(_TAIL_BYTES).decode(errors="replace").splitlines()[-_TAIL_LINES:]
    return from_exit_code(code, "\n".join(["marsd did not start", *said]), f"all messages are in {paths.messages_file}")


def _start_again(paths: Paths, timeout: float) -> int:
    """A keeper runs already. If it gave up on its worker, ask it for another try; else refuse."""
    state = runfile.read_state(paths.run_dir)
    if state.get("phase") != "given-up":
        raise runfile.already_running(paths.run_dir)
    with _keeper_handle(paths) as handle:
        signal.pidfd_send_signal(handle, signal.SIGHUP)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            phase = runfile.read_state(paths.run_dir).get("phase")
            if phase == "serving":
                return 0
            if _has_ended(handle, 0.1):
                raise MarsError("marsd ended", f"the messages are in {paths.messages_file}")
    raise TimeoutExpired("the worker does not serve yet", f"the messages are in {paths.messages_file}")


# ---- stop and status -------------------------------------------------------------------------------------------------

@contextlib.contextmanager
def _keeper_handle(paths: Paths) -> Iterator[int]:
    """pidfd of the keeper. Asked twice: between pid and pidfd the keeper could end and its pid go to somebody else."""
    pid = runfile.keeper_pid(paths.run_dir)
    try:
        handle = os.pidfd_open(pid) if pid else -1
    except ProcessLookupError:
        handle = -1
    try:
        if handle < 0 or runfile.keeper_pid(paths.run_dir) != pid:
            raise DaemonDownError("marsd does not run here", "marsd start")
        yield handle
    finally:
        if handle >= 0:
            os.close(handle)


def _has_ended(handle: int, seconds: float) -> bool:
    poller = select.poll()
    poller.register(handle, select.POLLIN)
    return bool(poller.poll(int(seconds * 1000)))


def stop(paths: Paths, force: bool, timeout: float) -> int:
    """Ask the keeper to end, and wait until it has."""
    with _keeper_handle(paths) as handle:
        before = runfile.read_state(paths.run_dir).get("refusals", 0)
        signal.pidfd_send_signal(handle, signal.SIGUSR1 if force else signal.SIGTERM)
        deadline = time.monotonic() + timeout
        while not _has_ended(handle, 0.05):
            state = runfile.read_state(paths.run_dir)
            if state.get("refusals", before) != before:
                hint = "unmount and close the devices first, or marsd stop --force (I/O errors for their users)"
                raise PreconditionError(f"marsd keeps running: {state.get('refused', '')}", hint)
            if time.monotonic() >= deadline:
                hint = "it goes on trying; marsd status shows it; --force ends it"
                raise TimeoutExpired("marsd has not ended yet", hint)
    return 0


def status(paths: Paths) -> int:
    """Print what runs here; 0 running, 6 not, 1 running without a worker that could serve."""
    try:
        pid = runfile.keeper_pid(paths.run_dir)
    except PermissionError as error:
        raise PermissionDeniedError(f"cannot read {error.filename}", "run as root") from None
    if not pid:
        print("marsd: not running")
        return DaemonDownError.exit_code
    state = runfile.read_state(paths.run_dir)
    worker = f"worker pid {state['worker']}" if state.get("worker") else "no worker"
    phase, restarts = state.get("phase", "unknown"), state.get("restarts", 0)
    print(f"marsd: running, pid {pid}, {worker}, {phase}, {restarts} worker restarts")
    for device in state.get("devices", []):
        shape = f"{device['size']} bytes, block {device['block_size']}"
        print(f"device {device['name']}: {device['loop'] or device['state']}, {shape}")
    for path in state.get("disks", []):
        print(f"disk {path}: held")
    return MarsError.exit_code if state.get("phase") == "given-up" else 0
