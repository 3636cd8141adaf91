"""split-brain and log-export: where histories part, what was written after it, what is kept of a discarded branch."""
from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from marsx.admin import splitbrain
from marsx.log.chain import Point, VersionLink
from marsx.tree import paths
from tests.ref.log_reader import Log
from tests.unit.admin.conftest import Admin
from tests.unit.daemon.small_logs import RESOURCE as R
from tests.unit.daemon.small_logs import make_log, position, write

ONE = make_log(1, groups=4)  # of a
TAIL = make_log(2, pred=ONE, groups=2)  # of a, too
OTHER = make_log(2, "b", groups=1)


def link(log: Log, group: int, before: Log | None = None, at: int = -1) -> str:
    """Version link of a log up to the end of a group."""
    prev = Point(before.digests[at].hex(), position(before, at)) if before else None
    return str(VersionLink(Point(log.digests[group].hex(), position(log, group)), prev))


@pytest.fixture
def parted(adm: Admin) -> Admin:
    """b was forced after the second group of log 1; a, where we are, went on to log 2."""
    adm.host = "a"
    tree = adm.tree.resource(R, "a", "b")
    tree.put(paths.uuid(), "u-test")
    tree.put(paths.version(R, 1, "a"), link(ONE, -1))
    tree.put(paths.version(R, 2, "a"), link(TAIL, -1, ONE))
    tree.put(paths.version(R, 1, "b"), link(ONE, 2))
    tree.put(paths.version(R, 2, "b"), link(OTHER, -1, ONE, 2))
    write(os.path.join(tree.paths.mars_dir, paths.resource_dir(R)), ONE, TAIL)
    return adm


def test_what_each_side_wrote(parted: Admin) -> None:
    """The last common position, bytes of each side, and the ranges of the side whose logs are here."""
    code, out, err = parted(f"split-brain {R} --json")
    assert code == 0, err
    found = json.loads(out)
    assert found["split"] and found["at"] == str(position(ONE, 2))
    a, b = found["sides"]
    assert (a["host"], a["bytes"]) == ("a", ONE.ends[-1] - ONE.ends[2] + TAIL.ends[-1])
    assert (b["host"], b["bytes"], b["ranges"]) == ("b", OTHER.ends[-1], None)
    assert [tuple(one) for one in a["ranges"]] == splitbrain.merged(
        [(4096 * group, 512 * (1 + 7 * (group % 3))) for group in (2, 3, 0, 1)])
    code, out, _ = parted(f"split-brain {R}")
    assert code == 0 and "SPLIT BRAIN" in out and f"invalidate {R}" in out and "on b" in out


def test_no_split_brain(parted: Admin) -> None:
    """b has nothing of its own: it is behind."""
    parted.tree.put(paths.version(R, 2, "b"), paths.DELETED)
    code, out, _ = parted(f"split-brain {R}")
    assert code == 0 and out.strip() == f"{R}: no split brain"


def test_links_that_do_not_reach_back(parted: Admin) -> None:
    """Rule 7 of honesty: what is not known is not made up."""
    parted.tree.put(paths.version(R, 1, "a"), paths.DELETED)
    parted.tree.put(paths.version(R, 2, "a"), link(TAIL, -1))
    found = json.loads(parted(f"split-brain {R} --json")[1])
    assert found["split"] and found["at"] == "" and found["sides"][0]["bytes"] is None
    assert "unknown" in parted(f"split-brain {R}")[1]


@pytest.mark.parametrize(("ranges", "found"), [
    ([], []), ([(0, 4), (4, 4)], [(0, 8)]), ([(8, 4), (0, 4)], [(0, 4), (8, 4)]), ([(0, 16), (4, 4)], [(0, 16)]),
    ([(0, 8), (4, 8)], [(0, 12)]),
])
def test_merged(ranges: list[tuple[int, int]], found: list[tuple[int, int]]) -> None:
    """By offset, overlapping and touching ones as one."""
    assert splitbrain.merged(ranges) == found


def test_export(parted: Admin, tmp_path: Path) -> None:
    """The files as they are, and what they wrote, record by record; a torn end ends the index, not the export."""
    target = tmp_path / "lost"
    assert parted(f"log-export {R} {target}")[0] == 4
    aside = Path(parted.tree.paths.mars_dir) / f"local-a/aside-{R}/17"
    aside.mkdir(parents=True)
    write(aside, ONE, TAIL)
    with open(aside / "log-000000002-a", "r+b") as file:
        file.truncate(4096 + TAIL.ends[1] + 512)
    code, out, err = parted(f"log-export {R} {target}")
    assert code == 0 and "2 logs" in out, err
    assert (target / "17/log-000000001-a").read_bytes() == (aside / "log-000000001-a").read_bytes()
    lines = (target / "index.txt").read_text().splitlines()
    assert [line.split()[2:] for line in lines if line[0] != "#"] == [
        [str(ends), "write", str(4096 * group), str(512 * (1 + 7 * (group % 3)))]
        for log, groups in ((ONE, range(4)), (TAIL, range(1))) for group, ends in zip(groups, log.ends, strict=False)]
    assert parted(f"log-export {R} {target}")[0] == 3, "never over anything"
    assert parted(f"log-export {R} lost")[0] == 2
    assert json.loads(parted(f"split-brain {R} --json")[1])["aside"]
