"""Positions and names of logs: what is written is read back, everything else is refused."""
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marsx.base.errors import DamagedError
from marsx.base.position import NR_MAX, POS_MAX, LogPos, is_host_name, log_name, parse_decimal, parse_log_name

hosts = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,20}[A-Za-z0-9_])?", fullmatch=True).filter(str.isascii)
numbers = st.integers(1, NR_MAX)
positions = st.builds(LogPos, numbers, hosts, st.integers(0, POS_MAX))


@given(positions)
def test_round_trip(position: LogPos) -> None:
    """parse is the inverse of str, for host names with dashes and digits too."""
    assert LogPos.parse(str(position)) == position
    assert parse_log_name(position.log) == (position.nr, position.producer)


@given(positions, positions)
def test_order_is_number_then_pos(one: LogPos, two: LogPos) -> None:
    """The order does not look at the producer."""
    assert (one < two) == ((one.nr, one.pos) < (two.nr, two.pos))
    assert (one <= two) == ((one.nr, one.pos) <= (two.nr, two.pos))
    assert (one > two, one >= two) == (two < one, two <= one)


@given(st.text(alphabet="log-0123456789abAB,._ /\n", max_size=40))
def test_accepts_nothing_that_is_not_canonical(text: str) -> None:
    """A string that parses is exactly the string that would be written: no two spellings of a position."""
    try:
        position = LogPos.parse(text)
    except DamagedError:
        return
    assert str(position) == text


@pytest.mark.parametrize("text", [
    "", "log-000000001-a", "log-1-a,0", "log-000000000-a,0", "log-000000001-,0", "log-000000001-a,",
    "log-000000001-a,-1",
    "log-000000001-a,01", "log-000000001-a,1 ", " log-000000001-a,1", "log-000000001-a,1,2", "log-0000000001-a,1",
    "log-000000001-a/../b,1", "log-000000001-..,1", "log-000000001-.a,1", "log-000000001-a\n,1", "log-000000001-a,1\n",
    "log-000000001-\u00e4,1", "log-000000001-a,\u0661", f"log-000000001-a,{2**63}", "log-000000001-" + "a" * 64 + ",1",
])
def test_refuses(text: str) -> None:
    """Hostile or damaged values, each of its own kind."""
    with pytest.raises(DamagedError):
        LogPos.parse(text)


def test_known_spelling() -> None:
    """The form other tools and eyes know."""
    assert str(LogPos(1, "alpha", 4096)) == "log-000000001-alpha,4096"
    assert log_name(1234567890, "a-1") == "log-1234567890-a-1"
    assert parse_log_name("log-1234567890-a-1") == (1234567890, "a-1")


@pytest.mark.parametrize("bad", [(0, "a", 0), (1, "", 0), (1, "a", -1), (1, "a/b", 0), (1, "a", 2**63),
                                 (10**18, "a", 0)])
def test_cannot_be_made_wrong(bad: tuple[int, str, int]) -> None:
    """An impossible position is a mistake of ours and never gets as far as a file."""
    with pytest.raises(ValueError):
        LogPos(*bad)


def test_log_name_checks() -> None:
    """Names of files are never built from unchecked words."""
    with pytest.raises(ValueError):
        log_name(1, "../x")
    with pytest.raises(ValueError):
        log_name(0, "a")


@pytest.mark.parametrize(("text", "good"), [("a", True), ("a.b-c_d", True), ("-a", False), ("a.", False), ("", False),
                                            ("(none)", False), ("a" * 63, True), ("a" * 64, False)])
def test_host_names(text: str, good: bool) -> None:
    """What may stand for a host."""
    assert is_host_name(text) is good


def test_decimal_limit() -> None:
    """Numbers have a limit before they are used."""
    assert parse_decimal("17", 17) == 17
    with pytest.raises(DamagedError):
        parse_decimal("18", 17)
