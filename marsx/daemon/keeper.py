"""The keeper: owns every descriptor that must outlive the worker, and starts the worker again when it dies.

One thread, one poll loop, no asyncio, no waiting: what may wait is done by short-lived children (`keeperjobs`).

Invariants:
  * A new worker is started only after `waitpid` of the old one: all I/O of the dead one has ended (rule 3). Never after
    a time-out.
  * The keeper holds every /dev/fuse descriptor of a device from before the worker serves until the worker drops the
    device, and every data disk exclusively from disk-open to disk-close, also while no worker lives (`holdings`).
  * Per device and per disk one child at a time, in the order of the requests.
  * The number of a loop device is in the state file before anything is bound to it, so a next keeper finds what is
    left.
  * It signals nobody but its own worker, and that only when a forced stop got no answer, and its own children when it
    ends.

When the keeper itself is killed: its worker reads end-of-file on its line and exits; with the worker's last /dev/fuse
descriptor the kernel ends the connection, and users of the devices get I/O errors. Until the worker has gone it holds
`worker.lock`, so a new `marsd start` waits for it. The next keeper takes the dead loop devices away
(`_clear_leftovers`), at once or, where one is still mounted, when its user lets go. Nothing acknowledged is lost: it is
in the log.

(systemd spares processes whose argv[0] begins with "@" at shutdown; Python cannot set that, so units must be ordered
instead.)
"""
from __future__ import annotations

import errno
import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from marsx.daemon import holdings, keeperjobs, runfile
from marsx.daemon.holdings import Holdings, close_all
from marsx.daemon.keeperjobs import Job
from marsx.device.frontend import FrontEnd

LINE_BUFFER = 1 << 20
OUTBOX_MAX = 1000
FORCED_STOP_S = 60.0
OLD_WORKER_S = 15.0
LEFTOVER_S = 20.0
END_S = 10.0
_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class RestartPolicy:
    """When to start a worker again. Delays double, a long life starts them anew, too many deaths are the end."""

    FIRST_S, LONGEST_S, LONG_LIFE_S = 0.05, 5.0, 10.0
    DEATHS, WITHIN_S = 20, 120.0

    def __init__(self) -> None:
        self._delay = 0.0
        self._deaths: deque[float] = deque(maxlen=self.DEATHS)

    def died(self, now: float, lived: float) -> float | None:
        """Seconds to wait before the next worker; None: give up."""
        self._deaths.append(now)
        if len(self._deaths) == self.DEATHS and now - self._deaths[0] <= self.WITHIN_S:
            return None
        grown = min(self._delay * 2, self.LONGEST_S) if self._delay else self.FIRST_S
        self._delay = self.FIRST_S if lived >= self.LONG_LIFE_S else grown
        return self._delay

    def forget(self) -> None:
        """Somebody asked for another try: count from nothing."""
        self._delay = 0.0
        self._deaths.clear()


class Worker:
    """The living worker and the keeper's end of the line to it."""

    def __init__(self, pid: int, sock: socket.socket, generation: int, born: float) -> None:
        self.pid = pid
        self.sock: socket.socket | None = sock
        self.generation = generation
        self.born = born
        self.outbox: deque[tuple[dict[str, Any], list[int]]] = deque()

    def close(self) -> None:
        """The line ends, answers not yet taken are lost."""
        if self.sock:
            self.sock.close()
            self.sock = None
        while self.outbox:
            close_all(self.outbox.popleft()[1])


