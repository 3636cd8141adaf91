"""What becomes of `primary` and `secondary` in every situation of facts 5.2 to 5.5, as data.

Each row of COMMANDS is played as a pure test of the preconditions (`tests/unit/admin/test_role_outcomes.py`: `links` is
what differs from two replicas in sync with primary a, alive both); those with `real` on real hosts as well
(`tests/cluster/test_roles_outcomes.py`, where the situation has that name). BRANCHES says where histories have parted
after somebody was forced: for the verdict of the version links, and on real hosts.
"""
from __future__ import annotations

from dataclasses import dataclass
from itertools import product

D1, D2, D3 = "1" * 32, "2" * 32, "3" * 32
LOG = "log-000000001-a"
OFF = (("resource-data/todo-b/connect", "0"),)
A_GONE = (("actual-a/alive", "0"),)
A_SERVES_NOT = (("resource-data/actual-a/is-primary", "0"),)
BEHIND_GAP = f"{D2},log-000000012-a,0:{'0' * 32},log-000000011-a,0"
GAP = (("resource-data/version-000000012-a", BEHIND_GAP),)


@dataclass(frozen=True)
class Row:
    """Command on `host` -> exit status, a part of what is said, who is designated then. `steps`: what the hosts do
    while the command waits (grant: a gives the role up to b; device: marsd of b makes it)."""

    name: str
    command: str
    exit: int
    text: str
    primary: str
    links: tuple[tuple[str, str], ...] = ()
    steps: tuple[str, ...] = ()
    real: str = ""
    host: str = "b"
    third: bool = False


