"""The store: disk and cache agree, writers do not lose each other's entries, and the merge rules hold."""
from __future__ import annotations

import errno
import os

import pytest

from marsx.base import durable
from marsx.base.config import Paths
from marsx.base.errors import MarsError, PermissionDeniedError, PreconditionError
from marsx.base.lamport import MAX_FUTURE_NS, Lamport
from marsx.tree import paths
from marsx.tree.store import Entry, LogFile, Store, open_lamport

NOW = 1_795_000_000 * 10**9
PRIMARY, SIZE, TODO = paths.primary("r"), paths.size("r"), paths.todo("r", "a", "sync")
REPLAY_A, REPLAY_B = paths.replay("r", "a"), paths.replay("r", "b")


def at(nr: int, pos: int, host: str = "a") -> str:
    return f"log-{nr:09d}-{host},{pos},0"


@pytest.fixture(autouse=True)
def forget_failures(monkeypatch):
    monkeypatch.setattr(durable, "_failed", {})


@pytest.fixture
def make(tmp_path):
    """Stores over one directory or several; all closed at the end."""
    made = []

    def build(host: str = "a", where: str = "mars", clock=lambda: NOW, readonly: bool = False) -> Store:
        (tmp_path / where).mkdir(exist_ok=True)
        store = Store(Paths(mars_dir=str(tmp_path / where)), host, Lamport(clock), readonly=readonly)
        made.append(store)
        store.load()
        return store

    yield build
    for store in made:
        store.close()


def on_disk(store: Store, rel: str) -> tuple[str, int]:
    path = f"{store.root}/{rel}"
    return os.readlink(path), os.lstat(path).st_mtime_ns


def test_put_get_stamp_names_delete(make):
    store = make()
    assert store.put(PRIMARY, "a") is True
    assert store.put(REPLAY_A, at(1, 0), durable=True) is True
    assert store.get(PRIMARY) == "a" and on_disk(store, PRIMARY) == ("a", store.stamp(PRIMARY))
    assert store.stamp(REPLAY_A) > store.stamp(PRIMARY) >= NOW
    assert store.names("resource-r/") == [PRIMARY, REPLAY_A]
    assert store.delete(PRIMARY) is True and store.delete(PRIMARY) is False
    assert store.get(PRIMARY) == "" and store.names() == [REPLAY_A]
    assert on_disk(store, PRIMARY)[0] == ".deleted" and store.stamp(PRIMARY) > store.stamp(REPLAY_A)
    assert [entry.rel for entry in store.entries()] == [REPLAY_A, PRIMARY]


def test_same_value_is_not_written_again_unless_asked(make):
    store = make()
    store.put(PRIMARY, "a")
    stamp = store.stamp(PRIMARY)
    assert store.put(PRIMARY, "a") is False and store.stamp(PRIMARY) == stamp
    assert store.put(PRIMARY, "a", restamp=True) is True and store.stamp(PRIMARY) > stamp


def test_put_many_has_one_stamp_keeps_the_order_and_wakes_once(make, monkeypatch):
    """rule 19: version link before replay link before is-primary, on disk too."""
    store = make()
    calls, order = [], []
    store.on_change(calls.append)
    real = durable.write_link
    monkeypatch.setattr(durable, "write_link", lambda path, *rest, **kw: (order.append(path), real(path, *rest, **kw)))
    rels = [paths.version("r", 1, "a"), REPLAY_A, paths.actual("r", "a", "is-primary")]
    values = ["0" * 32 + ",log-000000001-a,8:", at(1, 8), "0"]
    assert store.put_many(zip(rels, values, strict=True)) == rels
    assert calls == [rels]
    assert order == [f"{store.root}/{rel}" for rel in rels]
    assert len({store.stamp(rel) for rel in rels}) == 1


def test_explicit_stamp_must_win(make):
    store = make()
    store.put(PRIMARY, "a", stamp=NOW + 100)
    assert store.put(PRIMARY, "b", stamp=NOW + 99) is False
    assert store.put(PRIMARY, "0", stamp=NOW + 100) is False
    assert store.put(PRIMARY, "b", stamp=NOW + 100) is True and store.get(PRIMARY) == "b"


