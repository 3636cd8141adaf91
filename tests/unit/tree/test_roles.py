"""Who holds the right to append the next log (rule 18)."""
from __future__ import annotations

import itertools

import pytest

from marsx.tree import paths
from marsx.tree.roles import newest_log, right_holder
from marsx.tree.view import View

D = "d" * 32


def version(host: str, nr: int, producer: str, pos: int = 4096) -> tuple[str, str, int]:
    return paths.version("r", nr, host), f"{D},log-{nr:09d}-{producer},{pos}:", 5


def grant(by: str, to: str, stamp: int, nr: int = 1, producer: str = "a") -> tuple[str, str, int]:
    return paths.granted("r", by), f"{to},log-{nr:09d}-{producer},4096,{D}", stamp


def right(*entries: tuple[str, str, int]) -> tuple[str, int, str, bool, int] | None:
    found = right_holder(View(entries), "r")
    return found and (found.host, found.nr, found.producer, found.mark is not None, found.since)


def test_no_log_no_right() -> None:
    """Nobody knows a log: nobody holds anything."""
    assert right() is None
    assert newest_log(View([]), "r") == (0, "")


@pytest.mark.parametrize(("entries", "holder"), [
    pytest.param([], ("a", 1, "a", False, 0), id="the producer himself"),
    pytest.param([grant("a", "b", 10)], ("b", 1, "a", True, 10), id="granted"),
    pytest.param([grant("a", "b", 10), grant("b", "c", 11)], ("c", 1, "a", True, 11), id="passed on"),
    pytest.param([grant("a", "b", 10), grant("b", "a", 11)], ("a", 1, "a", True, 11), id="given back"),
    pytest.param([grant("a", "b", 12), grant("b", "a", 11)], ("b", 1, "a", True, 12), id="given back, and again"),
    pytest.param([grant("a", "a", 10)], ("a", 1, "a", True, 10), id="to himself: the end is known"),
    pytest.param([grant("a", "(none)", 10)], ("a", 1, "a", False, 0), id="to nobody"),
    pytest.param([grant("b", "c", 10)], ("a", 1, "a", False, 0), id="by somebody who does not hold it"),
    pytest.param([grant("a", "b", 10), grant("b", "c", 10)], ("b", 1, "a", True, 10), id="not after it was got"),
    pytest.param([grant("a", "b", 10, nr=2)], ("a", 1, "a", False, 0), id="for another log"),
    pytest.param([grant("a", "b", 10, producer="z")], ("a", 1, "a", False, 0), id="for the log of another producer"),
    pytest.param([grant("a", "b", 10), version("c", 2, "b")], ("b", 2, "b", False, 0), id="used up"),
    pytest.param([grant("a", "b", 10), version("b", 2, "b", 0)], ("b", 2, "b", False, 0), id="used up, empty log"),
    pytest.param([grant("a", "b", 10), version("b", 2, "b", 0), version("c", 2, "b", 0)], ("b", 2, "b", False, 0),
                 id="used up, empty log, its producer says so too"),
    pytest.param([version("b", 2, "a", 0)], ("a", 1, "a", False, 0), id="an empty log that a has withdrawn"),
    pytest.param([grant("a", "b", 10), version("b", 2, "a", 0)], ("b", 1, "a", True, 10),
                 id="granted after it was withdrawn"),
    pytest.param([version("c", 2, "a", 0), version("a", 2, "b", 0), version("b", 2, "b", 0)],
                 ("b", 2, "b", False, 0), id="an empty log that a has withdrawn to follow another one"),
    pytest.param([version("c", 2, "b", 0), version("b", 2, "a", 0), version("a", 2, "a", 0)],
                 ("a", 2, "a", False, 0), id="an empty log that b has withdrawn to follow another one"),
    pytest.param([version("b", 2, "a")], ("a", 2, "a", False, 0), id="a log with contents, known to another one only"),
    pytest.param([(paths.granted("r", "a"), "rubbish", 10)], ("a", 1, "a", False, 0), id="damaged"),
])
def test_holder(entries: list[tuple[str, str, int]], holder: tuple[str, int, str, bool, int]) -> None:
    """Rule 18: the grants for the newest log are followed from its producer along rising stamps, in any order of the
    entries."""
    for order in itertools.permutations([version("a", 1, "a"), version("b", 1, "a"), *entries]):
        assert right(*order) == holder


@pytest.mark.parametrize("designated", ["a", "c", "(none)"])
def test_split_brain_has_one_answer(designated: str) -> None:
    """Two logs with one number: the designated primary's counts, so that it can go on after a restart; the answer does
    not depend on the order of the entries."""
    entries = [version("a", 2, "a"), version("c", 2, "c"), (paths.primary("r"), designated, 9), version("b", 1, "a")]
    found = {newest_log(View(order), "r") for order in itertools.permutations(entries)}
    assert found == {(2, "a" if designated == "a" else "c")}


def link(host: str, nr: int, producer: str, pos: int, before: tuple[str, int] | None = None) -> tuple[str, str, int]:
    """A version link; `before`: producer and end of the log before."""
    prev = f"{D},log-{nr - 1:09d}-{before[0]},{before[1]}" if before else ""
    return paths.version("r", nr, host), f"{D},log-{nr:09d}-{producer},{pos}:{prev}", 5


MEMBERS = [(paths.data("r", host), "/dev/x", 1) for host in "abc"]
A_GOES_ON = [link("a", 1, "a", 8192), link("a", 2, "a", 4096, ("a", 8192)), link("a", 3, "a", 4096, ("a", 4096))]
B_FORCED = [link("b", 1, "a", 4096), link("b", 2, "b", 4096, ("a", 4096))]


@pytest.mark.parametrize(("designated", "entries", "holder"), [
    pytest.param("b", [*A_GOES_ON, *B_FORCED], ("b", 2, "b"), id="the forced one's, however many logs the other has"),
    pytest.param("a", [*A_GOES_ON, *B_FORCED], ("a", 3, "a"), id="the other one's, when it is to be primary"),
    pytest.param("(none)", [*A_GOES_ON, *B_FORCED], ("a", 3, "a"), id="nobody is: the number"),
    pytest.param("b", [*A_GOES_ON, link("b", 1, "a", 4096), link("b", 2, "b", 0, ("a", 4096))], ("a", 3, "a"),
                 id="forced, and nothing written: the other is only ahead"),
    pytest.param("b", [*A_GOES_ON, link("b", 1, "a", 4096)], ("a", 3, "a"), id="only behind"),
    pytest.param("b", [link("a", 4, "a", 4096, ("a", 4096)), *B_FORCED], ("a", 4, "a"), id="not known: links are gone"),
    pytest.param("b", [*A_GOES_ON, *B_FORCED, link("c", 1, "a", 4096), link("c", 2, "b", 4096, ("a", 4096)),
                       link("c", 3, "c", 4096, ("b", 4096))], ("c", 3, "c"), id="who went on in the same one counts"),
])
def test_of_parted_histories_that_of_the_designated_counts(designated: str, entries: list[tuple[str, str, int]],
                                                           holder: tuple[str, int, str]) -> None:
    """Rule 18: a right is one of a history; rule 21: who may only be behind does not begin a log."""
    view = View([*MEMBERS, (paths.primary("r"), designated, 1), *entries])
    found = right_holder(view, "r")
    assert found is not None and (found.host, found.nr, found.producer) == holder
