#!/usr/bin/env python3
"""Stand-in for `mars.pyz`: just enough of a daemon (keeper, worker, control socket) to test hosts and fixture.

It replicates nothing. `marsd start` forks a keeper that restarts its worker, as the contract of the real one says;
every other command prints its name, arguments and host name.
"""

import os
import socket
import sys
import time

SOCKET = "/run/mars/marsd.sock"


def worker(keeper: int) -> None:
    """Listen at the control socket until killed or until the keeper is gone."""
    if os.path.exists(SOCKET):
        os.unlink(SOCKET)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(SOCKET)
    listener.listen()
    while os.getppid() == keeper:
        time.sleep(0.02)
    os._exit(0)


def keep() -> None:
    """Start a worker again and again."""
    while True:
        pid = os.fork()
        if pid == 0:
            worker(os.getppid())
        os.waitpid(pid, 0)


def start() -> None:
    """Detach a keeper and return when its worker listens."""
    os.makedirs("/run/mars", exist_ok=True)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            null = os.open("/dev/null", os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            keep()
        os._exit(0)
    os.wait()
    end = time.monotonic() + 10
    while not os.path.exists(SOCKET) and time.monotonic() < end:
        time.sleep(0.01)


def main() -> int:
    """Act by the name we were called with."""
    if os.path.basename(sys.argv[0]) == "marsd" and sys.argv[1:] == ["start"]:
        start()
        return 0
    print(os.path.basename(sys.argv[0]), *sys.argv[1:], "on", socket.gethostname())
    return 3 if "fail" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
