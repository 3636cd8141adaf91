"""--parallel[=N]: a marsadm for each resource, at most N at once (0: no bound). What one of them prints comes in one
piece when it ends, in the order of the resources, so nothing is mixed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from marsx.base.config import self_command
from marsx.base.errors import MarsError, PartlyFailedError

Done = tuple[int, str, str]
Start = Callable[[list[str]], Done]


def marsadm(words: list[str]) -> Done:
    """(exit status, stdout, stderr) of one command line."""
    done = subprocess.run([*self_command("marsadm"), *words], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return done.returncode if done.returncode >= 0 else MarsError.exit_code, done.stdout, done.stderr


def run(lines: list[list[str]], most: int, start: Start = marsadm) -> int:
    """Every command line in a process of its own; the exit status of the whole."""
    with ThreadPoolExecutor(most or len(lines)) as pool:
        jobs: list[Future[Done]] = [pool.submit(start, words) for words in lines]
        codes = [_show(job.result()) for job in jobs]
    failed = [code for code in codes if code]
    if len(failed) == len(lines) and len(set(failed)) == 1:
        return failed[0]
    return PartlyFailedError.exit_code if failed else 0


def _show(done: Done) -> int:
    code, out, err = done
    sys.stdout.write(out)
    sys.stdout.flush()
    sys.stderr.write(err)
    sys.stderr.flush()
    return code
