"""Errors carry text, hint and exit code, and can cross the control socket."""
from __future__ import annotations

import pytest

from marsx.base import errors


def test_text_and_hint() -> None:
    """str() is the text alone; the hint is beside it."""
    error = errors.NotFoundError("no resource x", "marsadm view lists them")
    assert (str(error), error.text, error.hint) == ("no resource x", "no resource x", "marsadm view lists them")


@pytest.mark.parametrize("cls", list(errors.subclasses()), ids=lambda cls: cls.__name__)
def test_code_crosses_a_socket(cls: type[errors.MarsError]) -> None:
    """(code, text, hint) of any error gives the same class back: each code means one class."""
    back = errors.from_exit_code(cls.exit_code, "text", "hint")
    assert (type(back), back.text, back.hint) == (cls, "text", "hint")


def test_unknown_code_is_failure() -> None:
    """A code of a newer version must not look like success."""
    assert type(errors.from_exit_code(99, "text")) is errors.MarsError
