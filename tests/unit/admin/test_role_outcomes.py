"""Every row of the outcome table (facts 5.2 to 5.5), as preconditions and verdicts (rules 7, 18, 23, 24)."""
from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable

import pytest

from marsx.base.position import LogPos
from marsx.log import chain
from marsx.log.chain import Point, VersionLink
from tests.ref.role_outcomes import BRANCHES, COMMANDS, D1, D2, Branch, Row
from tests.unit.admin.small_tree import Admin

PRIMARY = "resource-data/primary"


def step(adm: Admin, name: str) -> Callable[[], None]:
    """What happens while the command waits."""
    def grant(at: str = f"log-000000001-a,8192,{D1}") -> None:
        adm.tree.put("resource-data/actual-a/is-primary", "0")
        adm.tree.put("resource-data/actual-a/granted", f"b,{at}")
    steps = {"grant": grant, "grant behind the gap": lambda: grant(f"log-000000012-a,0,{D2}"),
             "device": lambda: adm.tree.put("resource-data/actual-b/is-primary", "1"),
             "gone": lambda: adm.tree.put("resource-data/actual-a/is-primary", "0"),
             "c": lambda: adm.tree.put(PRIMARY, "c")}
    return steps[name]


@pytest.mark.parametrize("row", COMMANDS, ids=lambda row: row.name)
def test_command(adm: Admin, row: Row) -> None:
    """Rules 12, 18, 23, 24, 27: exit status, what is said, who is designated then. What is refused (exit 3, before
    anything was asked for) has changed nothing."""
    if row.third:
        adm.tree.cluster("a", "b", "c").resource("data", "a", "b", "c")
    for rel, value in row.links:
        adm.tree.put(rel, value)
    adm.host, before = row.host, adm.tree.all()
    code, out, err = adm(row.command, *(step(adm, name) for name in row.steps))
    assert (code, adm.tree.get(PRIMARY)) == (row.exit, row.primary), err
    assert row.text in out + err, out + err
    if code == 3 and not row.steps:
        assert adm.tree.all() == before and "hint:" in err


def test_names_differ() -> None:
    assert len({row.name for row in COMMANDS}) == len(COMMANDS)


def point(producer: str, nr: int, pos: int, what: str) -> Point:
    return Point(hashlib.md5(f"{producer} {nr} {pos} {what}".encode()).hexdigest(), LogPos(nr, producer, pos))


def history(branch: Branch, host: str) -> dict[int, VersionLink]:
    """The links that the host has after what the branch says. Both have log 1 of a up to 8192."""
    common = point("a", 1, 8192, "common")
    if host == "a":
        first = point("a", 1, 12288, "a") if branch.tail else common
        rest, wrote = branch.rotated_a, branch.tail
    else:
        first, rest, wrote = common, 1 + branch.rotated_b, branch.wrote
    links, last = {1: VersionLink(first)}, first
    for nr in range(2, 2 + rest):
        end = point(host, nr, 4096 if wrote else 0, host)
        links[nr], last = VersionLink(end, last), end
    return links


@pytest.mark.parametrize("branch", BRANCHES, ids=str)
def test_verdict(branch: Branch) -> None:
    """Rule 7: a split brain where both wrote after the parting and nowhere else, however often logs were begun; whoever
    compares, with whatever third host beside."""
    links = {"a": history(branch, "a"), "b": history(branch, "b")}
    third = {host: links[host] for host in "ab"}
    for follows in ("a", "b", None):
        hosts = {**third, "c": links[follows]} if follows else third
        for order in itertools.permutations(hosts):
            assert bool(chain.split_brain({host: hosts[host] for host in order})) is branch.parted
