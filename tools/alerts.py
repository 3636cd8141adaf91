"""Alert rules for Prometheus as a table, and the test of each: series that fire it, and what it says then."""

from typing import Any, NamedTuple

HEAD = """# Alert rules for MARS (marsx). Times and thresholds are starting points.
# Every host tells of all hosts, so rules take the maximum over those that are asked.
"""
TESTS_HEAD = """# promtool test rules prometheus-rules-test.yml (beside prometheus-rules.yml)
"""
STEP = "1m"
D, DB = '{resource="data"}', '{resource="data",host="b"}'


class Alert(NamedTuple):
    """One rule. `fires`: series (name{labels}, values) with which it fires at `at` (minutes), with the labels `labels`;
    `quiet`: with these it does not, all the time."""

    name: str
    severity: str
    wait: str
    expr: str
    summary: str
    what: str
    fires: list[tuple[str, str]]
    labels: dict[str, str]
    quiet: list[tuple[str, str]]
    at: int = 30


def _max(metric: str, by: str = "resource, host") -> str:
    return f"max by ({by}) ({metric})"


ON_B = {"resource": "data", "host": "b"}

ALERTS = (
    Alert("MarsNoAnswer", "critical", "2m", 'up{job=~"mars.*"} == 0',
          "marsd on {{ $labels.instance }} serves no metrics",
          "Is marsd there, and the host? (The job is to be called mars...)",
          [('up{job="mars",instance="b"}', "0x40")], {"job": "mars", "instance": "b"},
          [('up{job="mars",instance="b"}', "1x40"), ('up{job="node",instance="b"}', "0x40")]),
    Alert("MarsOldState", "warning", "5m", "time() - mars_status_timestamp_seconds > 600",
          "What {{ $labels.instance }} tells of MARS is old", "Does the cron job of mars-status --prometheus run?",
          [('mars_status_timestamp_seconds{instance="b"}', "0+60x10 600x40")], {"instance": "b"},
          [('mars_status_timestamp_seconds{instance="b"}', "0+60x60")]),
    Alert("MarsDaemonDown", "critical", "2m", 'mars_daemon_state{state="running"} == 0',
          "marsd does not run on {{ $labels.instance }}",
          "The device of a primary waits, a replica falls behind. marsd start; then mars-status.",
          [('mars_daemon_state{state="running",instance="b"}', "1 0x40")], {"state": "running", "instance": "b"},
          [('mars_daemon_state{state="running",instance="b"}', "1 0 1x40"),
           ('mars_daemon_state{state="down",instance="b"}', "0x40")]),
    Alert("MarsSplitBrain", "critical", "0m", f"{_max('mars_resource_split_brain', 'resource')} == 1",
          "Split brain of {{ $labels.resource }}",
          "Histories have parted: decide whose data count, on the others: marsadm invalidate {{ $labels.resource }}",
          [(f"mars_resource_split_brain{D}", "0 1x40")], {"resource": "data"},
          [(f"mars_resource_split_brain{D}", "0x40")]),
    Alert("MarsMorePrimaries", "critical", "1m", f"{_max('mars_resource_primaries', 'resource')} > 1",
          "{{ $labels.resource }} is primary on {{ $value }} hosts",
          "Umount it on all but one, there: marsadm secondary {{ $labels.resource }}",
          [(f"mars_resource_primaries{D}", "2x40")], {"resource": "data"}, [(f"mars_resource_primaries{D}", "1x40")]),
    Alert("MarsNoPrimary", "warning", "10m", f"{_max('mars_resource_primaries', 'resource')} == 0",
          "{{ $labels.resource }} is primary nowhere", "Nobody can use it: marsadm primary {{ $labels.resource }}",
          [(f"mars_resource_primaries{D}", "0x40")], {"resource": "data"},
          [(f"mars_resource_primaries{D}", "1 0x8 1x40")]),
    Alert("MarsEmergency", "critical", "0m", f"{_max('mars_emergency_level', 'host')} >= 2",
          "/mars on {{ $labels.host }} is full (emergency level {{ $value }})",
          "Make room: marsadm log-delete-all all; mars-status --history shows what holds logs back.",
          [('mars_emergency_level{host="a"}', "3x40")], {"host": "a"}, [('mars_emergency_level{host="a"}', "1x40")]),
    Alert("MarsSpaceLow", "warning", "1m", f"{_max('mars_emergency_level', 'host')} == 1",
          "/mars on {{ $labels.host }} gets full", "See what holds logs back: mars-status --history",
          [('mars_emergency_level{host="a"}', "1x40")], {"host": "a"}, [('mars_emergency_level{host="a"}', "0x40")]),
    Alert("MarsSpaceRunsOut", "warning", "15m",
          "predict_linear(mars_dir_free_bytes[1h], 4 * 3600) < 0 and mars_dir_free_bytes < 0.5 * mars_dir_size_bytes",
          "/mars on {{ $labels.host }} is full within four hours", "See what holds logs back: mars-status --history",
          [('mars_dir_free_bytes{host="a"}', "40000-200x100"), ('mars_dir_size_bytes{host="a"}', "100000x100")],
          {"host": "a"},
          [('mars_dir_free_bytes{host="a"}', "40000x100"), ('mars_dir_size_bytes{host="a"}', "100000x100")], 60),
    Alert("MarsPeerSilent", "critical", "2m", f"{_max('mars_peer_alive', 'host')} == 0",
          "Nobody hears of {{ $labels.host }}", "Check the host, marsd there, and the network to it.",
          [('mars_peer_alive{host="b",instance="a"}', "0x40")], {"host": "b"},
          [('mars_peer_alive{host="b",instance="a"}', "0x40"), ('mars_peer_alive{host="b",instance="b"}', "1x40")]),
    Alert("MarsConnectionBroken", "warning", "5m", 'mars_peer_connection_state{state="connected"} == 0',
          "{{ $labels.instance }} has no connection to {{ $labels.host }}",
          "mars-status on {{ $labels.instance }} says why (err-stall-connect).",
          [('mars_peer_connection_state{host="b",state="connected",instance="a"}', "0x40")],
          {"host": "b", "state": "connected", "instance": "a"},
          [('mars_peer_connection_state{host="b",state="connected",instance="a"}', "1x40"),
           ('mars_peer_connection_state{host="b",state="down",instance="a"}', "0x40")]),
    Alert("MarsLag", "warning", "5m", f"{_max('mars_peer_replay_lag_seconds')} > 60",
          "{{ $labels.resource }} on {{ $labels.host }} is {{ $value | humanizeDuration }} behind",
          "mars-status shows whether fetch or replay is behind, and why.",
          [(f"mars_peer_replay_lag_seconds{DB}", "0+60x40")], ON_B,
          [(f"mars_peer_replay_lag_seconds{DB}", "59x10 300x4 59x40")]),
    Alert("MarsLagHigh", "critical", "5m", f"{_max('mars_peer_replay_lag_seconds')} > 600",
          "{{ $labels.resource }} on {{ $labels.host }} is {{ $value | humanizeDuration }} behind",
          "A takeover would lose or wait for that much.",
          [(f"mars_peer_replay_lag_seconds{DB}", "0+60x40")], ON_B,
          [(f"mars_peer_replay_lag_seconds{DB}", "600x40")]),
    Alert("MarsStalled", "warning", "1m", f"{_max('mars_resource_stalled', 'resource, host, activity, cause')} == 1",
          "{{ $labels.activity }} of {{ $labels.resource }} on {{ $labels.host }} stands still: {{ $labels.cause }}",
          "mars-status says what is wrong and what to do.",
          [('mars_resource_stalled{resource="data",host="b",activity="fetch",cause="peer-silent"}', "1x40")],
          {**ON_B, "activity": "fetch", "cause": "peer-silent"},
          [('mars_resource_stalled{resource="data",host="b",activity="fetch",cause="peer-silent"}', "_ 1 _x40")]),
    Alert("MarsSwitchedOff", "warning", "30m", f"{_max('mars_resource_switch', 'resource, host, switch')} == 0",
          "{{ $labels.switch }} of {{ $labels.resource }} on {{ $labels.host }} is switched off",
          "Forgotten? On again: marsadm attach, connect, resume-sync, resume-replay {{ $labels.resource }}",
          [('mars_resource_switch{resource="data",host="b",switch="allow-replay"}', "0x60")],
          {**ON_B, "switch": "allow-replay"},
          [('mars_resource_switch{resource="data",host="b",switch="allow-replay"}', "0x25 1x40")], 50),
    Alert("MarsNotAttached", "critical", "5m",
          'max by (resource, host) (mars_resource_actual{what="attached"}) == 0 and on (resource, host) '
          'max by (resource, host) (mars_resource_switch{switch="attach"}) == 1',
          "{{ $labels.resource }} on {{ $labels.host }} is to be attached and is not",
          "The data device is missing or in use: mars-status says which.",
          [('mars_resource_actual{resource="data",host="b",what="attached"}', "0x40"),
           ('mars_resource_switch{resource="data",host="b",switch="attach"}', "1x40")], ON_B,
          [('mars_resource_actual{resource="data",host="b",what="attached"}', "0x40"),
           ('mars_resource_switch{resource="data",host="b",switch="attach"}', "0x40")]),
    Alert("MarsInconsistent", "warning", "6h", f"{_max('mars_resource_consistent')} == 0",
          "{{ $labels.resource }} on {{ $labels.host }} cannot take over since hours",
          "Its sync is not finished: mars-status says how far it is.",
          [(f"mars_resource_consistent{DB}", "0x400")], ON_B, [(f"mars_resource_consistent{DB}", "0x300 1x100")], 390),
    Alert("MarsVerifyDiffers", "critical", "0m",
          'max by (resource, host) (mars_resource_verify_state{state="differs"}) == 1',
          "{{ $labels.resource }} on {{ $labels.host }} differs from its primary",
          "marsadm verify {{ $labels.resource }} --host={{ $labels.host }} --repair",
          [('mars_resource_verify_state{resource="data",host="b",state="differs"}', "1x40")], ON_B,
          [('mars_resource_verify_state{resource="data",host="b",state="differs"}', "0x40"),
           ('mars_resource_verify_state{resource="data",host="b",state="equal"}', "1x40")]),
    Alert("MarsErrors", "warning", "10m",
          'max by (resource, host) (mars_resource_messages{kind="error"}) > 0',
          "{{ $labels.host }} reports errors about {{ $labels.resource }}", "mars-status shows them.",
          [('mars_resource_messages{resource="data",host="b",kind="error"}', "2x40")], ON_B,
          [('mars_resource_messages{resource="data",host="b",kind="warning"}', "2x40")]),
    Alert("MarsSlowWrites", "warning", "10m",
          "histogram_quantile(0.99, sum by (resource, le) (rate(mars_device_write_latency_seconds_bucket[5m]))) > 1",
          "One write of a hundred to {{ $labels.resource }} takes {{ $value | humanizeDuration }}",
          "The disk of the log is slow or full: mars-status, iostat.",
          [('mars_device_write_latency_seconds_bucket{resource="data",le="1.048576"}', "0+50x40"),
           ('mars_device_write_latency_seconds_bucket{resource="data",le="4.194304"}', "0+100x40"),
           ('mars_device_write_latency_seconds_bucket{resource="data",le="+Inf"}', "0+100x40")], {"resource": "data"},
          [('mars_device_write_latency_seconds_bucket{resource="data",le="0.016384"}', "0+100x40"),
           ('mars_device_write_latency_seconds_bucket{resource="data",le="+Inf"}', "0+100x40")]),
)


