#!/usr/bin/env python3
"""docs/depth.svg: throughput and latency of 4k random writes against queue depth, out of the rows "curve, ..." of the
report. The latency is depth / throughput (Little's law: there are always `depth` requests on their way).

Usage: plot.py [REPORT.json [FILE.svg]]
"""

import math
import re
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP))

from bench import report  # noqa: E402

ROW = re.compile(r"curve, depth (\d+), (\w+)")
# Colours that people who see red and green alike can tell apart.
SIDES = {"raw": ("raw disk", "#0072b2"), "empty": ("empty FUSE + loop path", "#999999"),
         "mars": ("/dev/mars", "#d55e00")}
WIDTH, HEIGHT = 430, 300
LEFT, TOP_MARGIN, BELOW = 62, 44, 46
Curve = dict[int, float]


def curves(rows: list[report.Row]) -> dict[str, Curve]:
    """Side -> depth -> writes a second."""
    found: dict[str, Curve] = {}
    for row in rows:
        match = ROW.fullmatch(row.name)
        if match and match[2] in SIDES:
            found.setdefault(match[2], {})[int(match[1])] = row.value
    return found


def short(number: float) -> str:
    """12000 -> 12k."""
    return f"{number / 1000:g}k" if number >= 1000 else f"{number:g}"


class Panel:
    """One diagram; both axes are logarithmic, x by twos."""

    def __init__(self, left: float, title: str, unit: str, data: dict[str, Curve]) -> None:
        self.left, self.title, self.unit, self.data = left, title, unit, data
        values = [value for curve in data.values() for value in curve.values()]
        self.depths = sorted({depth for curve in data.values() for depth in curve})
        self.low, self.high = min(values) / 1.25, max(values) * 1.25

    def x(self, depth: float) -> float:
        """Of a depth."""
        span = math.log2(self.depths[-1] / self.depths[0]) or 1.0
        return self.left + LEFT + math.log2(depth / self.depths[0]) / span * (WIDTH - LEFT - 24)

    def y(self, value: float) -> float:
        """Of a value."""
        part = math.log(value / self.low) / math.log(self.high / self.low)
        return HEIGHT - BELOW - part * (HEIGHT - BELOW - TOP_MARGIN)

    def ticks(self) -> list[float]:
        """1, 2, 5, 10 ... within the range."""
        steps = [digit * 10.0 ** power for power in range(7) for digit in (1, 2, 5)]
        return [step for step in steps if self.low <= step <= self.high]

    def grid(self) -> list[str]:
        """Lines, numbers, titles."""
        right, bottom = self.x(self.depths[-1]), HEIGHT - BELOW
        parts = [f'<text class="title" x="{self.left + LEFT}" y="26">{self.title}</text>',
                 f'<text class="unit" x="{right}" y="26" text-anchor="end">{self.unit}</text>',
                 f'<text class="unit" x="{(self.left + LEFT + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
                 "requests on their way (queue depth)</text>"]
        for tick in self.ticks():
            parts.append(f'<path class="grid" d="M{self.left + LEFT} {self.y(tick):.1f}H{right}"/>'
                         f'<text x="{self.left + LEFT - 8}" y="{self.y(tick) + 4:.1f}" text-anchor="end">'
                         f"{short(tick)}</text>")
        for depth in self.depths:
            parts.append(f'<path class="grid" d="M{self.x(depth):.1f} {TOP_MARGIN}V{bottom}"/>'
                         f'<text x="{self.x(depth):.1f}" y="{bottom + 17}" text-anchor="middle">{depth}</text>')
        return parts

    def lines(self) -> list[str]:
        """The curves."""
        parts = []
        for side, curve in self.data.items():
            points = [(self.x(depth), self.y(curve[depth])) for depth in sorted(curve)]
            colour = SIDES[side][1]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(f'<polyline points="{path}" stroke="{colour}"/>')
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        return parts


STYLE = """<style>text{font:12px sans-serif;fill:#444}.title{font-weight:bold;font-size:14px;fill:#222}
.unit{fill:#777}.grid{stroke:#ddd;stroke-width:1;fill:none}polyline{fill:none;stroke-width:2}</style>"""


def legend(sides: list[str]) -> list[str]:
    """Names beside their colours, below both panels."""
    parts, at = [], float(LEFT)
    for side in sides:
        name, colour = SIDES[side]
        parts.append(f'<rect x="{at}" y="{HEIGHT + 8}" width="22" height="4" fill="{colour}"/>'
                     f'<text x="{at + 28}" y="{HEIGHT + 14}">{name}</text>')
        at += 60 + 7 * len(name)
    return parts


def draw(found: dict[str, Curve]) -> str:
    """The whole picture."""
    latency = {side: {depth: depth / iops * 1e6 for depth, iops in curve.items()} for side, curve in found.items()}
    panels = [Panel(0, "4k random writes", "writes a second", found),
              Panel(WIDTH, "mean latency", "microseconds", latency)]
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {HEIGHT + 28}" width="{2 * WIDTH}" '
             f'height="{HEIGHT + 28}">', STYLE, '<rect width="100%" height="100%" fill="white"/>']
    for panel in panels:
        parts += panel.grid() + panel.lines()
    return "\n".join([*parts, *legend(list(found)), "</svg>"]) + "\n"


def main(argv: list[str]) -> int:
    """Read the report, write the picture."""
    source = Path(argv[1]) if len(argv) > 1 else report.REPORT
    target = Path(argv[2]) if len(argv) > 2 else TOP / "docs/depth.svg"
    found = curves(report.load(source))
    if not found:
        print(f"plot.py: {source} has no rows 'curve, ...': bench/system.py --only=depth_curve", file=sys.stderr)
        return 1
    target.write_text(draw({side: found[side] for side in SIDES if side in found}))
    print(f"{target} is drawn")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
