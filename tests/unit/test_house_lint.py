"""Lint, marks, pins and names of files in the docs: what nobody should have to remember."""
from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
MARK = re.compile(r"(#|//|\*)\s*(TODO|FIXME|XXX|HACK)\b")
NAMED_FILE = re.compile(r"`((?:marsx|ext|tools|tests|bench|docs)/[\w./-]+\.(?:py|pyx|pxd|h|c|md))`")


def test_ruff() -> None:
    """The same call as `make lint`."""
    places = [place for place in ("setup.py", "marsx", "tools", "tests", "bench") if (TOP / place).exists()]
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format=concise", *places],
                          cwd=TOP, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_marks() -> None:
    """What is left to do stands in an issue, not in the code."""
    here = Path(__file__).resolve()
    found = [f"{path.relative_to(TOP)}:{number}" for folder in ("marsx", "ext", "tools", "tests", "bench")
             for path in sorted((TOP / folder).rglob("*"))
             if path.suffix in (".py", ".pyx", ".pxd", ".h", ".c") and path != here
             for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if MARK.search(line)]
    assert found == []


def test_pins_agree() -> None:
    """requirements-dev.txt, mars.pyz.spec and pyproject.toml name the same versions of what goes into the .pyz."""
    pins = dict(line.split("==") for line in (TOP / "requirements-dev.txt").read_text().splitlines() if "==" in line)
    spec = tomllib.loads((TOP / "mars.pyz.spec").read_text())
    project = tomllib.loads((TOP / "pyproject.toml").read_text())
    packed = spec["contents"]["packages"]
    assert {name: pins[name] for name in packed} == packed
    wanted = dict(re.findall(r"^([\w-]+)==([\w.]+)", "\n".join(project["project"]["dependencies"]), re.M))
    assert wanted == packed
    assert f"blosc2=={pins['blosc2']}" in project["build-system"]["requires"]


def test_files_named_in_docs_exist() -> None:
    """A page that names a file that is gone misleads."""
    pages = [TOP / "README.md", *sorted((TOP / "docs").glob("*.md")), TOP / "tests/README.md"]
    gone = [f"{page.relative_to(TOP)}: {name}" for page in pages
            for name in NAMED_FILE.findall(page.read_text(encoding="utf-8"))
            if not re.search(r"[A-Z]{3,}", name.removesuffix("README.md")) and not (TOP / name).exists()]
    assert gone == []
