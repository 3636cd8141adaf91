"""Makes a machine able to build and test: missing system packages, and .venv with the tools of requirements-dev.txt.

Runs under the machine's own python (3.11 or newer), standard library only. System packages are installed only when
what they provide is missing, with apt and as root; otherwise it says what to install. What is there is left alone.
"""
from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

TOP = Path(__file__).resolve().parent.parent
VENV = TOP / ".venv"
PYTHON = VENV / "bin/python"
PINS = TOP / "requirements-dev.txt"

# What must be there (a program, or a file when it starts with /), and the Debian package that brings it.
NEEDED = {
    "gcc": "gcc",
    "make": "make",
    "/usr/include/stdio.h": "libc6-dev",
    "/usr/include/linux/fuse.h": "linux-libc-dev",
    "/usr/include/xxhash.h": "libxxhash-dev",
    "fio": "fio",
    "rsync": "rsync",
    "blockdev": "util-linux",
    "mkfs.xfs": "xfsprogs",
    "mkfs.ext4": "e2fsprogs",
    "ip": "iproute2",
    "openssl": "openssl",
    "nsenter": "util-linux",
    "losetup": "mount",
    "groff": "groff-base",
}


def fail(text: str, hint: str) -> NoReturn:
    """Say what is wrong and leave."""
    sys.exit(f"deps: {text}\n  {hint}")


def is_there(what: str) -> bool:
    """True for an existing file, or a program that can be found."""
    if what.startswith("/"):
        return os.path.exists(what)
    return shutil.which(what, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin") is not None


def missing_packages() -> list[str]:
    """Debian packages for what is missing."""
    packages = {package for what, package in NEEDED.items() if not is_there(what)}
    if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
        packages.add(f"python{sys.version_info[0]}.{sys.version_info[1]}-dev")
    if not can_make_pip():
        packages |= {"python3-venv", "python3-pip"}
    return sorted(packages)


def can_make_pip() -> bool:
    """True when a .venv with pip is there or can be made."""
    return works(PYTHON, "import pip") or find_spec("ensurepip") is not None or find_spec("pip") is not None


def works(python: Path, code: str = "") -> bool:
    """True when `python` starts, is new enough, and runs `code`."""
    check = f"import sys; assert sys.version_info >= (3, 11); {code}"
    try:
        return subprocess.run([python, "-c", check], capture_output=True, timeout=60).returncode == 0
    except OSError:
        return False


def install_packages(packages: list[str]) -> None:
    """apt, as root only."""
    command = f"apt-get install -y --no-install-recommends {' '.join(packages)}"
    if os.geteuid() != 0 or not is_there("apt-get"):
        fail(f"missing on this machine: {' '.join(packages)} (names of Debian)", f"run as root: {command}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    print(f"deps: {command}", flush=True)
    if subprocess.run(command.split(), env=environment).returncode:
        subprocess.run(["apt-get", "update"], env=environment)
        if subprocess.run(command.split(), env=environment).returncode:
            fail(f"could not install {' '.join(packages)}", "see what apt-get says above")


def make_venv() -> None:
    """.venv with this python; one that does not work (its interpreter is gone) is made anew."""
    if works(PYTHON, "import pip"):
        return
    if VENV.exists():
        shutil.rmtree(VENV)
    if find_spec("ensurepip") is not None:
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        return
    # Debian splits ensurepip off; its pip can fill a .venv that has none.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", VENV], check=True)
    pin = next(line for line in pins() if line.startswith("pip=="))
    subprocess.run([sys.executable, "-m", "pip", "--python", PYTHON, "install", "-q", pin], check=True)


def pins() -> list[str]:
    """name==version lines of requirements-dev.txt."""
    return [line for line in PINS.read_text(encoding="utf-8").split("\n") if re.match(r"[A-Za-z0-9]", line)]


def install_tools() -> None:
    """The pinned tools; those that build packages from source come first."""
    pip = [PYTHON, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-deps"]
    first = [pin for pin in pins() if pin.startswith(("setuptools==", "wheel=="))]
    for words in ([*pip, *first], [*pip, "--no-build-isolation", "-r", PINS]):
        if subprocess.run(words, cwd=TOP).returncode:
            fail("could not install the tools into .venv", "the package index must be reachable (pip's messages above)")


def main() -> None:
    """System packages, then .venv, then tools."""
    if sys.version_info < (3, 11):  # noqa: UP036
        fail(f"this is Python {sys.version.split()[0]}", "use Python 3.11 or newer")
    packages = missing_packages()
    if packages:
        install_packages(packages)
    make_venv()
    install_tools()


if __name__ == "__main__":
    main()
