"""Man pages and completion: up to date, sound for groff, and completing what there is."""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from marsx.admin import marsadm

TOP = Path(__file__).resolve().parents[2]
PAGES = sorted((TOP / "docs/man").iterdir())


def test_pages_are_fresh() -> None:
    """docs/man and docs/completion are what `make man` would write."""
    done = subprocess.run([sys.executable, TOP / "tools/manpages.py", "--check"], capture_output=True, text=True,
                          timeout=60)
    assert done.returncode == 0, done.stderr


def test_pages_are_all_there() -> None:
    """One for each program, one about it all."""
    assert [page.name for page in PAGES] == ["mars-status.8", "mars.7", "marsadm.8", "marsd.8"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_groff_has_no_warnings(page: Path) -> None:
    """All warnings on, none comes; the text is not empty."""
    if not shutil.which("groff"):
        pytest.skip("groff is not there (make deps brings it)")
    done = subprocess.run(["groff", "-man", "-ww", "-Tutf8", "-rLL=110n", page], capture_output=True, text=True,
                          timeout=60)
    assert (done.returncode, done.stderr) == (0, "") and len(done.stdout) > 1000


def test_every_command_is_in_the_page() -> None:
    """No row is left out."""
    text = (TOP / "docs/man/marsadm.8").read_text().replace("\\-", "-")
    missing = [name for name, row in marsadm.commands().items() if f"\n.B {name} {row.synopsis}".rstrip() not in text]
    assert missing == []


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two resources and two hosts; one resource and one host are gone."""
    for name, value in (("resource-data/size", "1"), ("resource-mail/size", "1"), ("resource-gone/maxnr", "1"),
                        ("ips/ip-alpha", "10.0.0.1"), ("ips/ip-beta", "10.0.0.2"), ("ips/ip-gone", ".deleted")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(value)
    return tmp_path


@pytest.mark.parametrize(("line", "words"), [
    ("pri", "primary"), ("primary ", "all data mail"), ("primary d", "data"), ("up data,m", "data,mail"),
    ("--force primary m", "mail"), ("create-resource new ", None), ("lowlevel-delete-host b", "beta"),
    ("leave-resource data --host ", "alpha beta"), ("leave-resource data --host = b", "beta"),
    ("get-tunable sync_li", "sync_limit"), ("--acc", "--accept-position="), ("resize ", "data mail"),
    ("set-connect-pref-list data alpha,b", "alpha,beta"),
    ("wait-resource data is-prim", "is-primary-off is-primary-on"),
    ("help merge-cluster-", "merge-cluster-check merge-cluster-list"), ("zzz ", ""),
])  # fmt: skip
def test_completion(tree: Path, line: str, words: str | None) -> None:
    """Commands, resources of the tree (not deleted ones), hosts, lists, options."""
    typed = ["marsadm", *line.split(" ")]
    script = f"""source {TOP}/docs/completion/mars.bash; compopt() {{ :; }}
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _marsadm; printf '%s\\n' "${{COMPREPLY[@]}}" """
    done = subprocess.run(["bash", "-uc", script, "bash", *typed], capture_output=True, text=True, timeout=20,
                          env={"PATH": os.environ["PATH"], "MARS_DIR": str(tree)}, cwd=tree)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    if words is not None:
        assert sorted(done.stdout.split()) == sorted(words.split())
