"""A long line between two hosts: packets between them take a detour through this program, which holds each one back for
a while. For tests and measurements, because the kernel here has no netem.

    with Delay(cluster, "a", "b", 0.025):       # 25 ms each way
        ...

The detour is a TUN device in the switch's name space, so the hosts' own TCP sees the delay: windows, slow start and
acknowledgements are those of a long line. The rate is not limited: the kernel hands over up to 64 KiB as one packet,
and so many packets may be on their way as memory holds. Packets keep their order.
"""

import collections
import fcntl
import os
import select
import struct
import subprocess
import sys
import time

from tools.hosts import Cluster, HostError

DEVICE = "delay0"
TABLE = "77"
QUEUE = "20000"
PACKET_MAX = 10 + 65536
AT_ONCE = 64
TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
OFFLOADS = 0x01 | 0x02  # TUN_F_CSUM, TUN_F_TSO4: large packets come as they are


class Delay:
    """See the module. `seconds`: each way."""

    def __init__(self, cluster: Cluster, one: str, other: str, seconds: float) -> None:
        self._net = cluster.net
        pid = self._net.holder.pid
        self._process = subprocess.Popen(
            ["nsenter", "-t", str(pid), "-n", "--", sys.executable, "-m", "tools.delay", str(seconds)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=os.path.dirname(os.path.dirname(__file__)))
        if not self._process.stdout.readline():
            raise HostError("no TUN device can be made: is /dev/net/tun there?")
        inside = self._net._inside
        inside("sh", "-c", "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $f; done")
        inside("ip", "link", "set", DEVICE, "up", "txqueuelen", QUEUE)
        inside("ip", "route", "add", "default", "dev", DEVICE, "table", TABLE)
        self._rules = [["iif", f"port{cluster[here].number}", "to", cluster[there].ip, "lookup", TABLE]
                       for here, there in ((one, other), (other, one))]
        for rule in self._rules:
            inside("ip", "rule", "add", *rule)

    def close(self) -> None:
        """The short line again."""
        for rule in self._rules:
            self._net._inside("ip", "rule", "del", *rule)
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()

    def __enter__(self) -> "Delay":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def make_device() -> int:
    """The descriptor of a new TUN device of this name space."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), IFF_TUN | IFF_NO_PI | IFF_VNET_HDR))
    fcntl.ioctl(fd, TUNSETOFFLOAD, OFFLOADS)
    return fd


def forward(fd: int, seconds: float) -> None:
    """Until standard input ends."""
    waiting: collections.deque[tuple[float, bytes]] = collections.deque()
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    poll.register(0, select.POLLIN)
    while True:
        pause = max(0.0, waiting[0][0] - time.monotonic()) * 1000 if waiting else None
        events = dict(poll.poll(pause))
        if 0 in events:
            return
        if fd in events:
            due = time.monotonic() + seconds
            for _ in range(AT_ONCE):
                try:
                    waiting.append((due, os.read(fd, PACKET_MAX)))
                except BlockingIOError:
                    break
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            os.write(fd, waiting.popleft()[1])


if __name__ == "__main__":
    device = make_device()
    print("ready", flush=True)
    forward(device, float(sys.argv[1]))
