"""How long `marsadm view all` and `mars-status` take where there is much to show: 100 resources on 4 hosts.

    python tools/bigtree.py [--resources=N] [--hosts=N] [--rounds=N] [PYZ]

Writes a tree as marsd leaves it (some 38 links a replica), stands in for its marsd on the control socket, starts the
programs from the .pyz again and again, and prints the least and the middle time of each, beside what an empty Python
takes.
"""

import contextlib
import json
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
SIZE = 100 << 30
NS = 1_000_000_000
DIGESTS = ("0123456789abcdef" * 2, "fedcba9876543210" * 2)


def links(resources: int, hosts: list[str], now: int) -> Iterator[tuple[str, str]]:
    """(name, value) of all: the first host is primary of everything, one resource in ten is behind on the last."""
    yield "uuid", f"{hosts[0]}_{now // NS}.000000001"
    for number, host in enumerate(hosts, 1):
        yield f"ips/ip-{host}", f"10.0.0.{number}"
        yield f"ips/member-{host}", f"{number:016x}"
        for key, value in (("alive", "1"), ("time", f"{now // NS}.{now % NS:09d}"), ("tree", "0.1"),
                           ("features", "4,5,0x00000000"), ("usable", "4,5,0x00000000"), ("buildtag", "marsx0.1.0"),
                           ("emergency", "0"), ("rest-space", "800"), ("total-space", "1000"),
                           ("incarnation", f"{number:016x}"), ("unreachable", "-")):
            yield f"actual-{host}/{key}", value
    for number in range(resources):
        yield from _resource(f"resource-vm{number:04d}-data", hosts, number % 10 == 0)


def _resource(res: str, hosts: list[str], is_late: bool) -> Iterator[tuple[str, str]]:
    primary = hosts[0]
    yield f"{res}/size", str(SIZE)
    yield f"{res}/block-size", "4096"
    yield f"{res}/maxnr", "12"
    for host in hosts:
        end = 40960 if is_late and host == hosts[-1] else 81920
        logs = [f"{DIGESTS[0]},log-000000012-{primary},{end}", f"{DIGESTS[1]},log-000000011-{primary},1048576"]
        for key, value in (("data", f"/dev/vg/{res}"), ("device", res.removeprefix("resource-")),
                           ("member", f"{len(host):016x}"), ("actsize", str(SIZE)), ("syncstatus", str(SIZE)),
                           ("version-000000011", f"{logs[1]}:"), ("version-000000012", ":".join(logs)),
                           ("replay", f"log-000000012-{primary},{end},0"),
                           ("syncpos", f"log-000000011-{primary},4096,0,{DIGESTS[1]}")):
            yield f"{res}/{key}-{host}", value
        for key in ("attach", "connect", "sync", "allow-replay"):
            yield f"{res}/todo-{host}/{key}", "1"
        yield f"{res}/todo-{host}/want-primary", "0"
        yield from ((f"{res}/actual-{host}/{key}", value) for key, value in _facts(host == primary, logs[0]))
    yield f"{res}/primary", primary


def _facts(is_primary: bool, end: str) -> Iterator[tuple[str, str]]:
    running, here = ("0", "1") if is_primary else ("1", "0")
    for key in ("copying", "replaying"):
        yield f"is-{key}", running
    yield from (("is-attached", "1"), ("is-syncing", "0"), ("is-primary", here), ("open-count", here),
                ("if-on", here), ("stalled", "-"), ("incarnation", "00000000000000aa"), ("begun", "log-000000012"),
                ("fetched", f"{end.partition(',')[2]},{DIGESTS[0]}"), ("has-emergency", "0"))
    for what in ("sync", "file", "replay", "if"):
        yield f"amount-{what}_rate", "0"
    for key in ("err-stall-fetch", "inf-sync-start", "inf-why", "wrn-stall-replay"):
        yield f"msg-{key}", "OK"
    if not is_primary:
        yield "msg-inf-fetch", "1790000000.000000001 1790000000.000000002 fetching 'data' from a"


def make(root: Path, resources: int, hosts: list[str]) -> int:
    """Write the tree below `root`; how many links it has."""
    from marsx.base import durable

    now, count = time.time_ns() - 60 * NS, 0
    for count, (rel, value) in enumerate(links(resources, hosts, now), 1):
        path = root / rel
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write_link(str(path), value, now + count, False)
    return count


@contextlib.contextmanager
def stand_in(path: Path, hosts: list[str]) -> Iterator[None]:
    """A marsd that answers every question at once."""
    answer = json.dumps({"ok": True, "version": "0.1.0", "heard": dict.fromkeys(hosts, 0.5), "resources": {}})
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(8)

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with listener.accept()[0] as sock:
                        sock.recv(4096)
                        sock.sendall(answer.encode() + b"\n")

        threading.Thread(target=serve, daemon=True).start()
        yield


def measured(words: list[str], rounds: int, environment: dict[str, str]) -> tuple[float, float, float]:
    """(least, middle) ms of a command, and the least processor time. The first two rounds, which fill caches, do not
    count."""
    times, spent = [], []
    for _ in range(rounds + 2):
        began = time.perf_counter()
        subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, check=False)
        times.append((time.perf_counter() - began) * 1000)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime)
    each = [(late - early) * 1000 for early, late in zip(spent[1:], spent[2:], strict=False)]
    return min(times[2:]), statistics.median(times[2:]), min(each)


def main(argv: list[str]) -> int:
    """See the module."""
    options = {"resources": 100, "hosts": 4, "rounds": 20}
    options |= {word[2:].partition("=")[0]: int(word.partition("=")[2]) for word in argv if word.startswith("--")}
    pyz = next((word for word in argv if not word.startswith("--")), str(TOP / "mars.pyz"))
    hosts = [os.uname().nodename, *(f"host{number}" for number in range(2, options["hosts"] + 1))]
    folder = Path(tempfile.mkdtemp(prefix="marsx-bigtree-"))
    try:
        for name in ("mars", "run", "dev", "etc"):
            (folder / name).mkdir()
        count = make(folder / "mars", options["resources"], hosts)
        time.sleep(1.1)  # a link that was written a moment ago is looked at twice
        environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", **{
            f"MARS_{name}": str(folder / part) for name, part in (
                ("DIR", "mars"), ("RUN_DIR", "run"), ("DEV_DIR", "dev"), ("ETC_DIR", "etc"))}}
        print(f"{options['resources']} resources, {options['hosts']} hosts, {count} links; "
              "least and middle time, least processor time, ms:")
        with stand_in(folder / "run/marsd.sock", hosts):
            for line in ("-c pass", f"{pyz} marsadm --version", f"{pyz} marsadm view all", f"{pyz} mars-status",
                         f"{pyz} mars-status --json"):
                words = ["/usr/bin/python3", "-IS", *line.split(" ")]
                least, middle, spent = measured(words, options["rounds"], environment)
                print(f"{least:8.1f} {middle:8.1f} {spent:8.1f}  {line.removeprefix(pyz + ' ')}", flush=True)
    finally:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(TOP))
    sys.exit(main(sys.argv[1:]))
