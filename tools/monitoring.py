"""Writes the files of marsx/monitor/share that are the same thing many times: alert rules and their tests, the Grafana
dashboard, the Zabbix template. `--check` only says whether they are fresh (a test does)."""

import json
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
SHARE = TOP / "marsx/monitor/share"
if str(TOP) not in sys.path:
    sys.path.insert(0, str(TOP))

from tools import alerts, dashboard, zabbix_template  # noqa: E402


def files() -> dict[str, str]:
    """Name -> contents."""
    return {
        "prometheus-rules.yml": yaml(alerts.rules(), alerts.HEAD),
        "prometheus-rules-test.yml": yaml(alerts.tests(), alerts.TESTS_HEAD),
        "grafana-dashboard.json": json.dumps(dashboard.dashboard(), indent=1) + "\n",
        "zabbix-template.yaml": yaml(zabbix_template.export()),
    }


def yaml(value: object, head: str = "") -> str:
    """Block style; every text is in double quotes as JSON writes it, which YAML reads as it stands."""
    return head + "\n".join(_lines(value, 0)) + "\n"


def _lines(value: object, depth: int) -> list[str]:
    pad, found = "  " * depth, []
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, dict | list) and inner:
                found += [f"{pad}{key}:", *_lines(inner, depth + 1)]
            else:
                found.append(f"{pad}{key}: {json.dumps(inner, ensure_ascii=False)}")
    elif isinstance(value, list):
        for inner in value:
            first, *rest = _lines(inner, depth + 1) if isinstance(inner, dict) else [f"{pad}  {json.dumps(inner)}"]
            found += [f"{pad}- {first.lstrip()}", *rest]
    return found


def main() -> int:
    """Write, or compare."""
    stale = [name for name, text in files().items()
             if not (SHARE / name).is_file() or (SHARE / name).read_text(encoding="utf-8") != text]
    if "--check" in sys.argv:
        if stale:
            print(f"not fresh: {', '.join(stale)} (make man)", file=sys.stderr)
        return int(bool(stale))
    for name in stale:
        (SHARE / name).write_text(files()[name], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
