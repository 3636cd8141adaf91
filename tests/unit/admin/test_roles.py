"""primary and secondary: what is asked, what is written when, and how it is taken back (rules 18, 23, 24)."""

from __future__ import annotations

import pytest

from tests.unit.admin.small_tree import D1, D2, D3, NOW, SIZE, Admin, S

PRIMARY = "resource-data/primary"
WANT = "resource-data/todo-b/want-primary"
GRANT = "resource-data/actual-a/granted"
ME = "resource-data/actual-b"


def grant(adm: Admin, host: str = "b") -> None:
    """a gives the role to `host` at the end of log 1."""
    adm.tree.put("resource-data/actual-a/is-primary", "0")
    adm.tree.put(GRANT, f"{host},log-000000001-a,8192,{D1}")


def started(adm: Admin) -> None:
    """marsd on b makes the device."""
    adm.tree.put(f"{ME}/is-primary", "1")


def test_planned_handover(adm: Admin) -> None:
    """Rule 18: asks, waits for the grant, only then writes `primary`, withdraws the request, waits for the device."""
    old = adm.tree.stamp(PRIMARY)
    seen = {}

    def first() -> None:
        seen["none"] = (adm.tree.get(PRIMARY), adm.tree.stamp(PRIMARY), adm.tree.get(WANT))
        adm.tree.put("resource-data/actual-a/is-primary", "0")

    def second() -> None:
        seen["still"] = adm.tree.get(PRIMARY)
        grant(adm)

    def third() -> None:
        seen["mine"] = (adm.tree.get(PRIMARY), adm.tree.get(WANT))
        started(adm)

    code, out, err = adm("primary data", first, second, third)
    assert code == 0, err
    value, stamp, want = seen["none"]
    assert value == "(none)" and stamp == old + S and want not in ("", "0")
    assert seen["still"] == "(none)" and seen["mine"] == ("b", "0")
    assert adm.tree.stamp(PRIMARY) >= NOW
    assert "a still is primary" in err and "a has not yet granted" in err and "b is primary" in out


def test_time_out_takes_back_as_weakly_as_it_gave(adm: Admin) -> None:
    """Rule 24: compare-and-swap on the own (none), that stamp + 1 ns; exit 5."""
    old = adm.tree.stamp(PRIMARY)
    code, _, err = adm("primary data --timeout=20")
    assert code == 5 and "timed out after 20 s" in err and "primary --force" in err
    assert adm.tree.get(PRIMARY) == "a" and adm.tree.stamp(PRIMARY) == old + S + 1 and adm.tree.get(WANT) == "0"


@pytest.mark.parametrize("later", [S, S + 1, 2 * S])
def test_a_genuine_primary_is_not_overwritten(adm: Admin, later: int) -> None:
    """Rule 24: somebody was made primary while we waited, even in the same ns; the way back does not touch that."""
    stamp = adm.tree.stamp(PRIMARY) + later
    code, _, err = adm("primary data", lambda: adm.tree.put(PRIMARY, "c", stamp))
    assert code == 3 and "c was made primary meanwhile" in err
    assert (adm.tree.get(PRIMARY), adm.tree.stamp(PRIMARY)) == ("c", stamp) and adm.tree.get(WANT) == "0"


def test_interrupt_takes_back(adm: Admin) -> None:
    """Ctrl-C while waiting leaves the role where it was."""

    def stop() -> None:
        raise KeyboardInterrupt

    code, _, _ = adm("primary data", stop)
    assert code == 130 and adm.tree.get(PRIMARY) == "a" and adm.tree.get(WANT) == "0"


def test_after_the_grant_nothing_is_taken_back(adm: Admin) -> None:
    """The old primary has given the role away: a device that does not come is a time-out, not a way back."""
    code, _, err = adm("primary data --timeout=9", lambda: grant(adm))
    assert code == 5 and "not there yet" in err and adm.tree.get(PRIMARY) == "b"


@pytest.mark.parametrize("host", ["c", "(none)"])
def test_a_grant_for_somebody_else(adm: Admin, host: str) -> None:
    """Rule 18: only the host that the grant names may go on."""
    code, _, err = adm("primary data --timeout=5", lambda: grant(adm, host))
    assert code == 5 and adm.tree.get(PRIMARY) == "a"
    assert f"{'a' if host == '(none)' else host} has not yet granted" in err.splitlines()[-2]


