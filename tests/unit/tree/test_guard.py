"""What may enter the tree, entry by entry, and what the directory must be able to do."""
from __future__ import annotations

import os
import subprocess
import sys

import pytest

from marsx.base.errors import MarsError, PermissionDeniedError, PreconditionError, TimeoutExpired
from marsx.base.lamport import MAX_FUTURE_NS, Lamport
from marsx.tree import guard, paths

NOW = 1_795_000_000 * 10**9


def lookup_of(**values):
    known = {"member": paths.member("r", "p"), "removed": paths.removed("r", "p"),
             "host_member": paths.host_member("p"), "host_removed": paths.host_removed("p")}
    entries = {known[key]: (known[key], value, stamp) for key, (value, stamp) in values.items()}
    return entries.get


@pytest.mark.parametrize("entry", [
    (1, "x", 1), ("uuid", 1, 1), ("uuid", "x", "1"), ("uuid", "x", True), ("uuid", "x", 0), ("uuid", "x", -1),
    ("uuid", "x", NOW + MAX_FUTURE_NS + 1), ("uuid", "", 1), ("uuid", "x" * 1024, 1), ("../uuid", "x", 1),
    ("resource-r/log-000000001-p", "x", 1), ("local-p/lamport", "x", 1), ("uuid", "a\ud800", 1)])
def test_what_cannot_be_an_entry(entry):
    """rule 25 for the stamps; hostile types, names and values."""
    assert guard.entry_problem(*entry, Lamport(lambda: NOW))


FACT, WISH = paths.replay("r", "p"), paths.primary("r")

# sender, relay_ok, refused?
BELIEF = [
    (FACT, "p", (), False), (FACT, "q", (), True), (FACT, "q", ("p",), False), (FACT, "q", ("q", "z"), True),
    (WISH, "q", (), False), (WISH, "p", (), False), (paths.host_actual("p", "alive"), "q", (), True),
    (paths.data("r", "p"), "q", (), False), (paths.removed("r", "p"), "q", (), False)]


@pytest.mark.parametrize(("rel", "sender", "relay_ok", "refused"), BELIEF)
def test_rule_22_26_who_may_say_what(rel, sender, relay_ok, refused):
    """rules 22 and 26: facts from their owner, or relayed while it is away; wishes from any member."""
    assert bool(guard.refusal(rel, NOW, sender, relay_ok, lookup_of())) is refused


# member (value, stamp), removed (value, stamp), stamp of the fact, stale?
MEMBERSHIP = [
    (None, None, 5, False),
    (("m1", 10), None, 9, True), (("m1", 10), None, 10, False), (("m1", 10), None, 11, False),
    (("m1", 10), ("m1", 20), 15, True), (("m1", 10), ("m1", 20), 25, True),
    (("m2", 30), ("m1", 20), 25, True), (("m2", 30), ("m1", 20), 35, False),
    (None, ("m1", 20), 25, True), ((".deleted", 30), ("m1", 20), 35, True), ((".deleted", 30), None, 5, False),
    (("m1", 10), (".deleted", 20), 15, False)]


@pytest.mark.parametrize(("member", "removed", "stamp", "stale"), MEMBERSHIP)
@pytest.mark.parametrize("level", ["", "host_"])
def test_rule_26_incarnations(member, removed, stamp, stale, level):
    """rule 26: the table of lives; the same for a resource and for the whole cluster. Wishes live on."""
    given = {level + "member": member, level + "removed": removed}
    lookup = lookup_of(**{key: value for key, value in given.items() if value})
    assert guard.is_stale(FACT, stamp, lookup) is stale
    assert guard.is_stale(paths.todo("r", "p", "sync"), stamp, lookup) is False


def test_rule_26_a_host_removed_from_the_cluster_has_no_voice():
    """rule 26: not even about wishes, not even as a relay."""
    lookup = lookup_of(host_member=("m", 1), host_removed=("m", 2))
    assert "removed" in guard.refusal(WISH, NOW, "p", (), lookup)
    assert guard.refusal(WISH, NOW, "q", (), lookup) == ""