def test_rule_24_weak_none_and_rollback_by_compare_and_swap(make):
    """rule 24: the rollback is as weak as the (none) it takes back, and any real decision beats both."""
    store, other = make(), make("c", "other")
    store.put(PRIMARY, "a")
    other.merge(store.entries(), "a")
    old = store.stamp(PRIMARY)
    assert store.put_weak(PRIMARY, "(none)") and store.stamp(PRIMARY) == old + 10**9
    weak = store.entry(PRIMARY)
    other.merge(store.entries(), "a")
    other.put(PRIMARY, "c")
    assert store.put(PRIMARY, "a", stamp=weak.stamp + 1, expect=weak) is True
    assert store.merge(other.entries(), "c").accepted == [PRIMARY] and store.get(PRIMARY) == "c"
    assert store.put(PRIMARY, "a", stamp=weak.stamp + 1, expect=weak) is False
    assert store.get(PRIMARY) == "c"


def test_rule_24_rollback_respects_a_decision_with_the_very_same_stamp(make):
    """rule 24: without the comparison, stamp + 1 would win over a genuine `primary` that tied with the (none)."""
    store = make()
    store.put(PRIMARY, "a")
    store.put_weak(PRIMARY, "(none)")
    weak = store.entry(PRIMARY)
    store.merge([(PRIMARY, "c", weak.stamp)], "c")
    assert store.put(PRIMARY, "a", stamp=weak.stamp + 1, expect=weak) is False
    assert store.get(PRIMARY) == "c"


def test_only_own_facts_and_legal_values_are_written(make):
    store = make()
    for rel, value in ((REPLAY_B, at(1, 0)), (SIZE, "big"), ("x", "y"), ("../x", "y"), (SIZE, "")):
        with pytest.raises(ValueError):
            store.put(rel, value)
    assert os.listdir(store.root) == []


def test_load_is_a_faithful_reread(make):
    """A second store over the same directory has the same entries, tombstones too; its clock is behind none of them."""
    store = make()
    store.put_many([(PRIMARY, "a"), (TODO, "1"), (paths.ip("a"), "10.0.0.1")])
    store.delete(TODO)
    again = make(clock=lambda: NOW - 86_400 * 10**9)
    assert again.entries() == store.entries()
    assert again.lamport.now() > max(entry.stamp for entry in store.entries())
    assert again.load() == []


def test_load_passes_over_what_is_no_entry(make, tmp_path):
    store = make()
    store.put(PRIMARY, "a")
    root = tmp_path / "mars"
    (root / "resource-r/log-000000001-a").write_bytes(b"log")
    (root / "resource-r/.tmp.1.1.size").symlink_to("7")
    (root / "resource-r/unknown").symlink_to("7")
    (root / "resource-r/size").write_text("a file")
    (root / "backup").mkdir()
    (root / "backup/uuid").symlink_to("7")
    (root / "resource-all").mkdir()
    (root / "ips").symlink_to(root / "resource-r")
    (root / "resource-r/todo-a").symlink_to(root)
    again = make()
    assert again.entries() == store.entries() and again.problems == {}
    assert again.log_files("r") == [LogFile(1, "a", 3)] and again.log_files("s") == []


def test_illegal_value_on_disk_is_named_and_not_believed(make, tmp_path):
    make()
    (tmp_path / "mars/resource-r").mkdir()
    (tmp_path / "mars" / SIZE).symlink_to("many")
    store = make()
    assert store.get(SIZE) == "" and "not a legal value" in store.problems[SIZE]
    store.put(SIZE, "4096")
    assert store.get(SIZE) == "4096" and SIZE not in store.problems


def test_rule_25_illegal_stamp_on_disk_is_not_believed(make, tmp_path):
    """rule 25: the guard holds for local entries too, and such an entry is overridden by the next legal one."""
    store = make()
    store.put(PRIMARY, "a")
    future = NOW + 2 * MAX_FUTURE_NS
    os.utime(f"{store.root}/{PRIMARY}", ns=(future, future), follow_symlinks=False)
    again = make()
    assert again.get(PRIMARY) == "" and "max_lamport_future" in again.problems[PRIMARY]
    assert again.lamport.now() < future
    assert again.put(PRIMARY, "b") and on_disk(again, PRIMARY)[0] == "b"


