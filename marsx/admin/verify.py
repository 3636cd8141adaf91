"""verify: compare a replica with its primary while both are in use, and repair what differs.

stdout has nothing but the ranges that differ, `OFFSET LENGTH` in bytes, one a line; all else goes to stderr.
"""

from __future__ import annotations

import re
import sys
from typing import Any

from marsx.admin.context import Context, require_cluster, require_resource
from marsx.admin.table import Command
from marsx.base.errors import MarsError, UnfinishedError, UsageError

# marsd ends a verify that nobody waits for any more; the time it takes is nobody's business.
NO_DEADLINE_S = 1e8
UNITS = (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


class Shown:
    """What marsd tells while it runs. The rate is counted from the first line on."""

    def __init__(self, ctx: Context, resource: str) -> None:
        self.ctx = ctx
        self.resource = resource
        self.terminal = sys.stderr.isatty()
        self._first: tuple[float, int] | None = None
        self._line = False

    def __call__(self, told: dict[str, Any]) -> None:
        """One line of progress."""
        if isinstance(told.get("ranges"), list):
            self.clear()
            for offset, length in told["ranges"]:
                self.ctx.say(f"{int(offset)} {int(length)}")
        elif isinstance(told.get("round"), dict):
            self.clear()
            self.ctx.note(f"{self.resource}: {summary(told['round'])}")
            self._first = None
        elif self.terminal and "done" in told:
            print(f"\r{self.line(int(told['done']), int(told['size']), int(told['differs']))}\x1b[K", end="",
                  file=sys.stderr, flush=True)
            self._line = True

    def line(self, done: int, size: int, differs: int) -> str:
        """Progress, rate, remaining time."""
        now = self.ctx.monotonic()
        self._first = self._first or (now, done)
        began, first = self._first
        rate = (done - first) / (now - began) if now > began else 0.0
        rest = f", {clock((size - done) / rate)} left" if rate > 0 and done < size else ""
        percent = f"{min(99.99, 100 * done / size):.2f}" if done < size else "100.00"
        bad = f", {amount(differs)} differ" if differs else ""
        return f"{self.resource}: {percent} % of {amount(size)}, {rate / 1e6:.1f} MB/s{rest}{bad}"

    def clear(self) -> None:
        """The line of progress goes."""
        if self._line:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._line = False


def amount(count: int) -> str:
    """Bytes for people."""
    for unit, factor in UNITS:
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"


def clock(seconds: float) -> str:
    """H:MM:SS."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def summary(result: dict[str, Any]) -> str:
    """One run in words."""
    size, differs, repaired = (int(result.get(key) or 0) for key in ("size", "differs", "repaired"))
    if not differs:
        return f"{amount(size)} compared, all equal"
    healed = f", {repaired} of them are repaired" if repaired else ""
    return f"{amount(size)} compared, {differs} bytes differ{healed}"


def verify(ctx: Context, resource: str, args: tuple[str, ...]) -> None:
    """Compare one replica; MarsError (exit status 1) when there is a difference."""
    view, options = ctx.view(), ctx.options
    require_cluster(view, ctx.host)
    require_resource(view, resource)
    request = {"cmd": "verify", "resource": resource, "host": options.host, "repair": options.repair,
               "continuous": options.continuous, "rate_kb": rate_kb(options.rate)}
    shown = Shown(ctx, resource)
    try:
        result = ctx.control.request(request, NO_DEADLINE_S, shown)
    except MarsError as error:
        if error.exit_code != MarsError.exit_code:
            raise
        raise UnfinishedError(error.text, error.hint) from error  # 1 says that there is a difference
    finally:
        shown.clear()
    if int(result.get("differs") or 0):
        missing = int(result["differs"]) - int(result.get("repaired") or 0)
        where = f" --host={options.host}" if options.host else ""
        raise MarsError(
            f"{resource}: {summary(result)}", f"marsadm verify {resource}{where} --repair" if missing else ""
        )
    ctx.note(f"{resource}: {summary(result)}")


def rate_kb(text: str) -> int:
    """The option --rate."""
    if text and not re.fullmatch(r"[0-9]{1,12}", text):
        raise UsageError(f"--rate={text[:40]}: a number of KiB a second is needed", "example: --rate=20000")
    return int(text or 0)


COMMANDS = (
    Command(
        "verify", "RES [--host=HOST] [--repair] [--continuous] [--rate=KIB]", verify,
        "compare a replica with the primary; prints each range that differs, exit status 1 if there is one", "logs",
        needs="""The replica of this host is compared, or with --host that of HOST (any member may ask).
        It is a secondary, its sync is over, fetch and replay run; the resource has a primary.
        The application may go on writing; what it writes meanwhile is never taken for a difference.
        Exit status: 0 all equal, 1 there is a difference, 11 not finished; others as documented.
        stdout: OFFSET LENGTH in bytes, one range a line. stderr: progress, rate, remaining time, on a terminal.
        --repair fetches what differs and compares it once more (exit status 1 too: there was a difference).
        --rate=KIB compares at most KIB KiB a second. --continuous goes on for ever, with 10240 KiB/s if no rate is
        given; Ctrl-C ends it. The result stands in mars-status.""",
        example="marsadm verify data --host=b --repair", scope="one", member=False, for_host=True, dry=False,
    ),
)  # fmt: skip
