"""Start-up of the .pyz: code comes only from directories that nobody else could have written to.

The archives here hold a tiny program in place of marsx, packed and started like the real one. The start-up code itself
is the real one (tools/pyz_main.py, tools/pyz_extract.py).
"""
from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools import mkpyz

TOP = Path(__file__).resolve().parents[2]
NOBODY = 65534
PROGRAM = "import sys, os, marsx\ndef run():\n    print('hello', os.path.dirname(marsx.__file__), marsx.archive)\n"

# An interpreter that every user may start; a pyenv below /root is not one.
SHARED_PYTHON = "/usr/bin/python3"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="acts as two users: needs root")


@pytest.fixture
def room() -> Iterator[Path]:
    """A directory whose every parent is root's (pytest's own are group-private, fine for root, closed for others)."""
    import shutil
    import tempfile

    path = Path(tempfile.mkdtemp(prefix="marsx-pyz-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def pyz(room: Path) -> Path:
    """An archive with the real start-up code around a tiny program."""
    return make_pyz(room / "mars.pyz", {})


def make_pyz(path: Path, more: dict[str, bytes]) -> Path:
    """Pack with the functions of tools/mkpyz.py."""
    door = (TOP / "tools/pyz_main.py").read_text()
    files = {"site-packages/marsx/__init__.py": b"archive = None\n",
             "site-packages/marsx/__main__.py": PROGRAM.encode(),
             "pyz_extract.py": (TOP / "tools/pyz_extract.py").read_bytes(), **more}
    files["__main__.py"] = door.replace("@BUILD@", mkpyz.build_id(files, door)).encode()
    mkpyz.write_archive(path, f"{sys.executable} -IS", files)
    return path


def build_of(pyz: Path) -> str:
    """The build id inside."""
    with zipfile.ZipFile(pyz) as archive:
        found = re.search(r'BUILD = "(\w+)"', archive.read("__main__.py").decode())
    assert found
    return found[1]


def start(pyz: Path, cache: Path | str | None, user: int = 0, umask: int = 0o022,
          **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the archive as a user."""
    chosen = {"MARS_CACHE_DIR": str(cache)} if cache else {}
    who = {} if user == os.geteuid() else {"user": user, "group": user, "extra_groups": []}
    if who and "3.11" > subprocess.run([SHARED_PYTHON, "-c", "import sys; print('%d.%02d' % sys.version_info[:2])"],
                                       capture_output=True, text=True, timeout=60).stdout:
        pytest.skip(f"{SHARED_PYTHON}, the python of other users, is older than 3.11")
    python = SHARED_PYTHON if who else sys.executable
    return subprocess.run([python, "-IS", str(pyz), "marsadm"], env={"PATH": "/bin", **chosen, **environment},
                          capture_output=True, text=True, timeout=60, umask=umask, **who)  # type: ignore[call-overload]


def plant(cache: Path, build: str, owner: int) -> None:
    """A ready cache with foreign code, made by `owner`."""
    site = cache / build / "marsx"
    site.mkdir(parents=True)
    (site / "__init__.py").write_text("archive = None\n")
    (site / "__main__.py").write_text("def run():\n    print('PLANTED')\n")
    for path in [cache, *cache.rglob("*")]:
        os.chown(path, owner, owner)


def test_first_and_second_run(pyz: Path, room: Path) -> None:
    """Unpacked once; the second run uses it without reading the archive's contents again."""
    cache = room / "cache"
    first = start(pyz, cache, os.geteuid())
    site = cache / build_of(pyz)
    assert first.stdout == f"hello {site}/marsx {pyz}\n", first.stderr
    (site / "marsx/__main__.py").write_text("def run():\n    print('second')\n")
    assert start(pyz, cache, os.geteuid()).stdout == "second\n"


@pytest.mark.parametrize("umask", [0o077, 0o000, 0o002])
def test_modes_do_not_depend_on_the_umask(pyz: Path, room: Path, umask: int) -> None:
    """Readable by all, writable by the owner alone, also where byte code will be written."""
    done = start(pyz, room / "cache", os.geteuid(), umask)
    assert done.returncode == 0, done.stderr
    site = room / "cache" / build_of(pyz)
    for path in [site, *site.rglob("*")]:
        mode = path.stat().st_mode & 0o777
        if path.suffix == ".pyc":
            assert mode & 0o022 == 0
        else:
            assert mode == (0o755 if path.is_dir() else 0o644), path
    assert (site / "marsx/__pycache__").is_dir()


@needs_root
def test_root_refuses_a_planted_cache(pyz: Path, room: Path) -> None:
    """The attack on shiv's cache: a whole cache made by another user is never executed by root."""
    plant(room / "cache", build_of(pyz), NOBODY)
    done = start(pyz, room / "cache")
    assert "PLANTED" not in done.stdout and done.returncode == 10
    assert "belongs to user id 65534" in done.stderr


@needs_root
@pytest.mark.parametrize("what", ["site", "place", "parent", "link", "parent-link", "group"])
def test_root_refuses_what_others_can_change(pyz: Path, room: Path, what: str) -> None:
    """Each single weak component of the path is enough to refuse."""
    parent = room / "parent"
    cache = parent / "cache"
    plant(cache, build_of(pyz), 0)
    site = cache / build_of(pyz)
    assert start(pyz, cache).stdout == "PLANTED\n", "all root's: trusted"
    if what == "site":
        os.chown(site, NOBODY, NOBODY)
    elif what == "place":
        cache.chmod(0o777)
    elif what == "parent":
        parent.chmod(0o757)
    elif what == "group":
        cache.chmod(0o775)
    elif what == "link":
        site.rename(room / "elsewhere")
        site.symlink_to(room / "elsewhere")
    else:
        parent.rename(room / "elsewhere")
        parent.symlink_to("elsewhere")
        os.lchown(parent, NOBODY, NOBODY)
    done = start(pyz, cache)
    assert "PLANTED" not in done.stdout and done.returncode == 10, done.stdout
    assert done.stderr.startswith("mars: not unpacking there: ")


@needs_root
def test_user_ignores_a_cache_of_another_user(pyz: Path, room: Path) -> None:
    """A user runs root's code or his own, never a third one's; else he gets a private copy, removed after."""
    plant(room / "cache", build_of(pyz), 12345)
    before = set(Path("/tmp").glob("mars-*"))
    done = start(pyz, room / "cache", NOBODY)
    assert re.fullmatch(r"hello /tmp/mars-\w+/marsx .*\n", done.stdout), done.stdout + done.stderr
    assert set(Path("/tmp").glob("mars-*")) - before == set()


@needs_root
def test_user_uses_roots_cache(pyz: Path, room: Path) -> None:
    """Made by root under umask 077, used by everybody."""
    start(pyz, room / "cache", 0, 0o077)
    assert start(pyz, room / "cache", NOBODY).stdout == f"hello {room}/cache/{build_of(pyz)}/marsx {pyz}\n"


@needs_root
def test_user_gets_his_own_cache(pyz: Path, room: Path) -> None:
    """Below XDG_CACHE_HOME, else HOME; mode 0700."""
    home = room / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    for environment, place in (({"HOME": str(home)}, home / ".cache/mars"),
                               ({"HOME": str(home), "XDG_CACHE_HOME": str(home / "x")}, home / "x/mars")):
        done = start(pyz, None, NOBODY, **environment)
        assert done.stdout.startswith(f"hello {place}/{build_of(pyz)}/marsx"), done.stdout + done.stderr
        assert place.stat().st_mode & 0o777 == 0o700 and place.stat().st_uid == NOBODY


def test_variables_of_shiv_do_nothing(pyz: Path, room: Path) -> None:
    """Each of these made shiv's own start-up run something else or somewhere else."""
    (room / "evil").mkdir()
    (room / "evil/marsx.py").write_text("print('EVIL')")
    done = start(pyz, room / "cache", os.geteuid(), SHIV_ROOT=str(room / "evil"), SHIV_ENTRY_POINT="os:abort",
                 SHIV_INTERPRETER="1", SHIV_PREPEND_PYTHONPATH=str(room / "evil"), SHIV_MODULE="x",
                 PYTHONPATH=str(room / "evil"))
    assert done.returncode == 0 and done.stdout.startswith("hello "), done.stderr


def test_concurrent_first_runs(pyz: Path, room: Path) -> None:
    """All succeed, one copy remains, nothing half made."""
    processes = [subprocess.Popen([sys.executable, "-IS", str(pyz)], env={"MARS_CACHE_DIR": str(room / "cache")},
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(6)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert {output for output in outputs} == {(f"hello {room}/cache/{build_of(pyz)}/marsx {pyz}\n", "")}
    assert [path.name for path in (room / "cache").iterdir()] == [build_of(pyz)]


def test_kill_in_the_middle(room: Path) -> None:
    """kill -9 while unpacking leaves no half cache that counts; the next run repairs, and old remains go."""
    import time

    big = {f"site-packages/pad/{number}.py": os.urandom(40) * 100 for number in range(400)}
    pyz = make_pyz(room / "mars.pyz", big)
    cache = room / "cache"
    victim = subprocess.Popen([sys.executable, "-IS", str(pyz)], env={"MARS_CACHE_DIR": str(cache)},
                              stdout=subprocess.DEVNULL)
    end = time.monotonic() + 30
    while time.monotonic() < end and not list(cache.glob(".new-*/pad/*.py")):
        assert victim.poll() is None, "ended before it was seen unpacking"
    victim.send_signal(signal.SIGKILL)
    victim.wait(30)
    left = list(cache.iterdir())
    assert left and all(path.name.startswith(".new-") for path in left)
    for path in left:
        os.utime(path, (1, 1))
    done = start(pyz, cache, os.geteuid())
    assert done.stdout.startswith("hello "), done.stderr
    assert [path.name for path in cache.iterdir()] == [build_of(pyz)]
    assert len(list((cache / build_of(pyz) / "pad").glob("*.py"))) == 400


@pytest.mark.parametrize("name", ["site-packages/../evil.py", "site-packages//etc/evil.py"])
def test_archive_cannot_name_outside(room: Path, name: str) -> None:
    """Even a damaged archive writes nowhere else."""
    done = start(make_pyz(room / "mars.pyz", {name: b"x"}), room / "cache", os.geteuid())
    assert done.returncode == 10 and "outside" in done.stderr
    assert not list(room.rglob("evil.py"))


def test_damaged_archive_is_not_installed(pyz: Path, room: Path) -> None:
    """A flipped byte in a packed file is found by its CRC, and no cache remains."""
    data = bytearray(pyz.read_bytes())
    with zipfile.ZipFile(pyz) as archive:
        info = archive.getinfo("site-packages/marsx/__main__.py")
    data[info.header_offset + 30 + len(info.filename) + 10] ^= 0x40
    pyz.write_bytes(data)
    done = start(pyz, room / "cache", os.geteuid())
    assert done.returncode != 0 and "hello" not in done.stdout
    assert not list((room / "cache").iterdir())


def test_same_inputs_same_bytes(room: Path, pyz: Path) -> None:
    """Reproducible, and another content is another build."""
    assert make_pyz(room / "again.pyz", {}).read_bytes() == pyz.read_bytes()
    assert build_of(make_pyz(room / "other.pyz", {"site-packages/x.py": b""})) != build_of(pyz)


def test_old_python_is_told(room: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The start-up code itself says that the interpreter is too old."""
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    with pytest.raises(SystemExit):
        exec(compile((TOP / "tools/pyz_main.py").read_text(), "pyz_main", "exec"), {"__name__": "x"})
    assert "at least 3.11" in capsys.readouterr().err