def test_rule_25_every_program_knows_the_high_water_of_marsd(make, tmp_path):
    """rule 25: in the year 2000 marsadm, too, believes the tree and issues stamps above it, because marsd's mark is
    there; without the mark it believes nothing and names what it sees."""
    first = make()
    lamport = open_lamport(Paths(mars_dir=first.root), "a", clock=lambda: NOW)
    first.put(PRIMARY, "a", stamp=lamport.now())
    lamport.close()
    year_2000 = 946_684_800 * 10**9
    admin = make(clock=lambda: year_2000)
    assert admin.get(PRIMARY) == "a" and admin.lamport.clock_problem()
    assert admin.put(PRIMARY, "b") and first.reread(PRIMARY) == [PRIMARY]
    os.unlink(f"{first.root}/{paths.lamport_file('a')}")
    blind = make(clock=lambda: year_2000)
    assert blind.get(PRIMARY) == "" and PRIMARY in blind.problems


def test_lamport_file_is_private_to_this_host(make):
    store = make()
    lamport = open_lamport(Paths(mars_dir=store.root), "a", clock=lambda: NOW)
    lamport.now()
    lamport.close()
    path = f"{store.root}/{paths.lamport_file('a')}"
    assert os.stat(path).st_mode & 0o777 == 0o600 and os.stat(os.path.dirname(path)).st_mode & 0o777 == 0o700
    store.load()
    assert store.entries() == []


def test_reread_is_idempotent_and_tells_only_real_changes(make):
    store, admin = make(), make()
    calls = []
    store.on_change(calls.append)
    admin.put(TODO, "1")
    assert store.reread(TODO) == [TODO] and store.get(TODO) == "1"
    assert store.reread([TODO, TODO, "nonsense", "../x"]) == []
    store.put(SIZE, "1")
    assert store.reread(SIZE) == []
    assert calls == [[TODO], [SIZE]]


def test_reread_of_a_directory_and_of_what_is_gone(make):
    store, admin = make(), make()
    admin.put_many([(TODO, "1"), (PRIMARY, "a")])
    assert store.reread("resource-r/todo-a") == [TODO]
    assert store.reread("") == [PRIMARY]
    os.unlink(f"{store.root}/{TODO}")
    assert store.reread("resource-r/todo-a") == [TODO] and store.get(TODO) == ""
    os.unlink(f"{store.root}/{PRIMARY}")
    assert store.reread(PRIMARY) == [PRIMARY] and store.names() == []


def test_an_older_entry_renamed_over_a_newer_one_is_put_right(make):
    """Two processes: the disk is brought back to the greater entry, as everybody else has it."""
    store = make()
    store.put(PRIMARY, "a")
    newest = on_disk(store, PRIMARY)
    durable.write_link(f"{store.root}/{PRIMARY}", "b", newest[1] - 5, durable=False)
    assert store.reread(PRIMARY) == []
    assert on_disk(store, PRIMARY) == newest


def test_merge_does_not_overwrite_a_newer_entry_of_another_process(make):
    """marsadm wrote, the event is still in the queue, an older entry arrives from a peer."""
    store, admin = make(), make()
    admin.put(PRIMARY, "b", stamp=NOW + 50)
    assert store.merge([(PRIMARY, "c", NOW + 20)], "c").accepted == []
    assert store.get(PRIMARY) == "b" and on_disk(store, PRIMARY) == ("b", NOW + 50)


def test_put_of_another_process_gets_a_greater_stamp(make):
    store, admin = make(), make(clock=lambda: NOW - 10**9)
    store.put(PRIMARY, "a")
    admin.put(PRIMARY, "b")
    assert store.reread(PRIMARY) == [PRIMARY] and store.get(PRIMARY) == "b"


@pytest.mark.parametrize(("low", "high"), [("a", "b"), ("(none)", "a"), (".deleted", "(none)"), (".deleted", "0")])
def test_rule_25_equal_stamps_have_one_winner(make, low, high):
    """rule 25: total order (stamp, value): deleted < nobody < names, greater text wins; in both directions."""
    for first, second in ((low, high), (high, low)):
        store = make(where=f"mars-{first}-{second}")
        store.merge([(PRIMARY, first, NOW), (PRIMARY, second, NOW)], "b")
        assert store.entry(PRIMARY).value == high


def test_merge_refuses_and_says_why(make):
    store = make()
    batch = [("../etc/passwd", "x", NOW), (PRIMARY, "b", NOW + 2 * MAX_FUTURE_NS), (SIZE, "x\ny", NOW),
             (paths.replay("r", "c"), at(1, 0), NOW), "garbage", (PRIMARY, "b"), (SIZE, "7", NOW)]
    result = store.merge(batch, "b")
    assert result.accepted == [SIZE] and len(result.refused) == 6
    assert store.names() == [SIZE] and store.lamport.high_water == NOW


