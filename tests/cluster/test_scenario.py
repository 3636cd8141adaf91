"""The readers of progress, the demo's comparison and the report tool: pure, on small inputs."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import report
from tools import demo, scenario

D = "0123456789abcdef" * 2


class Tree:
    """A host of which only the tree exists."""

    def __init__(self, name: str, entries: dict[str, str]) -> None:
        self.name, self.entries = name, {f"resource-r/{key}": value for key, value in entries.items()}

    def link(self, rel: str) -> str:
        """As `Host.link`."""
        return self.entries.get(rel, "")

    def links(self, folder: str, prefix: str) -> dict[str, str]:
        """As `Host.links`."""
        whole = f"{folder}/{prefix}"
        return {key.removeprefix(folder + "/"): value for key, value in self.entries.items() if key.startswith(whole)}


def secondary(replay: str, synced: str = "100") -> Tree:
    """A replica of 100 bytes."""
    return Tree("b", {"size": "100", "syncstatus-b": synced, "replay-b": replay})


@pytest.mark.parametrize(("replay", "synced", "there"), [
    ("log-000000003-a,8192,0", "100", True),
    ("log-000000003-a,8192,4096", "100", False),
    ("log-000000003-a,4096,0", "100", False),
    ("log-000000002-a,8192,0", "100", False),
    ("log-000000003-a,8192,0", "99", False),
    ("log-000000003-a,8192", "100", False),
    ("", "100", False),
])
def test_caught_up(replay, synced, there):
    """Only a clean replay at the published end of a fully synced replica counts."""
    primary = Tree("a", {"version-000000003-a": f"{D},log-000000003-a,8192:{D},log-000000002-a,4096",
                         "version-000000002-a": f"{D},log-000000002-a,4096:", "version-000000009-b": "rubbish"})
    assert scenario.caught_up(primary, secondary(replay, synced), "r") is there


def test_end_of_a_log_is_the_begin_of_the_next():
    """(N, end) and (N+1, 0) are one place (rule 7); (N+1, 0) is not an earlier place in N."""
    primary = Tree("a", {"version-000000003-a": f"{D},log-000000003-a,0:{D},log-000000002-b,4096"})
    assert scenario.caught_up(primary, secondary("log-000000002-b,4096,0"), "r")
    assert scenario.caught_up(primary, secondary("log-000000003-a,0,0"), "r")
    assert not scenario.caught_up(primary, secondary("log-000000002-b,0,0"), "r")


def test_backlog_counts_all_logs_between():
    """Bytes of the logs from the secondary's one to the newest."""
    primary = Tree("a", {"version-000000003-a": f"{D},log-000000003-a,300:{D},log-000000002-a,200",
                         "version-000000002-a": f"{D},log-000000002-a,200:{D},log-000000001-a,100"})
    assert scenario.backlog(primary, secondary("log-000000002-a,50,0"), "r") == (50, 500)
    assert scenario.backlog(primary, secondary("log-000000003-a,300,0"), "r") == (300, 300)
    assert scenario.backlog(primary, secondary(""), "r") == (0, 0)


def make_link(place: Path, value: str) -> None:
    """A symbolic link with a fixed time."""
    place.symlink_to(value)
    os.utime(place, (1, 1), follow_symlinks=False)


@pytest.mark.parametrize("change", ["contents", "mode", "link", "missing", "more", "time"])
def test_demo_sees_every_difference(tmp_path, change):
    """Two equal trees are equal; one changed byte, mode, link, time, missing or additional file is seen."""
    for name in "xy":
        top = tmp_path / name
        (top / "d").mkdir(parents=True)
        (top / "d/file").write_text("text")
        os.utime(top / "d/file", (1, 1))
        make_link(top / "link", "d/file")
    x, y = (dict(demo.entries(tmp_path / name)) for name in "xy")
    assert x == y and set(x) == {"d", "d/file", "link"}
    file = tmp_path / "y/d/file"
    if change == "contents":
        file.write_text("Text")
        os.utime(file, (1, 1))
    elif change == "mode":
        file.chmod(0o600)
    elif change == "link":
        (tmp_path / "y/link").unlink()
        make_link(tmp_path / "y/link", "elsewhere")
    elif change == "missing":
        file.unlink()
    elif change == "more":
        (tmp_path / "y/d/more").touch()
    else:
        os.utime(file, (1, 2))
    found = dict(demo.entries(tmp_path / "y"))
    different = {name for name in x.keys() | found.keys() if x.get(name) != found.get(name)}
    assert different == {{"link": "link", "more": "d/more"}.get(change, "d/file")}


def test_demo_refuses_to_call_nothing_a_proof(monkeypatch):
    """Equal but empty devices are no proof."""
    one = SimpleNamespace(data=SimpleNamespace(file=Path(os.devnull)), run=lambda _: None)
    made = demo.Demo.__new__(demo.Demo)
    made.alpha = made.beta = one
    made.first, made.second, made.show = [(Path("/x"), 1000)], [], demo.Show()
    monkeypatch.setattr(scenario, "wait_equal", lambda *_: None)
    monkeypatch.setattr(demo.loops, "data_bytes", lambda _: 10)
    with pytest.raises(demo.HostError, match="proves nothing"):
        made._compare_devices()


def test_report_row_is_judged():
    """Goals speak of the ratio, or of the value where nothing is compared."""
    assert report.Row("n", 1, "IOPS", "raw", 0.79, ">= 0.8").verdict() == "missed"
    assert report.Row("n", 1, "IOPS", "raw", 0.80, ">= 0.8").verdict() == "reached"
    assert report.Row("n", 1, "us", "raw", 1.31, "<= 1.3").verdict() == "missed"
    assert report.Row("lag", 49, "ms", goal="<= 50").verdict() == "reached"
    assert report.Row("n", 1, "IOPS").verdict() == ""
    for bad in ({"goal": "0.8"}, {"goal": "> 0.8"}, {"name": ""}, {"value": float("nan")}):
        with pytest.raises(ValueError):
            report.Row(**{"name": "n", "value": 1, "unit": "", **bad})


def test_report_takes_benchmarks_over(tmp_path):
    """Rates and ratio come from the results; new rows replace old ones of the same name, others stay."""
    def one(name: str, seconds: float, **info: object) -> dict:
        return {"name": name, "stats": {"min": seconds}, "extra_info": info}

    results = tmp_path / "results.json"
    results.write_text(json.dumps({"benchmarks": [
        one("raw", 0.5, bytes=10**9), one("other", 1.0),
        one("ours", 0.625, bytes=10**9, report="log append", against="raw", goal=">= 0.95")]}))
    target = tmp_path / "report.json"
    report.save(target, [report.Row("log append", 1, "MB/s"), report.Row("kept", 2, "MB/s")])
    assert report.main(["report.py", f"--to={target}", str(results)]) == 0
    assert json.loads(target.read_text()) == [
        {"name": "kept", "value": 2, "unit": "MB/s", "against": "", "ratio": None, "goal": ""},
        {"name": "log append", "value": 1600.0, "unit": "MB/s", "against": "raw: 2000 MB/s", "ratio": 0.8,
         "goal": ">= 0.95"}]
    results.write_text(json.dumps({"benchmarks": [one("ours", 1, bytes=1, report="x", against="none")]}))
    assert report.main(["report.py", f"--to={target}", str(results)]) == 1