WELL = ("grant", "device")
COMMANDS = (
    # ---- 5.2: planned
    Row("in sync", "primary data", 0, "b is primary", "b", steps=WELL, real="in-sync"),
    Row("it is primary already", "primary data", 0, "a is primary", "a", host="a", real="in-sync"),
    Row("the old primary is busy", "primary data", 3, "umount it on a", "a",
        (("resource-data/actual-a/open-count", "1"),)),
    Row("the own sync is not finished", "primary data", 3, "bytes are not synced", "a",
        (("resource-data/syncstatus-b", "4096"),), real="syncing"),
    Row("replay has not passed the end of the sync", "primary data", 3, "not passed the end of the sync", "a",
        (("resource-data/syncpos-b", f"{LOG},9999360,0,{D3}"),)),
    Row("replay is paused", "primary data", 3, "switch allow-replay is off", "a",
        (("resource-data/todo-b/allow-replay", "0"),), real="paused"),
    Row("disconnected", "primary data", 3, "switch connect is off", "a", OFF, real="disconnected"),
    Row("detached", "primary data", 3, "switch attach is off", "a", (("resource-data/todo-b/attach", "0"),),
        real="detached"),
    Row("lagging", "primary data", 0, "b is primary", "b",
        (("resource-data/replay-b", f"{LOG},4096,0"),), WELL, real="lagging"),
    Row("emergency here", "primary data", 3, "emergency mode", "a", (("resource-data/actual-b/has-emergency", "1"),)),
    Row("the clock here is wrong", "primary data", 3, "clocks are too far apart: c is right", "a",
        (("actual-b/msg-err-clock", "1.000000000 1.000000000 c is right"),)),
    Row("replay has failed here", "primary data", 3, "stopped with error -5", "a",
        (("resource-data/actual-b/replay-code", "-5"),)),
    Row("split brain", "primary data", 3, "split brain", "a",
        (("resource-data/version-000000001-b", f"{D2},{LOG},8192:"),)),
    Row("another one syncs", "primary data", 3, "the sync of c is not finished", "a",
        (("resource-data/syncstatus-c", "0"),), third=True),
    Row("another one syncs, and that is said", "primary --ignore-sync data", 0, "b is primary", "b",
        (("resource-data/syncstatus-c", "0"),), WELL, third=True),
    Row("another one would sync, but nobody is primary", "primary data", 0, "b is primary", "b",
        (("resource-data/syncstatus-c", "0"), *A_SERVES_NOT, ("resource-data/primary", "(none)")), WELL, third=True),
    Row("another one is made primary meanwhile", "primary data", 3, "c was made primary meanwhile", "c",
        steps=("c",), third=True),
    Row("the old primary does not answer", "primary data --timeout=3", 5, "a still is primary", "a", real="cut"),
    Row("the old primary is dead", "primary data --timeout=3", 5, "primary --force", "a", A_GONE, real="dead"),
    Row("cut off after the grant", "primary data --timeout=9", 5, "not there yet", "b", steps=("grant",)),
    Row("the primary is in emergency mode", "primary data", 3, "past the log, in emergency mode", "a", GAP),
    Row("it was, and nobody is primary", "primary data", 3, "first on a: marsadm primary data", "(none)",
        (*GAP, *A_SERVES_NOT, ("resource-data/primary", "(none)"))),
    Row("it was, and that is healed here", "primary data", 0, "b is primary", "b",
        (*GAP, ("resource-data/version-000000012-b", BEHIND_GAP), ("resource-data/replay-b", "log-000000012-a,0,0")),
        ("grant behind the gap", "device")),
    # ---- 5.4: forced
    Row("connected", "primary --force data", 3, "needs a disconnected replica", "a", real="in-sync"),
    Row("detached, forced", "primary --force data", 3, "attach is off", "a",
        (*OFF, ("resource-data/todo-b/attach", "0"))),
    Row("complete log, the primary is dead", "primary --force data", 0, "a is not asked", "b", (*OFF, *A_GONE),
        ("device",), real="dead-forced"),
    Row("incomplete log, who has more is alive", "primary --force data", 3, "a has more of the same history", "a",
        (*OFF, ("resource-data/version-000000001-a", f"{D3},{LOG},12288:"))),
    Row("incomplete log, given up", f"primary --force --accept-position={LOG},8192 data", 0, "b is primary", "b",
        (*OFF, ("resource-data/version-000000001-a", f"{D3},{LOG},12288:")), ("device",)),
    Row("incomplete log, who has more is dead", "primary --force data", 0, "b is primary", "b",
        (*OFF, *A_GONE, ("resource-data/version-000000001-a", f"{D3},{LOG},12288:")), ("device",)),
    Row("not synced, forced", "primary --force data", 3, "bytes are not synced", "a",
        (*OFF, *A_GONE, ("resource-data/syncstatus-b", "4096"))),
    Row("not synced, and that is said", "primary --force --ignore-sync data", 0, "not a whole state", "b",
        (*OFF, *A_GONE, ("resource-data/syncstatus-b", "4096")), ("device",)),
    Row("damaged log, who has it is alive", "primary --force data", 3, f"here {LOG},4096", "a",
        (*OFF, ("resource-data/actual-b/sound", f"{LOG},4096,0,{D2}"))),
    Row("damaged log, given up", f"primary --force --accept-position={LOG},4096 data", 0, "b is primary", "b",
        (*OFF, ("resource-data/actual-b/sound", f"{LOG},4096,0,{D2}")), ("device",)),
    Row("damaged log, who has it is dead", "primary --force data", 0, "b is primary", "b",
        (*OFF, *A_GONE, ("resource-data/actual-b/sound", f"{LOG},4096,0,{D2}")), ("device",)),
    Row("damaged log of the other one, who says he has more", "primary --force data", 0, "b is primary", "b",
        (*OFF, ("resource-data/version-000000001-a", f"{D3},{LOG},12288:"),
         ("resource-data/actual-a/sound", f"{LOG},4096,0,{D2}")), ("device",)),
    Row("damaged log, the disk is a mixture", "primary --force data", 3, "mixture of states up to", "a",
        (*OFF, *A_GONE, ("resource-data/actual-b/sound", f"{LOG},4096,0,{D2}"),
         ("resource-data/replay-b", f"{LOG},4096,4096"))),
    Row("damaged log, the disk is a mixture, and that is said", "primary --force --ignore-sync data", 0, "b is primary",
        "b", (*OFF, *A_GONE, ("resource-data/actual-b/sound", f"{LOG},4096,0,{D2}"),
              ("resource-data/replay-b", f"{LOG},4096,4096")), ("device",)),
    Row("designated already, waiting in vain", "primary --force data", 0, "b is primary", "b",
        (*OFF, *A_GONE, ("resource-data/primary", "b")), ("device",)),
    # ---- 5.5: secondary
    Row("gives the role up", "secondary data", 0, "nobody is primary", "(none)", steps=("gone",), host="a",
        real="secondary"),
    Row("gives it up while in use", "secondary data", 3, "in use", "a", (("resource-data/actual-a/open-count", "1"),),
        host="a"),
    Row("its device stays", "secondary data --timeout=3", 5, "device is still there", "a", host="a"),
    Row("on a secondary", "secondary data", 0, "secondary already", "a", real="in-sync"),
)


@dataclass(frozen=True)
class Branch:
    """b was forced while a was away. Had a written what b has not (`tail`), did b write (`wrote`), and how many logs
    did each begin then? `parted`: are there two histories now?"""

    tail: bool
    wrote: bool
    rotated_a: int
    rotated_b: int

    @property
    def parted(self) -> bool:
        return self.tail and self.wrote


BRANCHES = tuple(Branch(*one) for one in product((False, True), (False, True), (0, 1, 3), (0, 1, 3)))
