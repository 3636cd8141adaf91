"""inotify: every change of an entry is told, nothing else, and nothing is lost."""
from __future__ import annotations

import os
import select
import subprocess
import sys

import pytest

from marsx.base import durable
from marsx.base.config import Paths
from marsx.base.errors import PreconditionError
from marsx.base.lamport import Lamport
from marsx.tree import paths
from marsx.tree.store import Store
from marsx.tree.watch import Watch

STAMP = 1_795_000_000 * 10**9
PRIMARY, TODO = paths.primary("r"), paths.todo("r", "a", "sync")


@pytest.fixture
def told(tmp_path):
    """A watched tree with one resource; what was told since the last look."""
    os.makedirs(tmp_path / "mars/resource-r/todo-a")
    calls: list[list[str] | None] = []
    watch = Watch(str(tmp_path / "mars"), calls.append)

    class Told:
        root = str(tmp_path / "mars")
        process = staticmethod(watch.process)
        fd = watch.fileno()

        def __call__(self) -> list[list[str] | None]:
            watch.process()
            result = list(calls)
            calls.clear()
            return result

        def write(self, rel: str, value: str = "1") -> None:
            durable.write_link(f"{self.root}/{rel}", value, STAMP, durable=False)

    yield Told()
    watch.close()
    watch.close()


def test_a_rename_is_told_once_without_its_temporary_name(told):
    told.write(PRIMARY, "a")
    told.write(TODO)
    told.write(PRIMARY, "b")
    assert told() == [[PRIMARY, TODO]]
    assert told() == []


def test_the_descriptor_wakes_without_delay(told):
    """The event is there when the rename returns: no timer is involved anywhere."""
    poll = select.poll()
    poll.register(told.fd, select.POLLIN)
    assert poll.poll(0) == []
    told.write(PRIMARY, "a")
    assert poll.poll(0) == [(told.fd, select.POLLIN)]
    told.process()
    assert poll.poll(0) == []


def test_deletion_and_moving_away_are_told(told):
    told.write(PRIMARY)
    told.write(TODO)
    told()
    os.unlink(f"{told.root}/{TODO}")
    os.rename(f"{told.root}/{PRIMARY}", f"{told.root}/elsewhere")
    assert told() == [[TODO, PRIMARY]]


def test_what_is_no_entry_is_not_told(told):
    for name in ("resource-r/.tmp.1.1.size", "resource-r/unknown", "5.total.log", ".hidden"):
        os.symlink("v", f"{told.root}/{name}")
    os.mkdir(f"{told.root}/backup")
    os.mkdir(f"{told.root}/local-a")
    os.symlink("v", f"{told.root}/local-a/x")
    assert told() == []


def test_log_files_are_told_when_they_come_and_go_not_when_they_grow(told):
    path = f"{told.root}/resource-r/log-000000001-a"
    with open(path, "wb") as file:
        assert told() == [["resource-r/log-000000001-a"]]
        file.write(b"x" * 10000)
        file.flush()
        assert told() == []
    os.unlink(path)
    assert told() == [["resource-r/log-000000001-a"]]


def test_new_directories_are_watched_and_nothing_in_them_is_missed(told):
    """Entries made before we could watch the new directory are covered by naming the directory."""
    os.makedirs(f"{told.root}/resource-s/todo-b")
    told.write(paths.todo("s", "b", "sync"))
    assert told() == [["resource-s"]]
    told.write(paths.todo("s", "b", "attach"))
    told.write(paths.size("s"), "7")
    assert told() == [[paths.todo("s", "b", "attach"), paths.size("s")]]


def test_a_directory_made_again_is_watched_again(told):
    os.rmdir(f"{told.root}/resource-r/todo-a")
    os.mkdir(f"{told.root}/resource-r/todo-a")
    told()
    told.write(TODO)
    assert told() == [[TODO]]


def test_a_directory_that_moves_means_everything_again(told):
    os.rename(f"{told.root}/resource-r", f"{told.root}/resource-s")
    assert told() == [None]
    told.write(paths.todo("s", "a", "sync"))
    told.write(paths.size("s"), "7")
    assert told() == [[paths.todo("s", "a", "sync"), paths.size("s")]]
    os.rename(f"{told.root}/resource-s", f"{told.root}/../away")
    assert told() == [None]
    os.symlink("8", f"{told.root}/../away/primary")
    assert told() == []


def test_overflow_means_everything_again(told):
    """The kernel drops events when its queue is full; the queue is made to overflow for real."""
    with open("/proc/sys/fs/inotify/max_queued_events", encoding="ascii") as file:
        limit = int(file.read())
    if limit > 100_000:
        pytest.skip(f"the queue of this machine holds {limit} events")
    one, two = f"{told.root}/resource-r/size", f"{told.root}/resource-r/maxnr"
    os.symlink("1", one)
    for _ in range(limit // 2 + 10):
        os.rename(one, two)
        one, two = two, one
    calls = told()
    while told():
        pass
    assert None in calls
    told.write(PRIMARY)
    assert told() == [[PRIMARY]]


def test_a_name_that_is_no_text_loses_nothing(told):
    told.write(PRIMARY)
    os.symlink(b"v", told.root.encode() + b"/resource-r/\xff\xfe")
    told.write(TODO)
    assert None in told()


def test_watching_nothing_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    for bad in ("nothing", "file"):
        with pytest.raises(PreconditionError):
            Watch(str(tmp_path / bad), lambda names: None)


def test_the_library_stays_silent(told, capfd):
    os.rmdir(f"{told.root}/resource-r/todo-a")
    told()
    assert capfd.readouterr() == ("", "")


def test_store_follows_another_process_through_the_watch(tmp_path):
    """Whole way: a writer in another process, events, reread: in the end cache equals disk."""
    root = str(tmp_path / "mars")
    os.mkdir(root)
    store = Store(Paths(mars_dir=root), "a", Lamport())
    watch = Watch(root, lambda names: store.load() if names is None else store.reread(names))
    store.load()
    code = ("import sys; from marsx.base.config import Paths; from marsx.base.lamport import Lamport\n"
            "from marsx.tree import paths; from marsx.tree.store import Store\n"
            "store = Store(Paths(mars_dir=sys.argv[1]), 'b', Lamport()); store.load()\n"
            "for i in range(200):\n"
            "    store.put(paths.size('r'), str(i)); store.put(paths.todo('r', 'b', 'sync'), str(i % 2))\n"
            "print(store.get(paths.size('r')))")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", code, root], stdout=subprocess.PIPE, env=env) as other:
        poll = select.poll()
        poll.register(watch.fileno(), select.POLLIN)
        writes = 0
        while other.poll() is None:
            poll.poll(20)
            watch.process()
            if writes < 50:
                store.put(paths.todo("r", "a", "sync"), str(writes % 2))
                writes += 1
        assert other.stdout is not None and other.stdout.read() == b"199\n" and other.returncode == 0
    watch.process()
    before = store.entries()
    assert store.get(paths.size("r")) == "199"
    assert store.load() == [] and store.entries() == before
    watch.close()
    store.close()
