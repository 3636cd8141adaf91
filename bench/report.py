#!/usr/bin/env python3
"""bench/report.json: one list of `{name, value, unit, against, ratio, goal}` out of all measurements.

`value` is ours, `against` says what it was compared with and what that reached in the same run, `ratio` is what `goal`
speaks of ("" = no goal is set). Rows of a new run replace rows of the same name, others stay.

A pytest-benchmark test gets a row by `benchmark.extra_info.update(report="log append, 1 MiB groups", bytes=N)`; with
`against="other test's name"` (in the same file of results) the ratio is ours to the other's rate, with `goal=">= 0.95"`
it is judged. Rates are of the best round: bytes / min.

Usage: report.py [--to=FILE] [BENCHMARK.json...]     takes the rows over and prints the table
"""

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPORT = HERE / "report.json"


@dataclass(frozen=True)
class Row:
    """One line of the report."""

    name: str
    value: float
    unit: str
    against: str = ""
    ratio: float | None = None
    goal: str = ""

    def __post_init__(self) -> None:
        """A goal is `>= number` or `<= number`; a value is a number."""
        if self.goal:
            sign, _, bound = self.goal.partition(" ")
            if sign not in (">=", "<="):
                raise ValueError(f"{self.name}: goal {self.goal!r} must begin with '>= ' or '<= '")
            float(bound)
        if not self.name or self.value != self.value:
            raise ValueError(f"a row needs a name and a number: {self}")

    def verdict(self) -> str:
        """"reached", "missed", or "" without goal. Without ratio the goal is one for the value."""
        if not self.goal:
            return ""
        sign, _, bound = self.goal.partition(" ")
        found = self.value if self.ratio is None else self.ratio
        return "reached" if (found >= float(bound) if sign == ">=" else found <= float(bound)) else "missed"


def load(file: Path) -> list[Row]:
    """The rows of a report; none if there is no report yet."""
    if not file.exists():
        return []
    return [Row(**row) for row in json.loads(file.read_text())]


def merge(old: list[Row], new: list[Row]) -> list[Row]:
    """New rows take the place of old ones of the same name."""
    names = {row.name for row in new}
    return [row for row in old if row.name not in names] + new


def save(file: Path, rows: list[Row]) -> None:
    """Replace the report as a whole."""
    part = file.with_name(file.name + ".part")
    part.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    os.replace(part, file)


def table(rows: list[Row]) -> str:
    """The rows for people."""
    lines = [("name", "value", "unit", "ratio", "goal", "", "against")]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.4g}"
        lines.append((row.name, f"{row.value:.4g}", row.unit, ratio, row.goal, row.verdict(), row.against))
    widths = [max(len(line[column]) for line in lines) for column in range(6)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, [*widths, 0], strict=True)).rstrip()
                     for line in lines)


def from_benchmarks(results: dict) -> list[Row]:
    """Rows of the pytest-benchmark results that ask for one."""
    rates = {}
    for one in results["benchmarks"]:
        if "bytes" in one["extra_info"]:
            rates[one["name"]] = one["extra_info"]["bytes"] / one["stats"]["min"] / 1e6
    rows = []
    for one in results["benchmarks"]:
        info = one["extra_info"]
        if "report" not in info:
            continue
        if one["name"] not in rates:
            raise ValueError(f"{one['name']} wants a row in the report, but does not say how many bytes a round moves")
        other = info.get("against", "")
        if other and other not in rates:
            raise ValueError(f"{one['name']} is compared with {other}, which is not in the same results")
        rows.append(Row(info["report"], round(rates[one["name"]], 1), "MB/s",
                        f"{other}: {rates[other]:.0f} MB/s" if other else "",
                        round(rates[one["name"]] / rates[other], 4) if other else None, info.get("goal", "")))
    return rows


def main(argv: list[str]) -> int:
    """Take results over, print all."""
    target, inputs = REPORT, []
    for word in argv[1:]:
        if word.startswith("--to="):
            target = Path(word[5:])
        elif word.startswith("-"):
            print(f"report.py: unknown option {word}; see the top of bench/report.py", file=sys.stderr)
            return 2
        else:
            inputs.append(Path(word))
    try:
        rows = load(target)
        for file in inputs:
            rows = merge(rows, from_benchmarks(json.loads(file.read_text())))
        if inputs:
            save(target, rows)
    except (OSError, ValueError, KeyError, TypeError) as problem:
        print(f"report.py: {problem}", file=sys.stderr)
        return 1
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
