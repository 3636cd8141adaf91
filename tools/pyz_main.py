"""Start-up of mars.pyz: finds the unpacked code, or has it unpacked, and enters `marsx.__main__`.

Becomes `__main__.py` of the .pyz; `mkpyz.py` fills in BUILD. It is compiled anew at each start, so it is short and
imports next to nothing; what the first run needs is in `pyz_extract.py`.

Invariant: no byte is executed from a directory that anybody but root (or, for other users, the user himself) could have
written. Checked at each start, on every component of the path. No variable of shiv is looked at. Root may place the
cache with MARS_CACHE_DIR; the same checks hold for it.

Must compile on older Pythons too, to be able to say that they are too old.
"""
import sys

if sys.version_info < (3, 11):  # noqa: UP036
    sys.stderr.write(f"mars: this is Python {sys.version.split()[0]}; at least 3.11 is needed\n"
                     f"  start it as: python3.11 {sys.argv[0]} ...\n")
    sys.exit(1)

import os  # noqa: E402
import stat  # noqa: E402

BUILD = "@BUILD@"
SYSTEM_CACHE = "/var/cache/mars"
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class Untrusted(Exception):
    """A directory somebody else could have written to."""


def check_part(path, owners, last):
    """Raise Untrusted when `path` could have been put there or changed by anybody not in `owners`."""
    status = os.lstat(path)
    if status.st_uid not in owners:
        raise Untrusted(f"{path} belongs to user id {status.st_uid}")
    if stat.S_ISLNK(status.st_mode):
        if last:
            raise Untrusted(f"{path} is a symlink")
    elif not stat.S_ISDIR(status.st_mode):
        raise Untrusted(f"{path} is not a directory")
    elif status.st_mode & _OTHERS_WRITE and (last or not status.st_mode & stat.S_ISVTX):
        raise Untrusted(f"{path} can be written by other users (mode {status.st_mode & 0o777:03o})")


def check_chain(path, owners, above=False):
    """Check `path` and everything above it, as spelled and as resolved; FileNotFoundError when it is not there.

    `above`: something new is to be made in `path`, so it may be like /tmp.
    """
    parts = set()
    for spelled in (path, os.path.realpath(path)):
        while spelled != "/":
            parts.add(spelled)
            spelled = os.path.dirname(spelled)
    for part in sorted(parts):
        check_part(part, owners, part == path and not above)


def caches(uid):
    """Directories the code may be cached in, best first, each with its allowed owners."""
    chosen = os.environ.get("MARS_CACHE_DIR")
    if chosen:
        return [(os.path.normpath(os.path.abspath(chosen)), (0, uid))]
    places = [(SYSTEM_CACHE, (0,))]
    if uid != 0:
        base = os.environ.get("XDG_CACHE_HOME") or ""
        home = os.environ.get("HOME") or ""
        if os.path.isabs(base):
            places.append((os.path.normpath(base) + "/mars", (0, uid)))
        elif os.path.isabs(home):
            places.append((os.path.normpath(home) + "/.cache/mars", (0, uid)))
    return places


def find(uid):
    """The unpacked code of this build, or None when it has to be unpacked."""
    for place, owners in caches(uid):
        site = place + "/" + BUILD
        try:
            check_chain(site, owners)
        except (OSError, Untrusted):
            continue
        return site
    return None


def start():
    """Enter the program."""
    archive = os.path.realpath(__loader__.archive)
    uid = os.geteuid()
    site = find(uid)
    if site is None:
        import pyz_extract
        site = pyz_extract.unpack(archive, uid, sys.modules["__main__"])
    sys.path[0] = site
    import marsx
    marsx.archive = archive
    from marsx.__main__ import run
    run()


if __name__ == "__main__":
    start()