def rules() -> dict[str, Any]:
    """The file of rules."""
    return {"groups": [{"name": "mars", "rules": [
        {"alert": one.name, "expr": one.expr, "for": one.wait, "labels": {"severity": one.severity},
         "annotations": {"summary": one.summary, "description": one.what}} for one in ALERTS]}]}


def tests() -> dict[str, Any]:
    """Each alert once with what fires it, and what it says then; once with what must not fire it."""
    found = []
    for one in ALERTS:
        says = {"alertname": one.name, "eval_time": f"{one.at}m", "exp_alerts": [{
            "exp_labels": {"severity": one.severity, **one.labels}, "exp_annotations": _annotations(one)}]}
        found.append({"interval": STEP, "input_series": _series(one.fires), "alert_rule_test": [says]})
        found.append({"interval": STEP, "input_series": _series(one.quiet), "alert_rule_test": [
            {"alertname": one.name, "eval_time": f"{minute}m", "exp_alerts": []} for minute in (1, one.at)]})
    return {"rule_files": ["prometheus-rules.yml"], "evaluation_interval": STEP, "tests": found}


def _series(rows: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"series": name, "values": values} for name, values in rows]


# The number in the text of an alert in its test.
VALUES = {"MarsMorePrimaries": "2", "MarsEmergency": "3", "MarsLag": "30m 0s", "MarsLagHigh": "30m 0s",
          "MarsSlowWrites": "4.131s"}


def _annotations(one: Alert) -> dict[str, str]:
    """What it says with the labels of its test."""
    found = {"summary": one.summary, "description": one.what}
    for key, text in found.items():
        for label, value in one.labels.items():
            text = text.replace(f"{{{{ $labels.{label} }}}}", value)
        for number in ("{{ $value }}", "{{ $value | humanizeDuration }}"):
            text = text.replace(number, VALUES.get(one.name, "?"))
        found[key] = text
    return found
