"""From when on something is a warning, or critical: what the options --lag, --rest, --space and --peer set."""

from __future__ import annotations

import re
from dataclasses import dataclass

from marsx.base.errors import UsageError

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)([bkmgtp]?)(?:i?b)?", re.ASCII | re.IGNORECASE)
_SECONDS = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)([smhd]?)", re.ASCII)
_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,6})?)%?", re.ASCII)
_SPANS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Limit:
    """Warning and critical; None: never."""

    warning: float | None = None
    critical: float | None = None

    def level(self, value: float | None) -> int:
        """0, 1 or 2 of something that is worse the more it is."""
        if value is None:
            return 0
        if self.critical is not None and value >= self.critical:
            return 2
        return int(self.warning is not None and value >= self.warning)

    def level_below(self, value: float | None) -> int:
        """0, 1 or 2 of something that is worse the less it is."""
        if value is None:
            return 0
        if self.critical is not None and value < self.critical:
            return 2
        return int(self.warning is not None and value < self.warning)


@dataclass(frozen=True)
class Limits:
    """All of them."""

    lag: Limit = Limit(60, 600)
    """Seconds that a replica is behind."""
    rest: Limit = Limit(4 << 30, None)
    """Bytes of log or device that a replica does not have yet."""
    space: Limit = Limit(None, None)
    """Percent of /mars that is free, beside the emergency levels, which always count."""
    peer: Limit = Limit(30, 120)
    """Seconds for which a host was not heard of."""


def parse(name: str, text: str) -> Limit:
    """`WARN[,CRIT]`; a part that is empty or `off` never counts. By the name: lag and peer in seconds (or 5m, 2h, 1d),
    rest in bytes (or 10G, 1.5T), space in percent."""
    parts = text.split(",")
    if len(parts) > 2:
        raise UsageError(f"--{name}={text[:80]}: WARN or WARN,CRIT is needed", EXAMPLES[name])
    values = [_value(name, part.strip()) for part in parts]
    limit = Limit(*values)
    if limit.warning is not None and limit.critical is not None:
        is_wrong = limit.critical > limit.warning if name == "space" else limit.critical < limit.warning
        if is_wrong:
            raise UsageError(f"--{name}={text[:80]}: critical is less bad than warning", EXAMPLES[name])
    return limit


EXAMPLES = {
    "lag": "in seconds, as in --lag=60,600 or --lag=5m,1h",
    "rest": "in bytes, as in --rest=1G,100G",
    "space": "in percent that are free, as in --space=20,10",
    "peer": "in seconds, as in --peer=30,120",
}


def _value(name: str, text: str) -> float | None:
    if text in ("", "off"):
        return None
    pattern = {"rest": _SIZE, "space": _PERCENT}.get(name, _SECONDS)
    match = pattern.fullmatch(text)
    if match is None:
        raise UsageError(f"--{name}: not a limit: {text[:80]!r}", EXAMPLES[name])
    if name == "space":
        return float(match[1])
    unit = _UNITS[match[2].lower()] if name == "rest" else _SPANS[match[2]]
    return float(match[1]) * unit
