"""NAME.tpl: found on MARS_PATH, taken only from where nobody else could have put it, used in place of the built-in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from marsx.admin.macro.files import DEFAULT_PATH, MacroFiles
from tests.unit.admin.small_tree import Admin


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of macros that MARS_PATH names; everything above it counts as safe."""
    made = tmp_path / "macros"
    made.mkdir(mode=0o755)
    monkeypatch.setenv("MARS_PATH", f"/nonexistent:{made}")
    return made


def files(place: Path | str, **environ: str) -> tuple[MacroFiles, list[str]]:
    """The macros of a path, and what was warned of."""
    said: list[str] = []
    return MacroFiles({"MARS_PATH": str(place), **environ}, said.append), said


def test_overrides_what_is_built_in(adm: Admin, place: Path) -> None:
    """A file counts in `view`, in other macros, and as a command of its own; values cannot be overridden inside."""
    (place / "role.tpl").write_text("# mine\nBOSS-%role-1and1{}\n")
    (place / "hello.tpl").write_text("hello %{res} %{1}\n")
    assert adm("view-role data")[1] == "BOSS-Secondary\n" and " BOSS-Secondary a \n" in adm("view data")[1]
    assert adm("view-hello data you")[1] == "hello data you\n" and adm("view-hello")[1] == "hello  \n"
    (place / "is-attach.tpl").write_text("always")
    assert adm("view-is-attach data")[1] == "always\n" and adm("view data --macro=%is-attach{}")[1] == "1\n"


def test_frames_of_own_macros(adm: Admin, place: Path) -> None:
    """NAME-header and NAME-footer around `all`."""
    adm.tree.resource("other", "a")
    for name, text in (("mine", "%{res}"), ("mine-header", "<"), ("mine-resource-header", "-"), ("mine-footer", ">")):
        (place / f"{name}.tpl").write_text(text)
    assert adm("view-mine all")[1] == "<\n-\ndata\n-\nother\n>\n"
    assert adm("view-mine data,other")[1] == "data\nother\n"


def test_first_directory_counts(tmp_path: Path) -> None:
    """As in PATH; names that are none are not looked at."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "m.tpl").write_text(name)
    (tmp_path / "two" / "a b.tpl").write_text("x")
    (tmp_path / "two" / "only.tpl").write_text("y")
    found, said = files(f"{tmp_path}/one::{tmp_path}/two")
    assert (found.text("m"), found.text("only"), found.text("none"), found.names()) == ("one", "y", None, ["m", "only"])
    assert not said


@pytest.mark.parametrize(("what", "mode", "word"), [("dir", 0o777, "written by others"), ("dir", 0o775, "by others"),
                                                    ("file", 0o666, "written by others"), ("file", 0o664, "by others")])
def test_written_by_others(place: Path, what: str, mode: int, word: str) -> None:
    """Who else may write there could have put it there: not used, and said once."""
    path = place / "role.tpl"
    path.write_text("evil")
    (place if what == "dir" else path).chmod(mode)
    found, said = files(place)
    assert found.text("role") is None and found.text("role") is None
    assert len(said) == 1 and word in said[0] and str(place) in said[0]


def test_directory_above_written_by_others(tmp_path: Path) -> None:
    """It could be exchanged as a whole, unless the directory above is like /tmp."""
    above = tmp_path / "above"
    place = above / "macros"
    place.mkdir(parents=True)
    (place / "m.tpl").write_text("x")
    above.chmod(0o777)
    assert files(place)[0].text("m") is None
    above.chmod(0o1777)
    assert files(place)[0].text("m") == "x"


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_of_another_user(place: Path) -> None:
    """Root takes nothing from a user; the user takes his own and root's."""
    (place / "m.tpl").write_text("x")
    os.chown(place / "m.tpl", 4711, 4711)
    said: list[str] = []
    assert files(place)[0].text("m") is None
    assert MacroFiles({"MARS_PATH": str(place)}, said.append, uid=4711).text("m") == "x" and not said
    os.chown(place, 4712, 4712)
    assert MacroFiles({"MARS_PATH": str(place)}, said.append, uid=4711).text("m") is None and "4712" in said[0]


def test_not_a_plain_file(place: Path) -> None:
    """Links, pipes, directories, too long, not UTF-8."""
    (place / "real").write_text("x")
    (place / "link.tpl").symlink_to(place / "real")
    os.mkfifo(place / "pipe.tpl", 0o600)
    (place / "dir.tpl").mkdir()
    (place / "long.tpl").write_text("x" * 65537)
    (place / "bytes.tpl").write_bytes(b"\xff")
    found, said = files(place)
    assert [found.text(name) for name in ("link", "pipe", "dir", "long", "bytes")] == [None] * 5
    assert len(said) == 5


def test_home(tmp_path: Path) -> None:
    """~ is HOME, and nothing without it."""
    (tmp_path / ".marsadm").mkdir()
    (tmp_path / ".marsadm" / "m.tpl").write_text("home")
    assert files("~/.marsadm", HOME=str(tmp_path))[0].text("m") == "home"
    assert files("~/.marsadm")[0].text("m") is None and files("~/.marsadm", HOME="relative")[0].text("m") is None
    assert DEFAULT_PATH.startswith(".:~/.marsadm:/etc/marsadm")


def test_dump_macros(adm: Admin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is dumped and read back shows the same; nothing is written over."""
    before = [adm(line)[1] for line in ("view all", "view-1and1 all", "view-replinfo data")]
    made = tmp_path / "dumped"
    made.mkdir()
    monkeypatch.chdir(made)
    assert adm("dump-macros")[0] == 0
    (made / "role.tpl").write_text("changed")
    assert adm("dump-macros")[0] == 1 and (made / "role.tpl").read_text() == "changed"
    (made / "role.tpl").unlink()
    for name in made.iterdir():
        name.unlink()
    assert adm("dump-all-macros")[0] == 0 and (made / "is-attach.tpl").exists()
    monkeypatch.setenv("MARS_PATH", ".")
    assert [adm(line)[1] for line in ("view all", "view-1and1 all", "view-replinfo data")] == before
    (made / "default-line.tpl").write_text("%{res}!\n")
    assert adm("view data")[1] == "data!\n"