def test_a_used_grant_does_not_count(adm: Admin) -> None:
    """Rule 18: a has granted log 1 to b once; now log 2 of a exists, so that grant is history."""
    grant(adm)
    for host in ("a", "b"):
        adm.tree.put(f"resource-data/version-000000002-{host}", f"{D2},log-000000002-a,4096:{D1},log-000000001-a,8192")
        adm.tree.put(f"resource-data/replay-{host}", "log-000000002-a,4096,0")
    code, _, err = adm("primary data --timeout=5")
    assert code == 5 and "a has not yet granted" in err and adm.tree.get(PRIMARY) == "a"


def test_last_producer_needs_no_grant(adm: Admin) -> None:
    """Rule 18: after `secondary` the producer of the newest log keeps the right, and may take the role back."""
    adm.tree.put(PRIMARY, "(none)")
    adm.tree.put("resource-data/actual-a/is-primary", "0")
    for host in ("a", "b"):
        adm.tree.put(f"resource-data/version-000000002-{host}", f"{D2},log-000000002-b,4096:{D1},log-000000001-a,8192")
        adm.tree.put(f"resource-data/replay-{host}", "log-000000002-b,4096,0")
    code, out, err = adm("primary data", lambda: started(adm))
    assert code == 0 and adm.tree.get(PRIMARY) == "b", err


def test_already_primary(adm: Admin) -> None:
    """On the primary it changes nothing and succeeds."""
    adm.host = "a"
    before = adm.tree.all()
    code, out, _ = adm("primary data")
    assert code == 0 and adm.tree.all() == before and "a is primary" in out


def test_designated_but_detached(adm: Admin) -> None:
    """The device cannot come while attach is off: refused at once."""
    adm.host = "a"
    adm.tree.put("resource-data/todo-a/attach", "0")
    before = adm.tree.all()
    code, _, err = adm("primary data")
    assert code == 3 and "attach is off" in err and adm.tree.all() == before


@pytest.mark.parametrize(
    ("rel", "value", "text"),
    [
        ("resource-data/todo-b/attach", "0", "switch attach is off"),
        ("resource-data/todo-b/connect", "0", "switch connect is off"),
        ("resource-data/todo-b/allow-replay", "0", "switch allow-replay is off"),
        ("resource-data/syncstatus-b", "4096", f"{SIZE - 4096} bytes are not synced"),
        ("resource-data/syncpos-b", f"log-000000001-a,9999360,0,{D3}", "not passed the end of the sync"),
        ("resource-data/actual-b/has-emergency", "1", "emergency mode"),
        ("resource-data/actual-b/replay-code", "-5", "stopped with error -5"),
        ("resource-data/actual-a/open-count", "1", "in use on a (1 times)\n  hint: umount it on a"),
        ("resource-data/version-000000001-b", f"{D2},log-000000001-a,8192:", "split brain"),
    ],
)
def test_refused(adm: Admin, rel: str, value: str, text: str) -> None:
    """Facts 5.2 phase 0: exit 3, says why and what to do, changes nothing."""
    adm.tree.put(rel, value)
    before = adm.tree.all()
    code, _, err = adm("primary data")
    assert code == 3 and text in err and "hint:" in err and adm.tree.all() == before


def test_other_syncs(adm: Admin) -> None:
    """With three replicas a running sync of the third forbids the handover, unless it is gone or --ignore-sync."""
    adm.tree.cluster("a", "b", "c").resource("data", "a", "b", "c")
    adm.tree.put("resource-data/syncstatus-c", "0")
    code, _, err = adm("primary data")
    assert code == 3 and "the sync of c is not finished" in err
    steps = (lambda: grant(adm), lambda: started(adm))
    assert adm("primary data --ignore-sync", *steps)[0] == 0


def test_force_wants_disconnect(adm: Admin) -> None:
    """--force on a connected replica is refused, nothing changes."""
    before = adm.tree.all()
    code, _, err = adm("primary --force data")
    assert code == 3 and "marsadm disconnect data" in err and adm.tree.all() == before


def test_force(adm: Admin) -> None:
    """The role at once, with a genuine stamp, without asking; the switches come on when the device is there."""
    adm.tree.put("resource-data/todo-b/connect", "0")
    adm.tree.put("actual-a/alive", "1", NOW - 3600 * S)
    seen = []

    def look() -> None:
        seen.append((adm.tree.get(PRIMARY), adm.tree.get("resource-data/todo-b/connect")))
        started(adm)

    code, _, err = adm("primary --force data", look)
    assert code == 0 and seen == [("b", "0")] and adm.tree.stamp(PRIMARY) >= NOW and "split brain" in err
    assert adm.tree.get("resource-data/todo-b/connect") == "1"


