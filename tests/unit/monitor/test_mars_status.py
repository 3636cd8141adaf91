"""mars-status, the program: what marsd says of itself, options, formats, exit status."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path

import docopt
import pytest

from marsx.base.position import LogPos
from marsx.log.record import BLOCK, GROUP_FIELDS, GROUP_MAGIC
from marsx.monitor import mars_status, seen
from marsx.monitor.seen import ask_daemon
from tests.unit.admin.small_tree import SmallTree
from tests.unit.monitor.live_tree import live_tree

LOG1 = "log-000000001-a"


class Marsd:
    """A socket that answers what it is told to."""

    def __init__(self, path: str, reply: bytes) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._reply = reply
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection:
                asked = connection.recv(100)
                if asked != b'{"cmd":"status"}\n':
                    return
                connection.sendall(self._reply)

    def end(self) -> None:
        """No more."""
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(self._listener.getsockname())
            last.sendall(b"end")
        self._thread.join()
        self._listener.close()


@pytest.fixture
def tree(tmp_path: Path) -> SmallTree:
    """This host and b, all well but marsd."""
    return live_tree(tmp_path)


@pytest.fixture
def marsd(tree: SmallTree, request: pytest.FixtureRequest) -> Marsd:
    """One that hears b."""
    found = Marsd(tree.paths.run_dir + "/marsd.sock", b'{"ok":true,"version":"9.9","heard":{"b":1.5}}\n')
    request.addfinalizer(found.end)
    return found


def run(tree: SmallTree, line: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """(exit status, stdout, stderr)"""
    paths = tree.paths
    dirs = [f"--mars-dir={paths.mars_dir}", f"--run-dir={paths.run_dir}", f"--dev-dir={paths.dev_dir}",
            f"--etc-dir={paths.etc_dir}"]
    code = mars_status.main([*line.split(), *dirs])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    ("reply", "version", "heard"),
    [
        (b'{"ok":true,"version":"9.9","heard":{"b":1.5,"c":"x","d":-1}}\n', "9.9", {"b": 1.5}),
        (b'{"ok":true,"version":"\\u001b[2J"}\n', "\\x1b[2J", None),
        (b"garbage\n", "", None),
        (b"[1]\n", "", None),
        (b"", "", None),
    ],
)
def test_marsd_runs(tmp_path: Path, reply: bytes, version: str, heard: object) -> None:
    """Whatever it answers: it runs. Only well-formed parts are believed."""
    path = str(tmp_path / "marsd.sock")
    marsd = Marsd(path, reply)
    said = ask_daemon(path)
    marsd.end()
    assert (said.state, said.version, said.heard) == (seen.RUNNING, version, heard)
    assert "(running)" in str(said)


def test_marsd_does_not_run(tmp_path: Path) -> None:
    """No socket: it does not run."""
    assert ask_daemon(str(tmp_path / "marsd.sock")) == seen.Daemon(seen.DOWN)


def test_marsd_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It accepts and does not answer: that is not the same as down."""
    monkeypatch.setattr(seen, "PING_TIMEOUT", 0.05)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "marsd.sock"))
        listener.listen()
        assert ask_daemon(str(tmp_path / "marsd.sock")).state == seen.SILENT


def test_when_log_was_written(tmp_path: Path) -> None:
    """The time behind and before a position comes from the group there, and from no other."""
    folder = tmp_path / "resource-data"
    folder.mkdir()

    def group(nr: int, pos: int, real: int) -> bytes:
        fields = GROUP_FIELDS.pack(GROUP_MAGIC, 1, 1, 0, bytes(16), nr, 0, pos, BLOCK, bytes(16), 0, 0, real, 0, 1, 0)
        return fields.ljust(BLOCK, b"\0")

    (folder / LOG1).write_bytes(bytes(BLOCK) + group(1, 0, 111) + bytes(BLOCK) + group(1, 2 * BLOCK, 222))
    (folder / "log-000000002-b").write_bytes(bytes(BLOCK) + group(2, 0, 333))
    end = 3 * BLOCK

    def behind(nr: int, pos: int) -> int:
        return seen.time_behind(str(tmp_path), "data", LogPos(nr, "a" if nr == 1 else "b", pos), end)

    assert [behind(1, 0), behind(1, BLOCK), behind(1, 2 * BLOCK), behind(1, end)] == [111, 0, 222, 333]
    before = [seen.time_before(str(tmp_path), "data", LogPos(1, "a", pos)) for pos in (0, BLOCK, 2 * BLOCK, end)]
    assert before == [0, 111, 111, 222]
    assert seen.time_behind(str(tmp_path), "none", LogPos(1, "a", 0), end) == 0


def test_exit_status(tree: SmallTree, marsd: Marsd, capsys: pytest.CaptureFixture[str]) -> None:
    """0, 1, 2 by the worst; the first line names it; a limit moves it."""
    code, out, _ = run(tree, "", capsys)
    assert code == 0 and out.splitlines()[0].endswith(": OK")
    tree.put("resource-data/todo-b/allow-replay", "0")
    code, out, _ = run(tree, "", capsys)
    assert code == 2 and out.splitlines()[0].endswith(": CRITICAL: data on b: Replay is paused")
    tree.put("resource-data/todo-b/allow-replay", "1")
    assert run(tree, "--peer=1,5", capsys)[0] == 1 and run(tree, "--peer=1,1.2", capsys)[0] == 2
    assert run(tree, "--peer=off", capsys)[0] == 0


