"""First run of mars.pyz: unpacks the code into a cache that belongs to root (or to the user) alone.

The code is unpacked beside its final place, flushed, and renamed: a reader sees all of it or nothing. Two first runs at
once both unpack, one rename wins and the other's copy is removed. A run that was killed leaves a `.new-*` directory
that a later unpacking removes. Modes are set here and do not depend on the umask.

Where nothing can be cached (no writable home) the code goes to a fresh private directory that is removed at exit.
"""
import os
import shutil
import stat
import sys
import time
import zipfile

PREFIX = "site-packages/"
NEW = ".new-"
STALE_S = 3600
PERMISSION = 10


def die(text, hint):
    """Say what is wrong and leave."""
    sys.stderr.write(f"mars: {text}\n  {hint}\n")
    sys.exit(PERMISSION)


def unpack(archive, uid, door):
    """Directory with the unpacked code of the build `door.BUILD`; `door` is the module pyz_main."""
    reasons = []
    for place, owners in door.caches(uid):
        if uid not in owners:
            continue
        try:
            make_place(place, owners, door)
            return fill(archive, place, owners, door)
        except door.Untrusted as error:
            if uid == 0:
                die(f"not unpacking there: {error}", "remove it, or make it root's alone (chown root, chmod 755)")
            reasons.append(str(error))
        except OSError as error:
            reasons.append(f"{error.filename or place}: {error.strerror}")
    if uid == 0:
        die("cannot unpack the program: " + "; ".join(reasons),
            "make it writable, or set MARS_CACHE_DIR to a directory of root that allows programs")
    return private_copy(archive)


def make_place(place, owners, door):
    """The cache directory, with everything above it, mode 0755 for root and 0700 for others; checked."""
    missing = []
    path = place
    while not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    if path != "/":
        door.check_chain(path, owners, above=True)
    for path in reversed(missing):
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            continue
        if os.geteuid() == 0:
            os.chmod(path, 0o755)
    door.check_chain(place, owners)
    if os.statvfs(place).f_flag & os.ST_NOEXEC:
        raise OSError(1, "is on a file system mounted noexec", place)


def fill(archive, place, owners, door):
    """Unpack into `place`/BUILD unless somebody else just did."""
    final = place + "/" + door.BUILD
    remove_stale(place)
    new = f"{place}/{NEW}{door.BUILD}-{os.getpid()}-{time.monotonic_ns()}"
    os.mkdir(new, 0o700)
    try:
        extract(archive, new)
        os.chmod(new, 0o755)
        flush_directory(new)
        try:
            os.rename(new, final)
        except OSError:
            door.check_chain(final, owners)
            shutil.rmtree(new, ignore_errors=True)
        flush_directory(place)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    door.check_chain(final, owners)
    return final


def remove_stale(place):
    """What killed runs left behind."""
    for name in os.listdir(place):
        path = place + "/" + name
        if name.startswith(NEW):
            try:
                if time.time() - os.lstat(path).st_mtime > STALE_S:
                    shutil.rmtree(path, ignore_errors=True)
            except FileNotFoundError:
                continue


def extract(archive, target):
    """All files below site-packages/ of the zip, flushed; zipfile checks their CRC.

    Each directory gets its __pycache__ now: made by the interpreter it would have the mode of somebody's umask.
    """
    directories = {target}
    with zipfile.ZipFile(archive) as bundle:
        for info in bundle.infolist():
            name = info.filename
            if not name.startswith(PREFIX) or name.endswith("/"):
                continue
            inner = name[len(PREFIX):]
            if ".." in inner.split("/") or inner.startswith("/"):
                raise OSError(22, "names a file outside", name)
            write_file(target + "/" + inner, bundle.read(info), directories)
    for path in sorted(directories, reverse=True):
        os.mkdir(path + "/__pycache__", 0o755)
        os.chmod(path + "/__pycache__", 0o755)
        flush_directory(path)


def write_file(path, data, directories):
    """One file, mode 0644 (0755 for code that is mapped), its directories 0755."""
    missing = []
    folder = os.path.dirname(path)
    while folder not in directories:
        missing.append(folder)
        folder = os.path.dirname(folder)
    for folder in reversed(missing):
        os.mkdir(folder, 0o755)
        os.chmod(folder, 0o755)
        directories.add(folder)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(data)
        os.fchmod(fd, 0o755 if path.endswith(".so") else 0o644)
        file.flush()
        os.fsync(fd)


def flush_directory(path):
    """The names in `path` survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def private_copy(archive):
    """Unpack for this one run, and remove it when this process (not a child of it) ends."""
    import atexit
    import tempfile

    try:
        target = tempfile.mkdtemp(prefix="mars-")
        status = os.lstat(target)
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) != 0o700:
            raise OSError(1, "is not private", target)
        extract(archive, target)
    except OSError as error:
        die(f"cannot unpack the program: {error.filename}: {error.strerror}",
            "set MARS_CACHE_DIR to a directory of your own")
    owner = os.getpid()
    atexit.register(lambda: os.getpid() == owner and shutil.rmtree(target, ignore_errors=True))
    return target
