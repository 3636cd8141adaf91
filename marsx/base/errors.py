"""Every error that reaches a person, with its exit status: the only place that defines exit codes.

An error says what is wrong (text) and what to do next (hint). `docs/errors.md` is generated from these classes; a test
fails when two classes share a code or the page is stale. Code 0 is success; unknown codes count as failure.
Errors of the operating system (OSError) become one of these at the border where the operation's meaning is known.
"""
from __future__ import annotations

from collections.abc import Iterator


class MarsError(Exception):
    """Failed for another reason."""

    exit_code = 1

    def __init__(self, text: str, hint: str = "") -> None:
        super().__init__(text, hint)
        self.text = text
        self.hint = hint

    def __str__(self) -> str:
        return self.text


class UsageError(MarsError):
    """The command line was not understood."""

    exit_code = 2


class PreconditionError(MarsError):
    """The state of cluster, resource or device does not allow it; nothing was changed."""

    exit_code = 3


class NotFoundError(MarsError):
    """Unknown resource, host or device."""

    exit_code = 4


class TimeoutExpired(MarsError):
    """Timed out while waiting."""

    exit_code = 5


class DaemonDownError(MarsError):
    """marsd does not run here."""

    exit_code = 6


class PartlyFailedError(MarsError):
    """Several resources were asked for and some failed."""

    exit_code = 7


class DamagedError(MarsError):
    """A log, header or tree entry is corrupt or foreign."""

    exit_code = 8


class AuthError(MarsError):
    """A token or certificate is wrong, expired or used."""

    exit_code = 9


class PermissionDeniedError(MarsError):
    """Not root, or a directory is not writable or not trusted."""

    exit_code = 10


class UnfinishedError(MarsError):
    """A comparison ended before all was compared: nothing is proved."""

    exit_code = 11


def subclasses(root: type[MarsError] = MarsError) -> Iterator[type[MarsError]]:
    """`root` and every class below it, in order of definition."""
    yield root
    for child in root.__subclasses__():
        yield from subclasses(child)


def from_exit_code(code: int, text: str, hint: str = "") -> MarsError:
    """The error that another process reported as (exit code, text, hint); an unknown code gives a plain MarsError."""
    for cls in subclasses():
        if cls.__module__ == __name__ and cls.exit_code == code:
            return cls(text, hint)
    return MarsError(text, hint)
