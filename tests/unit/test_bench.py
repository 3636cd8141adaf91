"""The measurements' own parts that need no machine: what is chosen, how results are read, the plot."""
from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import pytest

from bench import plot, report, speed
from bench.report import Row
from bench.rig import Options, Result
from bench.system import GROUPS
from tools.hosts import HostError

FIO = {"jobs": [{"error": 0, "write": {"total_ios": 300, "iops": 100.0, "bw_bytes": 400_000,
                                       "clat_ns": {"mean": 2000.0, "max": 9000}},
                 "read": {"total_ios": 0, "iops": 0.0, "bw_bytes": 0, "clat_ns": {"mean": 0.0, "max": 0}}}]}


def test_options() -> None:
    """Words are taken or refused by name."""
    options = Options.parse(["--seconds=2", "--only=seek,crash", "--size-mib=512"])
    assert (options.seconds, options.only, options.size) == (2, "seek,crash", 512 << 20)
    for bad in ("--what=1", "seconds=1", "--seconds", "--rounds=0", "--seconds=x"):
        with pytest.raises(ValueError):
            Options.parse([bad] if bad != "--seconds" else ["--seconds="])


def test_what_is_chosen() -> None:
    """All but the extra ones; or those that a word names, by group or by a part of the name."""
    everything = {one.__name__ for group in GROUPS for one in group.chosen("")}
    assert {"sustained_random", "recovery", "replay_overwrites", "seek_own_disk"} <= everything
    assert "idle_many" not in everything
    named = [one.__name__ for group in GROUPS for one in group.chosen("crash,depth_1")]
    assert named == ["random_write_depth_1", "recovery"]
    assert [one for group in GROUPS for one in group.chosen("nothing")] == []
    assert len({group.name for group in GROUPS}) == len(GROUPS)


def test_fio_results() -> None:
    """Numbers are taken over; an error of fio, or a run that did nothing, is one here."""
    result = Result.of("noise before\n" + json.dumps(FIO))
    assert (result.iops, result.rate, result.latency_us, result.slowest_us, result.operations) == (100, 0.4, 2, 9, 300)
    assert Result.median([result, Result(1, 1, 1, 1, 1), Result(500, 9, 9, 9, 900)]) == Result(100, 1, 2, 9, 300, 0, 0)
    for change in ({"error": 5}, {"write": {**FIO["jobs"][0]["write"], "total_ios": 0}}):
        with pytest.raises(HostError):
            Result.of(json.dumps({"jobs": [{**FIO["jobs"][0], **change}]}))


def test_verdicts() -> None:
    """A goal is one for the ratio, or for the value where there is no ratio."""
    assert Row("a", 5, "s", goal="<= 5").verdict() == "reached" and Row("a", 6, "s", goal="<= 5").verdict() == "missed"
    assert Row("a", 5, "s", "b", 0.79, ">= 0.8").verdict() == "missed" and Row("a", 5, "s").verdict() == ""


def test_plot() -> None:
    """Every curve of the report is drawn, inside the picture."""
    rows = [Row(f"curve, depth {depth}, {side}", 1000.0 * depth * factor, "IOPS")
            for depth in speed.DEPTHS for side, factor in (("raw", 3), ("empty", 5), ("mars", 2))]
    picture = ElementTree.fromstring(plot.draw(plot.curves([*rows, Row("other", 1, "s")])))
    width, height = float(picture.get("width", 0)), float(picture.get("height", 0))
    lines = picture.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 6
    for line in lines:
        points = [tuple(map(float, pair.split(","))) for pair in line.get("points", "").split()]
        assert len(points) == len(speed.DEPTHS) and all(0 < x < width and 0 < y < height for x, y in points)


def test_the_committed_report_is_sound() -> None:
    """It is read by the display, and its rows are of this program."""
    rows = report.load(report.REPORT)
    assert len({row.name for row in rows}) == len(rows)
