"""The Grafana dashboard (schema 36, Grafana 9 and newer) as rows of panels."""

from typing import Any

SOURCE = {"type": "prometheus", "uid": "${source}"}
CHOSEN = 'resource=~"$resource"'
RED, AMBER, GREEN, GREY = "red", "orange", "green", "text"


def dashboard() -> dict[str, Any]:
    """All of it."""
    panels, y = [], 0
    for height, row in ROWS:
        x = 0
        for panel in row:
            width = panel.pop("width", 24 // len(row))
            panels.append({"id": len(panels) + 1, "datasource": SOURCE, **panel,
                           "gridPos": {"x": x, "y": y, "w": width, "h": height}})
            x += width
        y += height
    return {
        "title": "MARS", "uid": "marsx-overview", "tags": ["mars", "replication"], "schemaVersion": 36, "version": 1,
        "editable": True, "refresh": "10s", "time": {"from": "now-3h", "to": "now"}, "timezone": "browser",
        "templating": {"list": [
            {"name": "source", "label": "Data source", "type": "datasource", "query": "prometheus"},
            {"name": "resource", "label": "Resource", "type": "query", "datasource": SOURCE, "multi": True,
             "includeAll": True, "current": {"text": ["All"], "value": ["$__all"]}, "refresh": 2,
             "query": {"query": "label_values(mars_resource_size_bytes, resource)", "refId": "resource"}},
        ]},
        "panels": panels,
    }


def _targets(queries: dict[str, str], **more: Any) -> list[dict[str, Any]]:
    return [{"refId": chr(65 + at), "expr": expr, "legendFormat": legend, **more}
            for at, (legend, expr) in enumerate(queries.items())]


def stat(title: str, expr: str, colours: list[tuple[float | None, str]], words: dict[str, str] | None = None,
         legend: str = "") -> dict[str, Any]:
    """Numbers or words with a coloured background."""
    mapped = [{"type": "value", "options": {value: {"text": word, "index": at}
                                            for at, (value, word) in enumerate((words or {}).items())}}]
    return {
        "type": "stat", "title": title, "targets": _targets({legend: expr}, instant=True),
        "options": {"colorMode": "background", "textMode": "auto", "reduceOptions": {"calcs": ["lastNotNull"]}},
        "fieldConfig": {"defaults": {
            "mappings": mapped if words else [], "noValue": "none",
            "thresholds": {"mode": "absolute", "steps": [{"value": at, "color": colour} for at, colour in colours]},
        }, "overrides": []},
    }


def lines(title: str, unit: str, queries: dict[str, str], text: str = "") -> dict[str, Any]:
    """Curves over time."""
    return {
        "type": "timeseries", "title": title, "description": text, "targets": _targets(queries),
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0, "custom": {"fillOpacity": 8, "lineWidth": 2}},
                        "overrides": []},
    }


def table(title: str, expr: str, text: str) -> dict[str, Any]:
    """Labels as columns."""
    away = dict.fromkeys(("Time", "Value"), True)
    return {
        "type": "table", "title": title, "description": text,
        "targets": _targets({"": expr}, instant=True, format="table"),
        "transformations": [{"id": "organize", "options": {"excludeByName": away}}],
        "fieldConfig": {"defaults": {"noValue": "nothing"}, "overrides": []}, "options": {},
    }


def _by(metric: str, labels: str = "", by: str = "resource, host") -> str:
    inner = ",".join(part for part in (CHOSEN, labels) if part)
    return f"max by ({by}) ({metric}{{{inner}}})"


LEVELS = {"0": "OK", "1": "WARNING", "2": "CRITICAL", "3": "UNKNOWN"}
LEVEL_COLOURS: list[tuple[float | None, str]] = [(None, GREEN), (1, AMBER), (2, RED), (3, GREY)]
NODE = "{{resource}} on {{host}}"
RATE = "[$__rate_interval]"

ROWS: list[tuple[int, list[dict[str, Any]]]] = [
    (4, [
        stat("Resources", _by("mars_resource_level", by="resource"), LEVEL_COLOURS, LEVELS, "{{resource}}"),
        stat("Split brain", f"sum({_by('mars_resource_split_brain', by='resource')})", [(None, GREEN), (1, RED)]),
        stat("Silent hosts", "count(max by (host) (mars_peer_alive) == 0) or vector(0)", [(None, GREEN), (1, RED)]),
        stat("Stalls", f"count({_by('mars_resource_stalled', by='resource, host, activity')}) or vector(0)",
             [(None, GREEN), (1, AMBER)]),
        stat("Emergency level", "max(mars_emergency_level)", [(None, GREEN), (1, AMBER), (2, RED)]),
        stat("Primary", _by("mars_resource_role", 'state="primary"') + " == 1", [(None, GREEN)], {"1": "primary"},
             NODE),
    ]),
    (9, [
        lines("Lag", "s", {NODE: _by("mars_peer_replay_lag_seconds")},
              "Age of the oldest log that is not on the disk of the replica"),
        lines("Log that is missing", "bytes", {
            NODE + ", fetch": _by("mars_resource_rest_bytes", 'part="fetch"'),
            NODE + ", replay": _by("mars_resource_rest_bytes", 'part="replay"')}),
    ]),
    (9, [
        lines("Rates", "Bps", {
            NODE + ", {{part}}": _by("mars_resource_rate_bytes_per_second", by="resource, host, part")}),
        lines("Sync: what is left", "bytes", {NODE: _by("mars_resource_rest_bytes", 'part="sync"')}),
    ]),
    (7, [
        table("What stands still", _by("mars_resource_stalled", by="resource, host, activity, cause"),
              "mars-status on that host says what to do"),
        table("Switched off", _by("mars_resource_switch", by="resource, host, switch") + " == 0", ""),
    ]),
    (9, [
        lines("Writes to the device", "iops", {
            "{{resource}}": f"sum by (resource) (rate(mars_device_writes_total{{{CHOSEN}}}{RATE}))"}),
        lines("Bytes", "Bps", {
            "{{resource}} written": f"sum by (resource) (rate(mars_device_written_bytes_total{{{CHOSEN}}}{RATE}))",
            "{{resource}} read": f"sum by (resource) (rate(mars_device_read_bytes_total{{{CHOSEN}}}{RATE}))"}),
    ]),
    (9, [
        lines("Latency of writes and flushes", "s", {
            f"{{{{resource}}}} {what} {percent} %": f"histogram_quantile({percent / 100}, sum by (resource, le) "
            f"(rate(mars_device_{what}_latency_seconds_bucket{{{CHOSEN}}}{RATE})))"
            for what in ("write", "flush") for percent in (50, 99)}),
        lines("Records in a group", "short", {
            "{{resource}}": f"sum by (resource) (rate(mars_log_group_records_sum{{{CHOSEN}}}{RATE})) / "
                            f"sum by (resource) (rate(mars_log_group_records_count{{{CHOSEN}}}{RATE}))"},
              "How many writes share one write of the log"),
    ]),
    (9, [
        lines("Free on /mars", "bytes", {"{{host}}": "max by (host) (mars_dir_free_bytes)"}),
        lines("Logs on each host", "bytes", {
            "{{resource}} on {{instance}}": f"mars_log_bytes{{{CHOSEN}}}",
            "{{resource}} on {{instance}}, deletable": f"mars_log_deletable_bytes{{{CHOSEN}}}"}),
    ]),
]