def test_rule_22_own_facts_never_come_from_others(make):
    """rule 22: they are reported after raising the clock, not accepted, neither from an owner's friend nor by relay."""
    store = make()
    store.put(REPLAY_A, at(1, 100))
    mine = store.entry(REPLAY_A)
    newer = Entry(REPLAY_A, at(1, 900), NOW + 10**12)
    result = store.merge([newer, Entry(REPLAY_A, at(1, 50), NOW - 5), mine], "b", relay_ok={"a", "b"})
    assert result.foreign_own == [newer] and result.accepted == [] and result.refused == []
    assert store.entry(REPLAY_A) == mine and on_disk(store, REPLAY_A) == (mine.value, mine.stamp)
    assert store.put(REPLAY_A, at(1, 100), restamp=True)
    assert store.stamp(REPLAY_A) > newer.stamp


def test_rule_22_a_host_without_memory_hears_of_facts_it_does_not_have(make):
    """rule 22: restored from an old backup: nothing is taken over, everything is reported."""
    store = make()
    lost = Entry(paths.version("r", 3, "a"), "1" * 32 + ",log-000000003-a,8:", NOW + 5)
    assert store.merge([lost], "b").foreign_own == [lost] and store.names() == []


def test_rule_19_a_batch_is_applied_in_order_and_seen_as_one(make):
    """rule 19: nobody sees is-primary=0 without the final version link of the same batch."""
    store, seen = make(), []
    version, gone = paths.version("r", 1, "b"), paths.actual("r", "b", "is-primary")
    store.on_change(lambda rels: seen.append((rels, store.get(version), store.get(gone))))
    text = "1" * 32 + ",log-000000001-b,1000:"
    store.merge([(version, text, NOW), (gone, "0", NOW)], "b")
    assert seen == [([version, gone], text, "0")]


def test_rule_26_removed_host_does_not_come_back(make):
    """rule 26: removal drops its facts everywhere; it re-stamps them cut off, and they are refused after the heal."""
    store, cut_off = make("b", "b"), make("a", "a")
    member, removed = paths.member("r", "a"), paths.removed("r", "a")
    cut_off.put(member, "life1")
    cut_off.put(REPLAY_A, at(1, 5))
    store.merge(cut_off.entries(), "a")
    assert store.get(REPLAY_A)
    calls = []
    store.on_change(calls.append)
    store.put(removed, "life1")
    assert store.entry(REPLAY_A) is None and not os.path.lexists(f"{store.root}/{REPLAY_A}")
    assert calls == [[removed, REPLAY_A]]
    cut_off.put(REPLAY_A, at(1, 6), stamp=NOW + 10**12)
    result = store.merge(cut_off.facts_of("a"), "a")
    assert result.accepted == [] and "over" in result.refused[0][1]
    third = make("c", "c")
    third.merge(store.entries(), "b")
    assert third.merge(cut_off.facts_of("a"), "d", relay_ok={"a"}).accepted == []
    cut_off.merge(store.entries(), "b")
    assert cut_off.get(removed) == "life1" and cut_off.get(REPLAY_A) == at(1, 6)
    assert cut_off.drop_facts("r", "a") == [REPLAY_A]
    cut_off.put(member, "life2")
    cut_off.put(REPLAY_A, at(2, 0))
    assert REPLAY_A in store.merge(cut_off.entries(), "a").accepted
    assert store.get(REPLAY_A) == at(2, 0)


def test_rule_26_removal_made_while_marsd_was_down_counts_at_load(make):
    """rule 26: marsadm wrote the wish; the next start of marsd drops the facts, also on disk, but never its own."""
    store, owner = make("b", "b"), make("a", "b-copy")
    store.merge([(paths.member("r", "a"), "life1", NOW), (REPLAY_A, at(1, 5), NOW + 1)], "a")
    owner.put(paths.member("r", "a"), "life1")
    owner.put(REPLAY_A, at(1, 5))
    for each in (store, owner):
        durable.write_link(f"{each.root}/{paths.removed('r', 'a')}", "life1", NOW + 10, durable=False)
    assert make("b", "b").entry(REPLAY_A) is None and not os.path.lexists(f"{store.root}/{REPLAY_A}")
    assert make("a", "b-copy").get(REPLAY_A) == at(1, 5)