def test_not_known_is_three(tree: SmallTree, capsys: pytest.CaptureFixture[str]) -> None:
    """marsd down (shown all the same), no such resource, a wrong command line, a tree that cannot be read."""
    code, out, _ = run(tree, "", capsys)
    assert code == 3 and "UNKNOWN" in out.splitlines()[0] and "-> modus for resource data" in out
    for line, words in (
        ("--resource=none", "unknown resource 'none'"),
        ("--wrong", "unknown option '--wrong'"),
        ("--interval=0", "a number of seconds"),
        ("--lag=much", "not a limit"),
        ("--json --events", "do not go together"),
        ("--events --interval=1", "do not go together"),
    ):
        code, out, err = run(tree, line, capsys)
        assert (code, out) == (3, "") and words in err
    assert run(tree, "--nagios --resource=none", capsys)[:2] == (3, "MARS UNKNOWN - unknown resource 'none'\n")
    Path(tree.paths.mars_dir).rename(tree.paths.mars_dir + "-gone")
    assert run(tree, "", capsys)[0] == 3


def test_formats(tree: SmallTree, marsd: Marsd, capsys: pytest.CaptureFixture[str]) -> None:
    """--json is one structure, --nagios one line with data, --version needs no tree; options combine."""
    found = json.loads(run(tree, "--json --history --system --debug --resource=data", capsys)[1])
    assert (found["format"], found["version"], found["level"]) == ("mars-status", 1, 0)
    assert found["system"]["logger_flush_ms"]["value"] == 20 and found["debug"] == []
    assert [one["log"] for one in found["resources"]["data"]["history"]] == [1]
    out = run(tree, "--nagios", capsys)[1]
    assert out.startswith("MARS OK - 1 resource | ") and "'b.age'=1.5s;30;120;0" in out
    assert "'data.b.lag'=0s;60;600;0" in out and "'data.b.sync'=100%;;;0;100" in out
    code, out, _ = run(tree, "--history --status --system --debug --ascii", capsys)
    assert code == 0
    assert all(word in out for word in ("Systemdata", "|-----> Vers.000000001", "|>>>", "---> Debug <---"))
    Path(tree.paths.mars_dir).rename(tree.paths.mars_dir + "-gone")
    code, out, _ = run(tree, "--version", capsys)
    assert code == 0 and "marsd 9.9 (running)" in out and "OK" not in out


def test_reads_only(tree: SmallTree, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing below the four directories changes, whatever is asked."""
    root = Path(tree.paths.mars_dir).parent

    def state() -> list[object]:
        return sorted((str(path), path.lstat().st_mtime_ns, path.lstat().st_ctime_ns) for path in root.rglob("*"))

    before = state()
    for line in ("", "--json", "--nagios", "--history --status --system --debug"):
        run(tree, line, capsys)
    assert state() == before


def test_debug_and_system(tree: SmallTree, marsd: Marsd, capsys: pytest.CaptureFixture[str]) -> None:
    """Errors and warnings go to the resource they name; a tunable shows what was set, by whom, and what counts."""
    Path(tree.paths.run_dir, "marsd.log").write_text(
        "2026-11-23T01:00:00.123 ERROR x: data: disk gone\x1b[2J\n2026-11-23T01:00:01.000 INFO x: data: fine\n"
        "2026-11-23T01:00:02.000 WARNING x: clock is odd\nno line\n")
    Path(tree.paths.run_dir, "sys").mkdir()
    Path(tree.paths.run_dir, "sys/sync_fly").write_text("7\n")
    Path(tree.paths.etc_dir, "marsd.toml").write_text("[tunables]\nring_mb = 64\n")
    out = run(tree, "--debug --system", capsys)[1]
    assert "-> Debug for resource data\n\t2026-11-23 01:00:00: ERROR data: disk gone\\x1b[2J\n" in out
    assert "---> Debug <---\n\t2026-11-23 01:00:02: WARNING clock is odd\n" in out and "fine" not in out
    assert "-> sync_fly is set to 7 spans, actually used 7 spans (default 64): " in out
    toml = f"{tree.paths.etc_dir}/marsd.toml"
    assert f"-> ring_mb is set to 64 MiB by {toml}, actually used 64 MiB (default 32): " in out
    assert "-> logger_flush_ms is unset, actually used 20 ms: " in out


def test_completion_knows_all_options() -> None:
    """Each option of the usage text, but the four directories, can be completed."""
    text = (Path(__file__).resolve().parents[3] / "docs/completion/mars.bash").read_text()
    part = text.partition("_mars_status()")[2]
    options = {word.strip(",").partition("=")[0] for word in mars_status.USAGE.split() if word.startswith("--")}
    missing = [option for option in sorted(options) if not option.endswith("-dir") and option not in part]
    assert missing == []


def test_defaults_are_those_of_docopt() -> None:
    """What counts without any option needs no docopt."""
    assert mars_status.defaults() == dict(docopt.docopt(mars_status.USAGE, [], default_help=False))