class Keeper:
    """See the module. `command` with `--keeper-fd=N` starts a worker; `report` tells who started us, `tell` people."""

    def __init__(self, run_dir: str, dev_dir: str, command: list[str], front: FrontEnd, *, tell: Callable[[str], None],
                 report: Callable[[str], None] = lambda line: None, policy: RestartPolicy | None = None) -> None:
        self.run_dir = run_dir
        self.dev_dir = dev_dir
        self.command = command
        self.tell = tell
        self.report = report
        self.policy = policy or RestartPolicy()
        self.held = Holdings(front, self._write_state, self._is_busy)
        self.jobs: dict[int, Job] = {}
        self.waiting: dict[tuple[str, str], deque[Job]] = {}
        self.leftovers: dict[int, str] = {}
        self.worker: Worker | None = None
        self.worker_lock = -1
        self.generation = 0
        self.restarts = 0
        self.start_at: float | None = None
        self.was_ready = False
        self.phase = "starting"
        self.stopping = ""
        self.stop_deadline: float | None = None
        self.refusals = 0
        self.refused = ""
        self.exit_code: int | None = None
        self._wakeup = -1
        self._at_once = {**self.held.at_once, "hello": self._hello, "ready": self._ready,
                         "stop-refused": self._stop_refused}

    # ---- life --------------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Keep until told to stop; the exit status of the process. The caller holds `runfile.lock_keeper`."""
        self._watch_signals()
        try:
            self.worker_lock = self._wait_for_old_worker()
            self._clear_leftovers()
            while self.exit_code is None:
                self._turn()
        except OSError as error:
            self.tell(f"the keeper stops: {error}")
            self.exit_code = 1
        self._end()
        return self.exit_code

    def _watch_signals(self) -> None:
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in _SIGNALS:
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._wakeup = reader

    def _wait_for_old_worker(self) -> int:
        """The worker lock, once no worker of an earlier keeper can write any more (rule 3)."""
        deadline = time.monotonic() + OLD_WORKER_S
        while True:
            try:
                return runfile.lock_worker(self.run_dir)
            except BlockingIOError:
                pid = runfile.read_state(self.run_dir).get("worker", "unknown")
                if time.monotonic() >= deadline:
                    raise OSError(errno.EBUSY, f"the worker of an earlier marsd (pid {pid}) has not ended; "
                                  "wait for it or kill it") from None
            time.sleep(0.05)

    def _clear_leftovers(self) -> None:
        """Start with what a dead keeper left; the worker starts when that is done, or hangs."""
        old = runfile.read_state(self.run_dir).get("bound", {})
        found = holdings.leftovers(self.dev_dir, old if isinstance(old, dict) else {})
        self.start_at = time.monotonic() + (LEFTOVER_S if found else 0.0)
        self.leftovers = dict(found)
        self._write_state()
        for number, name in found.items():
            self._queue(holdings.leftover_job(self.dev_dir, name, number, self._leftover_done))

    def _leftover_done(self, result: dict[str, Any], _: list[int]) -> keeperjobs.Result:
        text = result.get("text") or result.get("error")
        if text:
            self.tell(text)
            self.report(f"note: {text}")
        else:
            self.leftovers.pop(result["number"], None)
        self._write_state()
        if self.phase == "starting" and len(self.jobs) <= 1 and not self.waiting:
            self.start_at = time.monotonic()
        return {}, []

    def _turn(self) -> None:
        """Wait for something to happen, and do what it asks for."""
        poller = select.poll()
        poller.register(self._wakeup, select.POLLIN)
        if self.worker and self.worker.sock:
            poller.register(self.worker.sock, select.POLLIN | (select.POLLOUT if self.worker.outbox else 0))
        by_fd = {job.sock.fileno(): job for job in self.jobs.values() if job.sock}
        for fd in by_fd:
            poller.register(fd, select.POLLIN)
        for fd, _ in poller.poll(self._pause_ms()):
            if fd == self._wakeup:
                self._on_signals()
            elif fd in by_fd:
                by_fd[fd].on_readable()
            else:
                self._flush_outbox()
                self._read_worker()
        self._reap()
        self._on_time(time.monotonic())

    def _pause_ms(self) -> int:
        times = [job.deadline for job in self._all_jobs() if not job.answered]
        times += [t for t in (self.start_at, self.stop_deadline) if t is not None]
        now = time.monotonic()
        return max(0, min(60_000, int((min(times, default=now + 60.0) - now) * 1000) + 1))

    def _all_jobs(self) -> list[Job]:
        return [*self.jobs.values(), *(job for queue in self.waiting.values() for job in queue)]

    def _on_signals(self) -> None:
        numbers = os.read(self._wakeup, 512)
        if signal.SIGUSR1 in numbers:
            self._stop("forced")
        elif signal.SIGTERM in numbers or signal.SIGINT in numbers:
            self._stop("asked")
        if signal.SIGHUP in numbers and self.phase == "given-up":
            self.tell("asked to try again")
            self.policy.forget()
            self.phase = "restarting"
            self._start_in(0.0)

    def _on_time(self, now: float) -> None:
        if self.start_at is not None and now >= self.start_at:
            self.start_at = None
            self._spawn()
        for job in self._all_jobs():
            if not job.answered and now >= job.deadline:
                self._answer(job, {"error": f"timed out; still at work on {job.key[1]}", "errno": errno.ETIMEDOUT}, [])
                if not job.pid:
                    self.waiting[job.key].remove(job)
        if self.stop_deadline is not None and now >= self.stop_deadline:
            self.stop_deadline = None
            if self.worker:
                self.tell(f"forced stop: worker {self.worker.pid} did not end within {FORCED_STOP_S:.0f} s: killed")
                os.kill(self.worker.pid, signal.SIGKILL)

    def _end(self) -> None:
        """Let go of everything. What is still attached is dead for its users, and goes away when they let go."""
        for pid in list(self.jobs):
            os.kill(pid, signal.SIGKILL)
        bound = {**self.leftovers, **self.held.bound_numbers()}
        self.held.close_devices()
        self.jobs.clear()
        self.waiting.clear()
        self.leftovers = bound
        for number, name in self.held.bound_numbers().items():
            self._queue(holdings.leftover_job(self.dev_dir, name, number, self._leftover_done))
        deadline = time.monotonic() + END_S
        while self.jobs and time.monotonic() < deadline:
            self._reap()
            time.sleep(0.02)
        close_all(self.held.disks.values())
        self.held.devices.clear()
        self.held.disks.clear()
        self.phase = "ended"
        self._write_state()

    # ---- the worker --------------------------------------------------------------------------------------------------

    def _start_in(self, delay: float) -> None:
        self.start_at = time.monotonic() + delay
        self._write_state()

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LINE_BUFFER)
        ours.setblocking(False)
        try:
            pid = os.fork()
        except OSError as error:
            ours.close()
            theirs.close()
            self._after_death(f"could not be started: {error}", 0.0, None)
            return
        if pid == 0:
            self._become_worker(theirs)
        theirs.close()
        self.generation += 1
        self.worker = Worker(pid, ours, self.generation, time.monotonic())
        self._write_state()

    def _become_worker(self, line: socket.socket) -> None:
        """Never returns. Own process group: a Ctrl-C at the terminal is for the keeper."""
        try:
            os.setpgid(0, 0)
            signal.set_wakeup_fd(-1)
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            keeperjobs.close_all_but((line.fileno(), self.worker_lock))
            os.set_inheritable(line.fileno(), True)
            os.set_inheritable(self.worker_lock, True)
            os.execv(self.command[0], [*self.command, f"--keeper-fd={line.fileno()}"])
        except BaseException as error:
            os.write(2, f"marsd: cannot start a worker ({' '.join(self.command)}): {error}\n".encode())
        finally:
            os._exit(127)

    def _reap(self) -> None:
        for pid in list(self.jobs):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                job = self.jobs[pid]
                job.reaped(os.waitstatus_to_exitcode(status))
                self._finish(job)
                del self.jobs[pid]
                self._next(job.key)
        if self.worker:
            done, status = os.waitpid(self.worker.pid, os.WNOHANG)
            if done:
                self._worker_ended(self.worker, os.waitstatus_to_exitcode(status))

    def _worker_ended(self, worker: Worker, status: int) -> None:
        self._read_worker(last_words=True)
        worker.close()
        self.worker = None
        for key, queue in list(self.waiting.items()):
            self.waiting[key] = deque(job for job in queue if not job.generation)
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        self._after_death(how, time.monotonic() - worker.born, status)

    def _after_death(self, how: str, lived: float, status: int | None) -> None:
        """No worker lives. End, give up, or start the next one in a while."""
        holding = bool(self.held.attached() or self.held.bound_numbers())
        if self.stopping == "forced" or not holding and (status == 0 or self.stopping):
            self.exit_code = 0
            return
        if not self.was_ready and not holding:
            self.tell(f"the worker {how} before it was ready: marsd does not start")
            self.exit_code = status if status and status > 0 else 1
            return
        delay = self.policy.died(time.monotonic(), lived)
        if delay is None:
            self.phase = "given-up"
            self.tell(f"the worker {how}: {self.policy.DEATHS} deaths within {self.policy.WITHIN_S:.0f} s, "
                      "no further try. The devices are kept and wait; look for the cause above, then `marsd start`")
            self._write_state()
            return
        self.held.count_restart()
        self.restarts += 1
        self.phase = "restarting"
        self.tell(f"the worker {how}; starting it again in {delay:.2f} s")
        self._start_in(delay)

    def _read_worker(self, last_words: bool = False) -> None:
        worker = self.worker
        while worker and worker.sock:
            try:
                message, fds = keeperjobs.receive(worker.sock)
            except BlockingIOError:
                return
            except (OSError, ValueError) as error:
                self.tell(f"the worker's line broke: {error}")
                message, fds = None, []
            close_all(fds)
            if message is None:
                worker.sock.close()
                worker.sock = None
            elif not last_words or message.get("op") in self._at_once:
                self._on_request(message)

    def _on_request(self, message: dict[str, Any]) -> None:
        op = str(message.get("op"))
        try:
            if op in self._at_once:
                answer, fds = self._at_once[op](message)
                self._send({**answer, "id": message.get("id")}, fds)
            elif op in self.held.by_child:
                self._queue(self.held.by_child[op](message), message)
            else:
                raise OSError(errno.ENOSYS, f"the keeper knows no request {op!r:.80}")
        except OSError as error:
            self._send({**keeperjobs.refusal(error), "id": message.get("id")}, [])

    def _send(self, message: dict[str, Any], fds: list[int]) -> None:
        """Now if the line takes it, else when it does. A worker that never reads cannot make the keeper wait."""
        worker = self.worker
        if not worker or not worker.sock:
            return
        if len(worker.outbox) >= OUTBOX_MAX:
            self.tell("the worker does not read its answers: one is lost")
            return
        worker.outbox.append((message, [os.dup(fd) for fd in fds]))
        self._flush_outbox()

    def _flush_outbox(self) -> None:
        worker = self.worker
        while worker and worker.sock and worker.outbox:
            message, fds = worker.outbox[0]
            try:
                keeperjobs.send(worker.sock, message, fds)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                    self.tell(f"cannot answer the worker: {error}")
            worker.outbox.popleft()
            close_all(fds)

    # ---- requests about the worker itself ----------------------------------------------------------------------------

    def _hello(self, _: dict[str, Any]) -> keeperjobs.Result:
        return {"devices": self.held.facts(), "disks": sorted(self.held.disks), "first": self.generation == 1,
                "restarts": self.restarts}, []

    def _ready(self, _: dict[str, Any]) -> keeperjobs.Result:
        self.was_ready = True
        self.phase = "serving"
        self._write_state()
        self.report("ready")
        if self.stopping:
            self._send({"event": "stop", "force": self.stopping == "forced"}, [])
        return {"ok": True}, []

    def _stop(self, how: str) -> None:
        """`asked`: the worker may refuse. `forced`: it ends in time or is killed."""
        self.stopping = how
        if how == "forced":
            self.stop_deadline = time.monotonic() + FORCED_STOP_S
        if self.worker:
            self._send({"event": "stop", "force": how == "forced"}, [])
        elif how == "forced" or not self.held.attached():
            self.exit_code = 0
        else:
            self._refuse(f"no worker runs that could take away {', '.join(self.held.attached())}")

    def _stop_refused(self, message: dict[str, Any]) -> keeperjobs.Result:
        if self.stopping == "asked":
            self._refuse(str(message.get("reason", "the worker gave no reason"))[:2000])
        return {"ok": True}, []

    def _refuse(self, reason: str) -> None:
        self.stopping = ""
        self.refusals += 1
        self.refused = reason
        self.tell(f"not stopping: {reason}")
        self._write_state()

    # ---- jobs --------------------------------------------------------------------------------------------------------

    def _is_busy(self, key: tuple[str, str]) -> bool:
        return bool(self.waiting.get(key)) or any(job.key == key for job in self.jobs.values())

    def _queue(self, job: Job, request: dict[str, Any] | None = None) -> None:
        """Run the job when those before it on the same device or disk are done. Without a request nobody waits."""
        job.answered = request is None
        if request is not None:
            wanted = request.get("timeout")
            usable = isinstance(wanted, (int, float)) and 0 < wanted <= 86400
            seconds = float(wanted) if usable and wanted is not None else keeperjobs.TIMEOUTS[request["op"]]
            job.request, job.generation = request, self.generation
            job.deadline = time.monotonic() + seconds
        self.waiting.setdefault(job.key, deque()).append(job)
        self._next(job.key)

    def _next(self, key: tuple[str, str]) -> None:
        if any(job.key == key for job in self.jobs.values()):
            return
        queue = self.waiting.get(key)
        while queue:
            job = queue.popleft()
            try:
                job.start()
            except OSError as error:
                job.result = keeperjobs.refusal(error)
                self._finish(job)
                continue
            self.jobs[job.pid] = job
            break
        if not queue:
            self.waiting.pop(key, None)

    def _finish(self, job: Job) -> None:
        answer, fds = job.apply(job.result or {}, job.fds)
        self._answer(job, answer, fds)

    def _answer(self, job: Job, answer: dict[str, Any], fds: list[int]) -> None:
        """To the worker that asked, once; a later worker never gets an earlier one's answer."""
        if not job.answered and self.worker and job.generation == self.worker.generation:
            self._send({**answer, "id": job.request.get("id")}, fds)
        job.answered = True

    def _write_state(self) -> None:
        bound = {**self.leftovers, **self.held.bound_numbers()}
        state = {"pid": os.getpid(), "worker": self.worker.pid if self.worker else 0, "phase": self.phase,
                 "restarts": self.restarts, "devices": self.held.facts(), "disks": sorted(self.held.disks),
                 "bound": {str(number): name for number, name in bound.items()},
                 "refusals": self.refusals, "refused": self.refused}
        try:
            runfile.write_state(self.run_dir, state)
        except OSError as error:
            self.tell(f"cannot write {self.run_dir}/{runfile.STATE_FILE}: {error}")