def test_a_host_writes_wishes_and_its_own_facts_only():
    guard.check_own(FACT, "log-000000001-p,0,0", "p")
    guard.check_own(WISH, "p", "q")
    for rel, value in ((FACT, "log-000000001-p,0,0"), ("local-q/x", "v"), ("bad", "v"), (WISH, "no host"), (WISH, "")):
        with pytest.raises(ValueError):
            guard.check_own(rel, value, "q")


def test_root_must_be_a_directory_that_is_there(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(PreconditionError, match="No such file") as missing:
        guard.check_root(str(tmp_path / "nothing"), writable=True)
    assert missing.value.hint
    with pytest.raises(PreconditionError, match="not a directory"):
        guard.check_root(str(tmp_path / "file"), writable=True)
    guard.check_root(str(tmp_path), writable=True)
    assert os.listdir(tmp_path) == ["file"]


def test_rule_25_coarse_time_stamps_are_found(tmp_path, monkeypatch):
    """rule 25: ext4 with 128-byte inodes keeps seconds only."""
    real = os.utime
    monkeypatch.setattr(os, "utime", lambda path, ns, follow_symlinks: real(
        path, ns=tuple(value // 10**9 * 10**9 for value in ns), follow_symlinks=follow_symlinks))
    with pytest.raises(PreconditionError, match="nanoseconds"):
        guard.check_root(str(tmp_path), writable=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
def test_rule_25_ext4_with_small_inodes_is_refused(tmp_path):
    """rule 25 on a real file system."""
    image, mnt = tmp_path / "image", tmp_path / "mnt"
    mnt.mkdir()
    with open(image, "wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-I", "128", str(image)], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(mnt)], check=True, capture_output=True)
    try:
        with pytest.raises(PreconditionError, match="nanoseconds"):
            guard.check_root(str(mnt), writable=True)
    finally:
        subprocess.run(["umount", str(mnt)], check=True)


def test_readonly_directory_is_named(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "symlink", refuse)
    with pytest.raises(PermissionDeniedError, match="Read-only"):
        guard.check_root(str(tmp_path), writable=True)
    guard.check_root(str(tmp_path), writable=False)


def test_lock_keeps_other_processes_out_and_gives_up_with_a_name(tmp_path, monkeypatch):
    code = ("import fcntl, os, sys; fd = os.open(sys.argv[1], os.O_RDONLY); fcntl.flock(fd, fcntl.LOCK_EX); "
            "print('held', flush=True); sys.stdin.read()")
    monkeypatch.setattr(guard, "LOCK_PATIENCE_S", 0.01)
    lock = guard.TreeLock(str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(TimeoutExpired, match="lock"), lock:
            pass
        other.communicate()
    with lock, lock:
        pass
    with lock:
        pass
    lock.close()


def test_lock_of_nothing_says_so(tmp_path):
    with pytest.raises(MarsError, match="No such file"), guard.TreeLock(str(tmp_path / "x")):
        pass


def test_leftovers_of_dead_writers_go_but_nothing_else(tmp_path):
    for rel in ("ips/.tmp.1.2.ip-a", "ips/ip-a", "resource-r/.tmp.1.2.primary", "resource-r/todo-a/.tmp.3.4.sync",
                "backup/.tmp.1.2.x"):
        (tmp_path / rel).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / rel).symlink_to("v")
    (tmp_path / "resource-r/.tmp.file").write_text("not a link")
    created = max(os.lstat(path).st_ctime_ns for path in tmp_path.rglob("*"))
    guard.remove_leftovers(str(tmp_path), 1)
    assert (tmp_path / "ips/.tmp.1.2.ip-a").is_symlink()
    guard.remove_leftovers(str(tmp_path), created + 1)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert left == ["backup", "backup/.tmp.1.2.x", "ips", "ips/ip-a", "resource-r", "resource-r/.tmp.file"]
