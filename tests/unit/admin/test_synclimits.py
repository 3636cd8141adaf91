"""Sync limits: exactly the links written, what is refused, what is printed."""

from __future__ import annotations

import pytest

from tests.unit.admin.small_tree import Admin

LIMIT_A, LIMIT_B, PREF = "defaults-a/sync-limit", "defaults-b/sync-limit", "defaults-b/sync-pref-list"


def test_the_limit_of_this_host_and_of_all(adm: Admin) -> None:
    """A number a host, read back as it was set; nothing else changes."""
    before = adm.tree.all()
    assert adm("set-sync-limit-value 3")[0] == 0
    after = adm.tree.all()
    assert {rel for rel in after if after[rel] != before.get(rel)} == {LIMIT_B} and after[LIMIT_B][0] == "3"
    assert adm("get-sync-limit-value")[1] == "3\n"
    assert adm("set-global-sync-limit-value 02")[0] == 0
    assert adm.tree.all()[LIMIT_A][0] == adm.tree.all()[LIMIT_B][0] == "2"
    assert adm("get-global-sync-limit-value")[1] == "a 2\nb 2\n"
    assert adm.control.asked == []


def test_the_preferred_resources(adm: Admin) -> None:
    """A list without doubles, or nobody."""
    assert adm("get-sync-pref-list")[1] == "(none)\n"
    assert adm("set-sync-pref-list data,data")[0] == 0 and adm.tree.all()[PREF][0] == "data"
    assert adm("get-sync-pref-list")[1] == "data\n"
    assert adm("set-sync-pref-list (none)")[0] == 0 and adm.tree.all()[PREF][0] == "(none)"


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("set-sync-limit-value", 2), ("set-sync-limit-value -1", 2), ("set-sync-limit-value x", 2),
        ("set-sync-limit-value 99999", 2), ("set-sync-limit-value \u0663", 2), ("set-sync-pref-list nosuch", 4),
        ("set-sync-pref-list data,nosuch", 4),
    ],
)  # fmt: skip
def test_what_is_refused(adm: Admin, line: str, status: int) -> None:
    """Nothing is written then."""
    before = adm.tree.all()
    assert adm(line)[0] == status and adm.tree.all() == before