def test_a_host_name_that_cannot_be_is_refused_at_once(tmp_path):
    for bad in ("a.example.org", "localhost", ""):
        with pytest.raises(PreconditionError, match="name"):
            Store(Paths(mars_dir=str(tmp_path)), bad, Lamport())


def test_rule_26_order_of_arrival_does_not_matter(make):
    """rule 26: fact of the old life, new membership: in any order nothing of the old life stays."""
    old = (REPLAY_A, at(1, 5), NOW + 1)
    new_life = [(paths.member("r", "a"), "life2", NOW + 9), (paths.removed("r", "a"), "life1", NOW + 8)]
    for index, batch in enumerate(([old, *new_life], [*new_life, old], [new_life[0], old, new_life[1]])):
        store = make("b", f"b{index}")
        for entry in batch:
            store.merge([entry], "a")
        assert store.names() == sorted(rel for rel, _, _ in new_life)


def test_rule_26_purged_tombstones_do_not_come_back(make):
    """rule 26: a peer that has not purged yet sends them again: they stay away, newer ones are taken."""
    store, other = make(), make("b", "other")
    store.put(TODO, "1")
    store.delete(TODO)
    other.merge(store.entries(), "a")
    assert store.purge(store.stamp(TODO) + 1) == [TODO]
    assert os.listdir(store.root) == []
    store.merge(other.entries(), "b")
    assert store.entries() == []
    other.put(TODO, "0")
    assert store.merge(other.entries(), "b").accepted == [TODO]


def test_purge_keeps_what_lives_and_what_is_young(make):
    store = make()
    store.put_many([(TODO, "1"), (PRIMARY, "a")])
    store.delete(TODO)
    assert store.purge(store.stamp(TODO)) == [] and store.entry(TODO) is not None
    assert store.purge(NOW * 2) == [TODO] and store.get(PRIMARY) == "a"


def test_durable_put_syncs_value_directory_and_new_parents(make, monkeypatch):
    """rule 21: value, the directory of the link, and every directory above that may be new."""
    store = make()
    synced = []
    monkeypatch.setattr(durable, "sync_dir", lambda path: synced.append(path))
    monkeypatch.setattr(durable, "sync_links", lambda path, values: synced.append((path, list(values))))
    store.put(TODO, "1", durable=True)
    root = store.root
    assert synced == [(f"{root}/resource-r/todo-a", ["1"]), f"{root}/resource-r", root]
    assert store.is_durable(TODO)
    synced.clear()
    store.put(TODO, "1", durable=True)
    assert synced == []
    store.put(TODO, "0")
    assert not store.is_durable(TODO)
    store.make_durable([TODO, "resource-r/size"])
    assert synced == [(f"{root}/resource-r/todo-a", ["0"])] and store.is_durable(TODO)


def test_rule_21_what_another_process_wrote_counts_only_after_a_sync(make):
    """rule 21: marsadm's `primary` is not durable because we can read it."""
    store, admin = make(), make()
    admin.put(PRIMARY, "a", durable=True)
    store.reread(PRIMARY)
    assert store.get(PRIMARY) == "a" and not store.is_durable(PRIMARY)
    store.make_durable([PRIMARY])
    assert store.is_durable(PRIMARY)
    admin.put(PRIMARY, "b")
    store.reread(PRIMARY)
    assert not store.is_durable(PRIMARY)


def test_failed_sync_is_an_error_and_stays_one(make, monkeypatch):
    """rule 21: no role on a value whose sync failed, and no second try that succeeds."""
    store = make()
    answers = iter([OSError(errno.EIO, "bad")])

    def fsync(fd):
        for answer in answers:
            raise answer

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(durable, "_syncfs", fsync)
    for _ in range(2):
        with pytest.raises(MarsError, match="durable") as failed:
            store.put(PRIMARY, "a", durable=True)
        assert failed.value.hint
    assert not store.is_durable(PRIMARY)


