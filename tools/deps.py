"""Makes a machine able to build and test: missing system packages, and .venv with the tools of requirements-dev.txt.

Runs under the machine's own python (3.11 or newer), standard library only. System packages are installed only when
what they provide is missing, with apt and as root; otherwise it says what to install. What is there is left alone.

Some packages are wanted, not needed: what cannot be had costs one line here, and the tests that use it say so when they
are skipped. Some of them bring services, which are neither started nor enabled: nothing listens that did not before.
"""
from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
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


# The same for what only some tests use: any of these programs, and the package that brings it.
WANTED = {
    ("promtool",): "prometheus",
    ("zabbix_agentd",): "zabbix-agent",
    ("chromium-headless-shell", "chromium"): "chromium-headless-shell",
    ("curl",): "curl",
}
SERVICES = ("prometheus", "zabbix-agent")
POLICY = Path("/usr/sbin/policy-rc.d")
WANTED_TIMEOUT_S = 600


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


def install_wanted() -> None:
    """What some tests want, each by itself: one that cannot be had does not keep the others away."""
    packages = [package for programs, package in WANTED.items() if not any(map(is_there, programs))]
    if packages and (os.geteuid() != 0 or not is_there("apt-get")):
        print(f"deps: some tests will be skipped without {' '.join(packages)} (names of Debian)", flush=True)
        return
    for package in packages:
        with no_services(package):
            why = apt_get(package)
        print(f"deps: {package}: {why or 'installed'}" + (", some tests will be skipped" if why else ""), flush=True)


def apt_get(package: str) -> str:
    """Install quietly; why not, or ""."""
    words = ["apt-get", "install", "-y", "-q", "--no-install-recommends", package]
    try:
        done = subprocess.run(words, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=WANTED_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"not installed ({type(error).__name__})"
    said = [line for line in done.stdout.splitlines() if line.startswith("E: ")] or done.stdout.splitlines()[-1:]
    return f"not installed ({said[0].removeprefix('E: ') if said else 'no reason given'})" if done.returncode else ""


@contextlib.contextmanager
def no_services(package: str) -> Iterator[None]:
    """Services that come meanwhile are not started, and are not enabled for the next boot. A policy that the machine
    has already is left as it is: it may know better, and it is asked before ours would be."""
    is_ours = package in SERVICES and not POLICY.exists()
    if is_ours:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
    try:
        yield
    finally:
        if is_ours:
            POLICY.unlink(missing_ok=True)
        if package in SERVICES:
            for words in (["systemctl", "disable", "--now", package], ["update-rc.d", package, "disable"]):
                with contextlib.suppress(OSError):
                    subprocess.run(words, capture_output=True, timeout=60)


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
    install_wanted()
    make_venv()
    install_tools()


if __name__ == "__main__":
    main()
