"""Errors carry text, hint and exit code, and can cross the control socket."""
from __future__ import annotations

import pytest

from marsx.base import errors


def test_text_and_hint() -> None:
    """str() is the text alone; the hint is beside it."""
    error = errors.NotFoundError("no resource x", "marsadm view lists them")
    assert (str(error), error.text, error.hint) == ("no resource x", "no resource x", "marsadm view lists them")


OWN = [cls for cls in errors.subclasses() if cls.__module__ == errors.__name__]


@pytest.mark.parametrize("cls", OWN, ids=lambda cls: cls.__name__)
def test_code_crosses_a_socket(cls: type[errors.MarsError]) -> None:
    """(code, text, hint) of any error gives the same class back: each code means one class."""
    back = errors.from_exit_code(cls.exit_code, "text", "hint")
    assert (type(back), back.text, back.hint) == (cls, "text", "hint")


def test_classes_of_other_rooms_do_not_shadow() -> None:
    """A subclass elsewhere inherits a code; what crosses the socket stays one of the documented classes."""
    class Special(errors.NotFoundError):
        """Only here."""

    assert Special("x").exit_code == 4
    assert type(errors.from_exit_code(4, "x")) is errors.NotFoundError


def test_unknown_code_is_failure() -> None:
    """A code of a newer version must not look like success."""
    assert type(errors.from_exit_code(99, "text")) is errors.MarsError
