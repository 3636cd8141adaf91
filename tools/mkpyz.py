"""Builds mars.pyz as mars.pyz.spec says, and checks it. Run by `make pyz` with the python of .venv.

Steps: wheel of marsx -> stage directory (+ pinned pure packages, + licences, - pruned) -> checks of the extensions ->
shiv packs the stage -> shiv's start-up code is replaced by ours (pyz_main.py, pyz_extract.py) -> size -> run it.

The same inputs give the same bytes: the build id is a hash over all that is inside.
"""
from __future__ import annotations

import base64
import fcntl
import fnmatch
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any, NoReturn

TOP = Path(__file__).resolve().parent.parent
WORK = TOP / "build/pyz"
EPOCH = (2020, 1, 1, 0, 0, 0)
GLIBC = re.compile(rb"GLIBC_(\d+)\.(\d+)")


def fail(text: str, hint: str = "") -> NoReturn:
    """Say what is wrong and leave."""
    sys.exit(f"mkpyz: {text}" + (f"\n  {hint}" if hint else ""))


def run(words: list[str], **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a tool; its output is shown only when it fails."""
    done = subprocess.run(words, cwd=TOP, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=900,
                          **more)
    if done.returncode:
        fail(f"{' '.join(words)}: exit {done.returncode}", done.stdout[-4000:])
    return done


def build_wheel() -> Path:
    """The wheel of marsx. What an earlier build left for files that are gone is removed first."""
    sources = {path.stem for path in (TOP / "ext").glob("*.pyx")}
    for built in (TOP / "build").glob("lib.*/marsx"):
        for path in built.rglob("*"):
            if path.is_file() and not (path.name.endswith(".abi3.so") and path.name.split(".")[0] in sources):
                path.unlink()
    wheels = WORK / "wheel"
    run([sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", str(wheels)])
    found = list(wheels.glob("*.whl"))
    if len(found) != 1 or (sources and "-cp311-abi3-" not in found[0].name):
        fail(f"expected one cp311-abi3 wheel, got {[path.name for path in found]}")
    return found[0]


def add_package(name: str, version: str, stage: Path) -> None:
    """Copy the files of an installed package whose version and hashes are right."""
    try:
        package = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        fail(f"{name} is not installed in .venv", "run: make deps")
    if package.version != version:
        fail(f"{name} is {package.version}, mars.pyz.spec wants {version}", "run: make deps")
    for file in package.files or []:
        if file.hash is None or ".." in file.parts or file.is_absolute():
            continue
        data = Path(str(file.locate())).read_bytes()
        digest = base64.urlsafe_b64encode(hashlib.new(file.hash.mode, data).digest()).rstrip(b"=").decode()
        if digest != file.hash.value:
            fail(f"{file} in .venv is not the file that was installed", "remove .venv and run: make deps")
        target = stage / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        if file.suffix == ".so":
            fail(f"{name} has compiled code ({file}); only pure packages go in")


def add_licences(name: str, stage: Path) -> None:
    """Licence texts of a package, as licenses/NAME-FILE."""
    for file in importlib.metadata.distribution(name).files or []:
        if re.match(r"(licen[cs]e|copying|notice)", file.name, re.I) and file.suffix in ("", ".txt", ".md", ".rst"):
            target = stage / "licenses" / f"{name}-{file.name}"
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(Path(str(file.locate())).read_bytes())


def make_stage(spec: dict[str, Any]) -> Path:
    """Everything that goes below site-packages/."""
    stage = WORK / "stage"
    shutil.rmtree(WORK, ignore_errors=True)
    stage.mkdir(parents=True)
    with zipfile.ZipFile(build_wheel()) as wheel:
        wheel.extractall(stage)
    for name, version in spec["contents"]["packages"].items():
        add_package(name, version, stage)
        add_licences(name, stage)
    for name in spec["contents"]["linked"]:
        add_licences(name, stage)
    for path in sorted(stage.rglob("*"), reverse=True):
        inner = path.relative_to(stage).as_posix()
        if path.is_file() and any(fnmatch.fnmatch(inner, pattern) for pattern in spec["contents"]["prune"]):
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    return stage


def check_extensions(stage: Path, max_glibc: str) -> list[str]:
    """Names of the extensions; each is abi3, is complete, and needs no newer C library than allowed."""
    allowed = tuple(int(part) for part in max_glibc.split("."))
    names = []
    for path in sorted(stage.rglob("*.so")):
        if not path.name.endswith(".abi3.so"):
            fail(f"{path.name} is tied to one Python version (not abi3)")
        needed = max((int(major), int(minor)) for major, minor in GLIBC.findall(path.read_bytes()))
        if needed > allowed:
            fail(f"{path.name} needs glibc {needed[0]}.{needed[1]}, allowed is {max_glibc}")
        names.append(path.name.split(".")[0])
    missing = {path.stem for path in (TOP / "ext").glob("*.pyx")} - set(names)
    if missing:
        fail(f"extensions not built: {', '.join(sorted(missing))}")
    return names


def contents(stage: Path) -> dict[str, bytes]:
    """Files of the archive by name, except those that need the build id."""
    files = {f"site-packages/{path.relative_to(stage).as_posix()}": path.read_bytes()
             for path in sorted(stage.rglob("*")) if path.is_file()}
    files["pyz_extract.py"] = (TOP / "tools/pyz_extract.py").read_bytes()
    return files


def build_id(files: dict[str, bytes], door: str) -> str:
    """Name of this build: equal contents, equal name."""
    total = hashlib.sha256(door.encode())
    for name, data in sorted(files.items()):
        total.update(f"{name}\0{len(data)}\0".encode() + data)
    return total.hexdigest()[:32]


def pack(spec: dict[str, Any], stage: Path) -> Path:
    """shiv packs the stage; then its start-up code gives way to ours."""
    packed = WORK / "shiv.pyz"
    run([sys.executable, "-m", "shiv.cli", "--site-packages", str(stage), "-o", str(packed), "--reproducible",
         "-e", spec["pyz"]["entry_point"], "-p", spec["pyz"]["interpreter"]],
        env={**os.environ, "SOURCE_DATE_EPOCH": "1577836800"})
    files = contents(stage)
    with zipfile.ZipFile(packed) as archive:
        inside = {name for name in archive.namelist() if name.startswith("site-packages/") and not name.endswith("/")}
    if inside != {name for name in files if name.startswith("site-packages/")}:
        fail("shiv packed something else than the stage directory")
    door = (TOP / "tools/pyz_main.py").read_text(encoding="utf-8")
    files["__main__.py"] = door.replace("@BUILD@", build_id(files, door)).encode()
    result = WORK / spec["pyz"]["output"]
    write_archive(result, spec["pyz"]["interpreter"], files)
    return result


def write_archive(path: Path, interpreter: str, files: dict[str, bytes]) -> None:
    """An executable zip with one date for all its files. The start-up code is stored: it is read at each start."""
    with open(path, "wb") as out:
        out.write(f"#!{interpreter}\n".encode())
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for name in sorted(files):
                info = zipfile.ZipInfo(name, EPOCH)
                info.external_attr = 0o644 << 16
                info.compress_type = zipfile.ZIP_DEFLATED if "/" in name else zipfile.ZIP_STORED
                archive.writestr(info, files[name])
    path.chmod(0o755)


def pythons(versions: list[str]) -> list[str]:
    """Interpreters on this machine, one per wanted version, that really are that version."""
    found = []
    for version in versions:
        places = [*map(str, sorted(Path.home().glob(f".pyenv/versions/{version}*/bin/python{version}"))),
                  f"/usr/local/bin/python{version}", f"/usr/bin/python{version}"]
        for place in places:
            asked = os.path.exists(place) and subprocess.run(
                [place, "-IS", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
                capture_output=True, text=True, timeout=60)
            if asked and asked.stdout.strip() == version:
                found.append(place)
                break
    return found


def check_runs(pyz: Path, stage: Path, names: list[str], interpreters: list[str]) -> None:
    """The archive starts, and every extension loads, on each interpreter; no installed package helps."""
    imports = "".join(f"import marsx._ext.{name}; " for name in names)
    code = f"import sys, warnings; warnings.simplefilter('ignore'); sys.path.insert(0, {str(stage)!r}); {imports}"
    for python in interpreters:
        with tempfile.TemporaryDirectory() as cache:
            environment = {"MARS_CACHE_DIR": cache, "PATH": "/bin"}
            shown = run([python, "-IS", str(pyz), "marsadm", "--version"], env=environment)
        if not re.fullmatch(r"marsadm \d+\.\d+\.\d+\S*\n", shown.stdout):
            fail(f"{python} {pyz.name} marsadm --version printed {shown.stdout!r}")
        run([python, "-IS", "-B", "-c", code + "import docopt, pyinotify"])


def main() -> None:
    """Build, check, and only then put the result in its place."""
    spec = tomllib.loads((TOP / "mars.pyz.spec").read_text(encoding="utf-8"))
    (TOP / "build").mkdir(exist_ok=True)
    lock = os.open(TOP / "build/.pyz.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    fcntl.flock(lock, fcntl.LOCK_EX)
    stage = make_stage(spec)
    names = check_extensions(stage, spec["limits"]["max_glibc"])
    pyz = pack(spec, stage)
    size = pyz.stat().st_size
    if size > spec["limits"]["max_bytes"]:
        fail(f"{size} bytes, allowed are {spec['limits']['max_bytes']}")
    interpreters = pythons(spec["limits"]["pythons"])
    if not interpreters:
        fail("no python of mars.pyz.spec found to try the result with")
    check_runs(pyz, stage, names, interpreters)
    os.replace(pyz, TOP / spec["pyz"]["output"])
    print(f"{spec['pyz']['output']}: {size} bytes, {len(names)} extensions, runs on {', '.join(interpreters)}")


if __name__ == "__main__":
    main()