def longer_copy(adm: Admin) -> None:
    """a is dead; c, alive, has 4096 bytes more of log 1 than b."""
    adm.tree.cluster("a", "b", "c").resource("data", "a", "b", "c")
    adm.tree.put("resource-data/version-000000001-c", f"{D3},log-000000001-a,12288:")
    adm.tree.put("resource-data/todo-b/connect", "0")
    adm.tree.put("actual-a/alive", "1", NOW - 3600 * S)


def test_force_does_not_throw_away_what_another_has(adm: Admin) -> None:
    """Rule 23: refused, naming who has more and how to fetch it."""
    longer_copy(adm)
    code, _, err = adm("primary --force data")
    assert code == 3 and "c has more of the same history (log-000000001-a,12288" in err
    assert "marsadm connect data" in err and adm.tree.get(PRIMARY) == "a"


@pytest.mark.parametrize(("pos", "code"), [("log-000000001-a,8192", 0), ("log-000000001-a,4096", 3), ("nonsense", 2)])
def test_force_with_the_position_to_accept(adm: Admin, pos: str, code: int) -> None:
    """Rule 23: only who names just the position that is here gives the rest up."""
    longer_copy(adm)
    assert adm(f"primary --force data --accept-position={pos}", lambda: started(adm))[0] == code


def test_force_looks_at_sync_bounds_too(adm: Admin) -> None:
    """Rule 23: c was synced up to a position that b does not have: its disk holds more of the history."""
    longer_copy(adm)
    adm.tree.put("resource-data/version-000000001-c", f"{D1},log-000000001-a,8192:")
    adm.tree.put("resource-data/syncpos-c", f"log-000000001-a,16384,0,{D3}")
    code, _, err = adm("primary --force data")
    assert code == 3 and "log-000000001-a,16384, the end of its sync" in err


def test_force_asks_only_who_can_be_reached(adm: Admin) -> None:
    """Rule 23: what a host has that cannot be reached cannot be fetched."""
    longer_copy(adm)
    adm.tree.put("actual-c/alive", "1", NOW - 3600 * S)
    assert adm("primary --force data", lambda: started(adm))[0] == 0


def test_force_does_not_take_a_half_synced_replica(adm: Admin) -> None:
    """--force alone does not override an unfinished sync."""
    adm.tree.put("resource-data/todo-b/connect", "0")
    adm.tree.put("resource-data/syncstatus-b", "4096")
    assert adm("primary --force data")[0] == 3
    wants = []

    def look() -> None:
        wants.append(adm.tree.get("resource-data/todo-b/want-primary"))
        started(adm)

    assert adm("primary --force --ignore-sync data", look)[0] == 0 and wants[0].startswith("ignore-sync-")


def test_secondary(adm: Admin) -> None:
    """Gives the role up with a weak stamp and waits until the device is gone."""
    adm.host = "a"
    old = adm.tree.stamp(PRIMARY)
    code, out, _ = adm("secondary data", lambda: adm.tree.put("resource-data/actual-a/is-primary", "0"))
    assert code == 0 and adm.tree.get(PRIMARY) == "(none)" and adm.tree.stamp(PRIMARY) == old + S
    assert "nobody is primary" in out


def test_secondary_while_in_use(adm: Admin) -> None:
    """Refused, nothing changed; and a device that stays gives the role back."""
    adm.host = "a"
    before = adm.tree.all()
    adm.tree.put("resource-data/actual-a/open-count", "1")
    assert adm("secondary data")[0] == 3 and adm.tree.get(PRIMARY) == "a"
    adm.tree.put("resource-data/actual-a/open-count", "0")
    code, _, err = adm("secondary data --timeout=4")
    assert code == 5 and adm.tree.get(PRIMARY) == "a" and adm.tree.stamp(PRIMARY) == before[PRIMARY][1] + S + 1


def test_secondary_on_a_secondary(adm: Admin) -> None:
    """Nothing to do, and the primary elsewhere is left alone."""
    before = adm.tree.all()
    code, out, _ = adm("secondary data")
    assert code == 0 and "secondary already" in out and adm.tree.all() == before


def test_primary_all(adm: Admin) -> None:
    """Two resources are asked for together; one that is refused does not stop the other (exit 7)."""
    adm.tree.resource("bad", "a", "b")
    adm.tree.put("resource-bad/actual-a/open-count", "1")
    code, out, err = adm("primary all", lambda: grant(adm), lambda: started(adm))
    assert code == 7 and "bad: the device is in use on a" in err and "data: b is primary" in out
    assert adm.tree.get("resource-bad/primary") == "a"
