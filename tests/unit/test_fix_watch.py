"""The watch on messages: it really fails tests, and only those it should."""
from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

CASES = """
import logging, pytest
log = logging.getLogger("marsx.some.module")

def test_quiet():
    log.info("fine")

def test_loud():
    log.warning("boo")

@pytest.mark.expect_messages("b.o")
def test_announced():
    log.warning("boo")

@pytest.mark.expect_messages("never")
def test_unkept():
    pass

def test_by_fixture(expect_messages):
    expect_messages("boo")
    log.error("boo")

@pytest.fixture
def noisy():
    yield
    log.error("at the end")

def test_teardown(noisy):
    pass

def test_replaced_handlers():
    logging.getLogger("marsx").setLevel(logging.CRITICAL)

def test_state_is_back():
    assert logging.getLogger("marsx").level == logging.NOTSET
"""


def test_watch_fails_what_it_should(pytester: pytest.Pytester, request: pytest.FixtureRequest,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rule of fix_watch once, in a pytest of its own."""
    monkeypatch.setenv("PYTHONPATH", str(request.config.rootpath))
    pytester.makepyfile(test_cases=CASES)
    pytester.makeini("[pytest]\nmarkers =\n    expect_messages: x\n")
    result = pytester.runpytest_subprocess("-p", "tests.fix_watch", "-q", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=6, failed=2, errors=1)
    result.stdout.fnmatch_lines(["*not announced: WARNING marsx.some.module: boo*", "*announced but not told: never*"])
    result.stdout.fnmatch_lines(["ERROR *test_teardown*"])
