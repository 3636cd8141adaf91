"""The door: which program starts, what it loads, how errors leave."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import marsx
from marsx import __main__ as door
from marsx.base import errors

TOP = Path(__file__).resolve().parents[2]

PROGRAM = '''
import os, sys
from marsx.base.errors import NotFoundError
def main(argv):
    what = argv[0] if argv else ""
    if what == "error":
        raise NotFoundError("no such \\x1b[2J thing\\nsecond line", "do this")
    if what == "interrupt":
        raise KeyboardInterrupt
    if what == "bug":
        raise RuntimeError("a bug")
    if what == "pipe":
        raise BrokenPipeError(32, "some socket")
    if what == "flood":
        while True:
            print("x" * 1000)
    print(what, len(argv))
    return 7 if what == "seven" else None
'''


@pytest.fixture
def programs(tmp_path: Path) -> dict[str, str]:
    """Environment in which every program is the one above."""
    (tmp_path / "stand_in.py").write_text(PROGRAM)
    (tmp_path / "start.py").write_text(
        "import sys\nfrom marsx import __main__ as door\n"
        "door.PROGRAMS = dict.fromkeys(door.PROGRAMS, 'stand_in')\nsys.exit(door.main(sys.argv[1:]))\n")
    return {**os.environ, "PYTHONPATH": f"{TOP}:{tmp_path}", "START": str(tmp_path / "start.py")}


def call(programs: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """Run the door as `words`."""
    return subprocess.run([sys.executable, programs["START"], *words], env=programs, capture_output=True, text=True,
                          timeout=60)


@pytest.mark.parametrize("words", [("/usr/sbin/marsadm", "a", "b"), ("mars.pyz", "marsadm", "a", "b"),
                                   ("x/mars-status", "a", "b"), ("other-name", "marsd", "a", "b")])
def test_dispatch(programs: dict[str, str], words: tuple[str, ...]) -> None:
    """By the name of the link, else by the first argument; the program gets the rest."""
    done = call(programs, *words)
    assert (done.returncode, done.stdout, done.stderr) == (0, "a 2\n", "")


def test_exit_status_of_the_program(programs: dict[str, str]) -> None:
    """What main returns counts."""
    assert call(programs, "marsadm", "seven").returncode == 7


def test_error_leaves_as_text_and_code(programs: dict[str, str]) -> None:
    """One line, further lines and the hint indented, no control characters, no traceback."""
    done = call(programs, "marsadm", "error")
    assert done.returncode == errors.NotFoundError.exit_code
    assert done.stderr == "marsadm: no such \\x1b[2J thing\n  second line\n  do this\n"


def test_interrupt_is_130(programs: dict[str, str]) -> None:
    """Quiet."""
    done = call(programs, "marsadm", "interrupt")
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.parametrize(("what", "text"), [("bug", "RuntimeError: a bug"), ("pipe", "BrokenPipeError")])
def test_bugs_stay_visible(programs: dict[str, str], what: str, text: str) -> None:
    """What is no MarsError keeps its traceback; a broken socket of the program is not taken for a closed output."""
    done = call(programs, "marsadm", what)
    assert done.returncode == 1 and text in done.stderr and "Traceback" in done.stderr


def test_reader_that_goes_away_is_quiet(programs: dict[str, str]) -> None:
    """`mars-status | head -1` prints one line and no complaint."""
    process = subprocess.Popen([sys.executable, programs["START"], "mars-status", "flood"], env=programs,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stderr
    assert process.stdout.readline().startswith("xxx")
    process.stdout.close()
    assert (process.wait(60), process.stderr.read()) == (141, "")
    process.stderr.close()


@pytest.mark.parametrize("words", [["marsadm", "--version"], ["mars.pyz", "marsadm", "--version"]])
def test_version_loads_nothing(words: list[str]) -> None:
    """--version must not pay for docopt or any room."""
    code = (f"import sys\nfrom marsx.__main__ import main\nassert main({words!r}) == 0\n"
            "loud = [name for name in sys.modules if name.startswith('marsx.') and name != 'marsx.__main__']\n"
            "assert not loud and 'docopt' not in sys.modules and 're' not in sys.modules, loud")
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=TOP, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"marsadm {marsx.__version__}\n", "")


def test_no_program_is_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing, or something unknown: says what there is, code 2; --help is 0."""
    assert door.main(["mars.pyz"]) == 2 and "which program?" in capsys.readouterr().err
    assert door.main(["mars.pyz", "no\x1b"]) == 2
    assert "\x1b" not in capsys.readouterr().err
    assert door.main(["mars.pyz", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in door.PROGRAMS)


@pytest.mark.parametrize("words", [["marsadm", "view", "all"], ["mars-status"]])
def test_a_display_loads_little(words: list[str]) -> None:
    """What costs more than it does for a display is left alone: it is started often."""
    heavy = {"ast", "tokenize", "logging", "asyncio", "subprocess", "marsx._ext.marssum", "marsx.peer", "marsx.daemon"}
    code = (f"import sys; from marsx import __main__ as door; door.main(['x', *{words!r}, '--mars-dir=/nowhere']); "
            "print(*sys.modules)")
    done = subprocess.run([sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(TOP)!r}); {code}"],
                          capture_output=True, text=True, timeout=60)
    loaded = set(done.stdout.split())
    assert "marsx.tree.store" in loaded and not heavy & loaded, done.stderr


def test_inspect_is_there_when_it_is_asked_for() -> None:
    """The stand-in has the constants of the real one, and gives way to it."""
    code = ("import sys; from marsx import __main__ as door; door.spare_inspect(); import inspect as stub; "
            "from marsx._ext import marstree; assert 'ast' not in sys.modules; "
            "assert str(stub.signature(lambda a, b: 0)) == '(a, b)' and 'ast' in sys.modules; "
            "import inspect as real; assert real is not stub and real.getsource(door.main); "
            "assert {name: getattr(real, name) for name in door.INSPECT} == door.INSPECT; "
            "door.spare_inspect(); assert sys.modules['inspect'] is real")
    subprocess.run([sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(TOP)!r}); {code}"], check=True,
                   timeout=60)


@pytest.mark.parametrize("threads", [False, True])
def test_the_end_runs_what_was_to_be_run(threads: bool) -> None:
    """Status, output and exit functions are those of an ordinary end, with threads and without."""
    code = (f"import atexit, sys; sys.path.insert(0, {str(TOP)!r}); from marsx import __main__ as door; "
            f"{'import threading; ' if threads else ''}atexit.register(print, 'left'); "
            "sys.argv = ['mars', 'nothing']; door.run()")
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == "left\n" and "unknown program 'nothing'" in done.stderr
