"""--parallel[=N]: one process for each resource, at most N at once (0: no bound). What one of them prints comes in one
piece when it ends, in the order of the resources, so nothing is mixed."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from typing import IO

from marsx.base.errors import PartlyFailedError

Texts = tuple[IO[bytes], IO[bytes]]


def run(names: list[str], most: int, work: Callable[[str], int]) -> int:
    """`work(name)` in a child for each name; the exit status of the whole."""
    running: dict[int, str] = {}
    texts: dict[str, Texts] = {}
    codes: dict[str, int] = {}
    todo = list(names)
    sys.stdout.flush()
    sys.stderr.flush()
    while todo or running:
        while todo and (not most or len(running) < most):
            name = todo.pop(0)
            texts[name] = (tempfile.TemporaryFile(), tempfile.TemporaryFile())
            running[_start(name, texts[name], work)] = name
        pid, status = os.wait()
        if pid in running:
            codes[running.pop(pid)] = os.waitstatus_to_exitcode(status)
        while texts and (first := next(iter(texts))) in codes:
            _show(texts.pop(first))
    failed = [code for code in codes.values() if code]
    if len(failed) == len(names) and len(set(failed)) == 1:
        return failed[0]
    return PartlyFailedError.exit_code if failed else 0


def _start(name: str, texts: Texts, work: Callable[[str], int]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.dup2(texts[0].fileno(), 1)
        os.dup2(texts[1].fileno(), 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        code = work(name)
        sys.stdout.flush()
        sys.stderr.flush()
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code if 0 <= code < 256 else 1)


def _show(texts: Texts) -> None:
    for file, out in zip(texts, (sys.stdout, sys.stderr), strict=True):
        file.seek(0)
        out.write(file.read().decode(errors="replace"))
        out.flush()
        file.close()
