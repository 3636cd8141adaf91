"""What a mutant is: see tests/mutants/__init__.py."""
from __future__ import annotations

from dataclasses import dataclass

Change = tuple[str, str, str]
PRIMARY_STATES, SECONDARY_STATES = "states:primary", "states:secondary"


@dataclass(frozen=True)
class Mutant:
    """A rule taken out: in `file`, the text `old`, which stands there once, becomes `new`; the same for `more` files.

    `test` must find it: a pytest node id (without parameters if all of them are to run; at least one has to fail), or
    the crash states of a primary or secondary. `rule` 0: a promise of the design that has no number."""

    name: str
    rule: int
    file: str
    old: str
    new: str
    test: str
    more: tuple[Change, ...] = ()

    @property
    def changes(self) -> tuple[Change, ...]:
        return (self.file, self.old, self.new), *self.more

    @property
    def by_states(self) -> bool:
        """Found by the enumeration of crash states, not by pytest."""
        return self.test.startswith("states:")
