"""Which resources of a host may sync when there are fewer slots than syncs (facts 6.4): a pure table, and its memory.

Order: the resources of sync-pref-list in the list's order; then those that run and have not yet had their time
(sync_flip_interval_sec); then those that wait, the longest wait first; then those that have had their time. So nobody
starves, and nobody is stopped for nothing. A slot is given only when it is free: what is to stop counts until it has.
"""
from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

FLIP_LEAST_S = 8


def choose(wanting: Collection[str], running: dict[str, float], waiting: dict[str, float], limit: int,
           prefer: Sequence[str], flip_s: float) -> set[str]:
    """Who may sync. `running`, `waiting`: for how many seconds; limit 0: all."""
    if not limit:
        return set(wanting)

    def place(name: str) -> tuple[int, float, str]:
        if name in prefer:
            return (0, prefer.index(name), name)
        if name in running:
            served = flip_s >= FLIP_LEAST_S and running[name] >= flip_s
            return (3 if served else 1, running[name], name)
        return (2, -waiting.get(name, 0.0), name)
    return set(sorted(wanting, key=place)[:limit])


class SyncSlots:
    """Remembers since when each resource runs or waits."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._running: dict[str, float] = {}
        self._waiting: dict[str, float] = {}

    def may_sync(self, resource: str, wanting: Collection[str], running: Collection[str], limit: int,
                 prefer: Sequence[str], flip_s: float) -> bool:
        """May `resource` sync now?"""
        now = self._clock()
        self._running = {name: self._running.get(name, now) for name in running}
        self._waiting = {name: self._waiting.get(name, now) for name in wanting if name not in running}
        chosen = choose({*wanting, resource}, {name: now - at for name, at in self._running.items()},
                        {name: now - at for name, at in self._waiting.items()}, limit, prefer, flip_s)
        others = len(self._running.keys() - {resource})
        return resource in chosen and (not limit or resource in running or others < limit)
