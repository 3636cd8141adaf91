"""Distances along the version links: across logs, with holes, and what each replica has."""

from __future__ import annotations

import pytest

from marsx.base.position import LogPos
from marsx.tree.distance import Amounts, LogMap
from marsx.tree.view import View

D = "1" * 32
RES = "resource-r"


def link(nr: int, end: int, before: int | None) -> str:
    """A version link of a log that `a` wrote."""
    previous = f"{D},log-{nr - 1:09d}-a,{before}" if before is not None else ""
    return f"{D},log-{nr:09d}-a,{end}:{previous}"


def logs(**entries: str) -> LogMap:
    """A resource of a and b; `version_5_a="..."` for version-000000005-a."""
    items = [("ips/ip-a", "10.0.0.1"), ("ips/ip-b", "10.0.0.2"), (f"{RES}/size", "4096")]
    items += [(f"{RES}/data-{host}", "/dev/x") for host in "ab"]
    for key, value in entries.items():
        kind, *rest = key.split("_")
        name = f"version-{int(rest[0]):09d}-{rest[1]}" if kind == "version" else f"{kind}-{rest[0]}"
        items.append((f"{RES}/actual-{rest[0]}/fetched" if kind == "fetched" else f"{RES}/{name}", value))
    return LogMap(View([(rel, value, nr + 1) for nr, (rel, value) in enumerate(items)]), "r")


THREE = {
    "version_5_a": link(5, 4096, None), "version_6_a": link(6, 8192, 4096), "version_7_a": link(7, 400, 8192),
    "version_5_b": link(5, 4096, None), "version_6_b": link(6, 1000, 4096),
    "replay_a": "log-000000007-a,300,0", "replay_b": "log-000000006-a,100,900",
}  # fmt: skip


def test_amounts() -> None:
    """b replays log 6, whose predecessor it knows; a wrote log 7."""
    found = logs(**THREE)
    assert found.base("b") == 5 and found.amounts("b") == Amounts(4196, 5096, 5096 + 7192 + 400)
    assert found.replay_rest("b") == 900 and found.fetch_rest("b") == 7592
    assert found.amounts("a") == Amounts(4096 + 8192 + 300, 4096 + 8192 + 400, 4096 + 8192 + 400)


def test_fetched_is_the_most_that_is_said() -> None:
    """What marsd says, the links, and the replay link."""
    assert logs(**THREE, fetched_b=f"log-000000006-a,5000,{D}").replay_rest("b") == 4900
    assert logs(**{**THREE, "replay_b": "log-000000006-a,2000,0"}).fetched("b") == LogPos(6, "a", 2000)


def test_a_hole_ends_the_base() -> None:
    """Older links behind a hole are another history."""
    del (more := dict(THREE))["version_5_b"]
    more["version_3_b"] = link(3, 4096, None)
    found = logs(**more)
    assert found.base("b") == 6 and found.amounts("b").replayed == 100


@pytest.mark.parametrize(
    ("start", "end", "between"),
    [((5, 4096), (6, 0), 0), ((6, 100), (6, 100), 0), ((6, 200), (6, 100), 0), ((5, 0), (7, 1), 4096 + 8192 + 1),
     ((9, 5), (11, 7), 7)],
)  # fmt: skip
def test_distance(start: tuple[int, int], end: tuple[int, int], between: int) -> None:
    """Rule 7: the end of a log is the start of the next; what nobody knows counts as nothing."""
    assert logs(**THREE).distance(LogPos(start[0], "a", start[1]), LogPos(end[0], "a", end[1])) == between


def test_nothing_known() -> None:
    """Neither links nor positions, and links that are none."""
    found = logs(version_5_a="garbage")
    assert found.newest is None and found.amounts("b") == Amounts(0, 0, 0) and found.base("b") == 0
