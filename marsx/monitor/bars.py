"""--status: how far all replicas of a resource are, as bars on one scale.

Two scales: bytes of the device (disk and sync), and bytes of log (fetched and replayed), the latter with a mark where
each log begins. `>` is done, `!` is missing, the letter at the end says what: D disk, S synced, F fetched, R replayed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from marsx.monitor.notes import size

if TYPE_CHECKING:
    from marsx.monitor.render import Style

NAME_MAX = 20
WIDTHS = (20, 99)
BOX = {False: ("█", "░", "│", "─"), True: (">", "!", "|", "-")}

Dict = dict[str, Any]


def status(name: str, resource: Dict, style: Style) -> Iterator[str]:
    """See the module."""
    nodes = resource["nodes"]
    widest = min(NAME_MAX, max((len(host) for host in nodes), default=0))
    width = max(WIDTHS[0], min(WIDTHS[1], style.width - widest - 6 - 2 - 28))
    line = BOX[style.ascii][3]
    biggest = max((max(node["disk"]["bytes"], node["sync"]["total"]) for node in nodes.values()), default=0)
    newest = max((node["replay"]["total"] for node in nodes.values()), default=0)
    yield f"   -> Cluster Status - Resource {name}"
    yield f"      {'':{widest}}  {_title(f' Resize/Sync, {size(biggest)} ', width, line)}"
    for host, node in nodes.items():
        disk, sync = node["disk"]["bytes"], node["sync"]
        yield _bar(_short(host, widest), disk, biggest, "D", size(disk), width, style)
        yield _bar(" " * widest, sync["done"], biggest, "S", f"{sync['percent']:.2f}%{_left(sync)}", width, style,
                   sync["total"])
    yield f"      {'':{widest}}  {_title(f' Fetch/Replay, {size(newest)} of log ', width, line)}"
    for host, node in nodes.items():
        fetch, replay = node["fetch"], node["replay"]
        yield _bar(_short(host, widest), fetch["done"], newest, "F", f"{fetch['percent']:.2f}%{_left(fetch)}", width,
                   style, newest)
        yield _bar(" " * widest, replay["done"], newest, "R", f"{replay['percent']:.2f}%{_left(replay)}", width, style,
                   newest)


def _short(host: str, width: int) -> str:
    return host.ljust(width) if len(host) <= width else host[: width - 1] + "~"


def _title(text: str, width: int, line: str) -> str:
    return line * 2 + text[: width - 2] + line * max(0, width - 2 - len(text))


def _left(span: Dict) -> str:
    return f", rest {size(span['rest'])}" if span["rest"] else ""


def _bar(name: str, done: int, top: int, letter: str, text: str, width: int, style: Style, wanted: int = 0) -> str:
    """`wanted`: how far it is to come; what is missing up to there is drawn too. A bar is full only when it is done."""
    full, gap, edge, _ = BOX[style.ascii]
    filled = width if done >= top else min(width - 1, width * done // top)
    end = width if wanted >= top else width * wanted // top if top else 0
    missing = max(0, end - filled) if done < wanted else 0
    return f"      {name} {edge}{full * filled}{gap * missing}{' ' * (width - filled - missing)}{edge}{letter} {text}"
