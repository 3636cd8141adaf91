"""A test fails when marsx tells a WARNING or ERROR that the test did not announce, or does not tell an announced one.

Announce with a marker, `@pytest.mark.expect_messages("regular expression", ...)`, or inside the test with the fixture
`expect_messages("regular expression")`. Each expression must be found in at least one message. The state of the logger
"marsx" (handlers, level) is put back after each test.
"""
from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator

import pytest


class Watch(logging.Handler):
    """Collects what one test told, from any thread."""

    def __init__(self, announced: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.announced = announced
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message."""
        self.told.append(f"{record.levelname} {record.name}: {record.getMessage()}")

    def complaints(self) -> list[str]:
        """Messages nobody announced; announcements nobody kept. Each is returned once."""
        told, self.told = self.told, []
        loud = [text for text in told if not any(re.search(pattern, text) for pattern in self.announced)]
        kept = [pattern for pattern in self.announced if any(re.search(pattern, text) for text in told)]
        self._kept = getattr(self, "_kept", set()) | set(kept)
        return [f"not announced: {text}" for text in loud]

    def unkept(self) -> list[str]:
        """Announcements without a message."""
        return [f"announced but not told: {pattern}" for pattern in self.announced if pattern not in self._kept]


_WATCH = pytest.StashKey[Watch]()
_STATE = pytest.StashKey[tuple[list[logging.Handler], int, bool]]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Begin to listen."""
    logger = logging.getLogger("marsx")
    item.stash[_STATE] = (list(logger.handlers), logger.level, logger.propagate)
    announced = [str(pattern) for marker in item.iter_markers("expect_messages") for pattern in marker.args]
    item.stash[_WATCH] = Watch(announced)
    logger.addHandler(item.stash[_WATCH])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A failure of the test itself comes first."""
    result = yield
    watch = item.stash[_WATCH]
    complaints = watch.complaints() + watch.unkept()
    if complaints:
        pytest.fail("messages of marsx\n  " + "\n  ".join(complaints), pytrace=False)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """What was told while fixtures ended counts too, unless the test has failed before it was looked at."""
    try:
        return (yield)
    finally:
        watch = item.stash.get(_WATCH, None)
        if watch is not None:
            logger = logging.getLogger("marsx")
            handlers, level, propagate = item.stash[_STATE]
            logger.handlers[:] = handlers
            logger.setLevel(level)
            logger.propagate = propagate
            complaints = watch.complaints()
            if complaints:
                pytest.fail("messages of marsx\n  " + "\n  ".join(complaints), pytrace=False)


@pytest.fixture
def expect_messages(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Announce a message from inside a test: expect_messages("regular expression")."""
    return request.node.stash[_WATCH].announced.append