def test_rule_28_no_space_keeps_the_fact_names_it_and_retries(make, monkeypatch):
    """rule 28: the fact that announces the emergency is told to peers although /mars is full; durable callers fail."""
    store = make()
    real = durable.write_link

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable, "write_link", full)
    rel = paths.host_actual("a", "emergency")
    assert store.put(rel, "4") is True
    assert store.get(rel) == "4" and "No space" in store.problems[rel]
    assert [entry.rel for entry in store.facts_of("a")] == [rel]
    assert store.load() == [] and store.get(rel) == "4"
    with pytest.raises(MarsError, match="No space"):
        store.put(REPLAY_A, at(1, 0), durable=True)
    assert store.retry() == [rel, REPLAY_A]
    monkeypatch.setattr(durable, "write_link", real)
    assert store.retry() == [] and store.problems == {}
    assert on_disk(store, rel) == ("4", store.stamp(rel))
    store.put(REPLAY_A, at(1, 0), durable=True)
    assert store.is_durable(REPLAY_A)


def test_other_write_errors_are_not_kept(make, monkeypatch):
    store = make()
    monkeypatch.setattr(durable, "write_link", lambda *args, **kw: (_ for _ in ()).throw(OSError(errno.EROFS, "ro")))
    with pytest.raises(PermissionDeniedError):
        store.put(PRIMARY, "a")
    assert store.get(PRIMARY) == "" and store.problems == {}


def test_readonly_store_writes_nothing_at_all(make, tmp_path):
    store = make()
    store.put(PRIMARY, "a")
    before = os.stat(store.root).st_mtime_ns
    looker = make(readonly=True)
    assert looker.get(PRIMARY) == "a"
    for action in (lambda: looker.put(PRIMARY, "b"), lambda: looker.merge([], "b"), lambda: looker.purge(1)):
        with pytest.raises(PermissionDeniedError):
            action()
    assert os.stat(store.root).st_mtime_ns == before


def test_another_directory_under_the_same_name_is_not_an_empty_tree(make, tmp_path):
    """Somebody unmounted /mars: the tree must not look as if everything had been deleted."""
    store = make()
    store.put(PRIMARY, "a")
    os.rename(tmp_path / "mars", tmp_path / "away")
    (tmp_path / "mars").mkdir()
    with pytest.raises(MarsError, match="not the directory any more"):
        store.load()
    assert store.get(PRIMARY) == "a"


def test_facts_of_and_wishes_split_the_tree_in_order(make):
    store = make()
    store.put(REPLAY_A, at(1, 0))
    store.put(PRIMARY, "a")
    store.put(paths.host_actual("a", "alive"), "1")
    store.merge([(REPLAY_B, at(1, 0), NOW)], "b")
    assert [entry.rel for entry in store.facts_of("a")] == [REPLAY_A, paths.host_actual("a", "alive")]
    assert [entry.rel for entry in store.facts_of("b")] == [REPLAY_B]
    assert [entry.rel for entry in store.wishes()] == [PRIMARY]


@pytest.mark.parametrize("heals", [True, False])
def test_what_vanished_comes_back_while_marsd_runs(tmp_path, heals):
    """Entries are deleted by tombstones: one that is gone, no link, or in no directory any more was damaged. Only marsd
    knows what it has forgotten itself; other programs believe the disk."""
    store = Store(Paths(mars_dir=str(tmp_path)), "a", Lamport())
    store.load()
    store.heals = heals
    rel, other = paths.todo("r", "a", "attach"), paths.size("r")
    store.put_many([(rel, "1"), (other, "4096")])
    stamp = store.stamp(rel)
    (tmp_path / rel).unlink()
    (tmp_path / other).unlink()
    (tmp_path / other).mkdir()
    store.reread([rel, other])
    assert (store.get(rel), store.get(other)) == (("1", "4096") if heals else ("", ""))
    assert os.path.islink(tmp_path / rel) is os.path.islink(tmp_path / other) is heals
    assert len(store.healed) == 2 * heals
    if not heals:
        return
    assert store.stamp(rel) == stamp == os.lstat(tmp_path / rel).st_mtime_ns
    assert "misplaced" in store.healed[other] and len(os.listdir(tmp_path / "local-a/misplaced")) == 1
    folder = (tmp_path / rel).parent
    (tmp_path / rel).unlink()
    folder.rmdir()
    folder.write_text("no directory")
    store.load()
    assert store.get(rel) == "1" == os.readlink(tmp_path / rel) and len(os.listdir(tmp_path / "local-a/misplaced")) == 2
    store.delete(rel)
    assert store.purge(store.lamport.now()) == [rel]
    store.reread(rel)
    assert store.entry(rel) is None, "what marsd forgot itself stays forgotten"
