"""--dry-run: what a command would change, one line a change, and nothing changed.

The command itself runs, in a tree whose writes stay in memory: `DryStore` stands where the real store stands, so what
is told is what the real run writes. marsd is asked for its plan (control command `plan`) instead of the deed; it makes
both from the same lists. Waits are skipped: what would be waited for is taken as having come.

Invariant: no file below /mars, /etc/mars or /run/mars is written, removed or renamed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from marsx.admin.control_client import Answer, Control, Progress
from marsx.base.config import Paths
from marsx.base.lamport import Lamport
from marsx.tree.store import Entry, Store

Tell = Callable[[str], None]


def told(root: str, rel: str, value: str) -> str:
    """The line for one link, with the words of the original."""
    return f"would create symlink '{root}/{rel}' -> '{value}'"


class DryStore(Store):
    """The tree as it would become."""

    def __init__(self, paths: Paths, host: str, lamport: Lamport, tell: Tell) -> None:
        super().__init__(paths, host, lamport)
        self._tell = tell
        self._new: dict[str, Entry] = {}

    def load(self) -> list[str]:
        """Read the tree once; later only what would be different is known better than by the disk."""
        return [] if self._new else super().load()

    def make_durable(self, rels: Iterable[str]) -> None:
        """Nothing was written."""

    def _write(self, entry: Entry) -> None:
        if self._new.get(entry.rel) != entry:
            self._tell(told(self.root, entry.rel, entry.value))
        self._new[entry.rel] = self._cache[entry.rel] = entry
        self.lamport.see(entry.stamp)

    def _forget(self, rels: Iterable[str]) -> None:
        for rel in rels:
            self._cache.pop(rel, None)


class DryControl:
    """marsd, asked only for what it would do."""

    def __init__(self, control: Control, root: str, tell: Tell) -> None:
        self.path = getattr(control, "path", "")
        self._control = control
        self._root = root
        self._tell = tell

    def ping(self) -> None:
        """As ever."""
        self._control.ping()

    def do(self, what: str, resource: str, timeout: float = 600.0, **args: Any) -> Answer:
        """The plan of `do`: its links and its other effects."""
        plan = self._control.request({"cmd": "plan", "what": what, "resource": resource, "args": args}, timeout)
        for item in plan.get("changes") or ():
            self._tell(told(self._root, str(item[0]), str(item[1])))
        for text in plan.get("effects") or ():
            self._tell(f"would {text}")
        return plan

    def request(self, message: dict[str, Any], timeout: float = 30.0, progress: Progress | None = None) -> Answer:
        """Any other request is not made."""
        self._tell(f"would ask marsd: {message.get('cmd')}")
        return {"ok": True}
