"""Files for monitoring systems: fresh, sound for the tools that read them, and about metrics that there are."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from marsx.base.errors import NotFoundError, UsageError
from marsx.monitor import feeds, mars_status, templates
from marsx.monitor.prometheus import FAMILIES
from tests.unit.admin.small_tree import SmallTree
from tests.unit.monitor.test_prometheus import of_today
from tools import alerts, dashboard, monitoring

SHARE = Path(templates.HERE)
NAMES = {family.name for family in FAMILIES}


def metrics_in(text: str) -> set[str]:
    """Names of metrics in expressions, without what a histogram adds."""
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\bmars_[a-z_]+", text)}


def test_fresh() -> None:
    """What `make man` would write."""
    assert {name: (SHARE / name).read_text(encoding="utf-8") == text for name, text in monitoring.files().items()} == {
        name: True for name in monitoring.files()}


def test_all_are_known() -> None:
    """Each file of the folder has a name that can be asked for, and each name a file."""
    assert {path.name for path in SHARE.iterdir()} == {*templates.TEMPLATES, *templates.PAGE}
    with pytest.raises(NotFoundError, match="unknown template"):
        templates.text("../templates.py")


def test_rules() -> None:
    """promtool reads the rules, and each alert fires and keeps quiet as its test says."""
    if not shutil.which("promtool"):
        pytest.skip("promtool is not there (Debian: prometheus)")
    for words in (["check", "rules", "prometheus-rules.yml"], ["test", "rules", "prometheus-rules-test.yml"]):
        done = subprocess.run(["promtool", *words], cwd=SHARE, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_rule_that_is_wrong_is_found(tmp_path: Path) -> None:
    """Each rule, with another threshold or comparison, makes its test fail."""
    if not shutil.which("promtool"):
        pytest.skip("promtool is not there (Debian: prometheus)")
    (tmp_path / "prometheus-rules-test.yml").write_text(templates.text("prometheus-rules-test.yml"))
    broken = [one._replace(expr="vector(0) > 1") for one in alerts.ALERTS]
    rules = {"groups": [{"name": "mars", "rules": [{"alert": one.name, "expr": one.expr} for one in broken]}]}
    (tmp_path / "prometheus-rules.yml").write_text(monitoring.yaml(rules))
    done = subprocess.run(["promtool", "test", "rules", "prometheus-rules-test.yml"], cwd=tmp_path, text=True,
                          capture_output=True, timeout=120)
    said = done.stdout + done.stderr
    assert done.returncode and {one.name for one in alerts.ALERTS} == set(re.findall(r"alertname: (\w+)", said))


def test_only_metrics_that_there_are() -> None:
    """In rules and dashboard; and no metric is in neither by accident of a typing error."""
    assert metrics_in(json.dumps(alerts.rules())) <= NAMES
    assert metrics_in(json.dumps(dashboard.dashboard())) <= NAMES


def test_dashboard() -> None:
    """Panels have numbers of their own, lie beside each other, and each has a query."""
    found = json.loads(templates.text("grafana-dashboard.json"))
    panels = found["panels"]
    assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))
    places = {(x, y) for panel in panels for box in [panel["gridPos"]]
              for x in range(box["x"], box["x"] + box["w"]) for y in range(box["y"], box["y"] + box["h"])}
    area = sum(panel["gridPos"]["w"] * panel["gridPos"]["h"] for panel in panels)
    assert len(places) == area and max(x for x, _ in places) == 23
    assert all(target["expr"] for panel in panels for target in panel["targets"])


def test_dashboard_can_be_imported() -> None:
    """What Grafana's import asks for: an identifier, the schema, a data source that is a variable everywhere, panels of
    its own kinds, queries with names of their own, no variable that nobody declares, no label that a query drops."""
    found = json.loads(templates.text("grafana-dashboard.json"))
    assert found["title"] and re.fullmatch(r"[a-zA-Z0-9_-]{1,40}", found["uid"]) and found.get("id") is None
    assert isinstance(found["schemaVersion"], int) and found["schemaVersion"] >= 30
    declared = {one["name"]: one for one in found["templating"]["list"]}
    assert declared["source"]["type"] == "datasource" and declared["source"]["query"] == "prometheus"
    assert declared["resource"]["datasource"]["uid"] == "${source}"
    text = json.dumps(found)
    assert set(re.findall(r"\$\{?([A-Za-z_]\w*)", text)) - {"__rate_interval", "__all", "labels"} == set(declared)
    for panel in found["panels"]:
        assert panel["type"] in {"stat", "timeseries", "table"} and panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${source}"}
        names = [target["refId"] for target in panel["targets"]]
        assert len(set(names)) == len(names)
        for target in panel["targets"]:
            wanted = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            kept = {label.strip() for part in re.findall(r"by \(([^)]*)\)", target["expr"])
                    for label in part.split(",")}
            assert wanted <= kept - {"le"} or " by " not in target["expr"], panel["title"]


def test_expressions_of_the_dashboard(tmp_path: Path) -> None:
    """promtool parses each (as a rule), with the variables filled in."""
    if not shutil.which("promtool"):
        pytest.skip("promtool is not there (Debian: prometheus)")
    expressions = [target["expr"].replace("$__rate_interval", "1m").replace("$resource", ".*")
                   for panel in dashboard.dashboard()["panels"] for target in panel["targets"]]
    rules = {"groups": [{"name": "x", "rules": [{"record": f"r{at}", "expr": expr}
                                                for at, expr in enumerate(expressions)]}]}
    (tmp_path / "rules.yml").write_text(monitoring.yaml(rules))
    done = subprocess.run(["promtool", "check", "rules", tmp_path / "rules.yml"], capture_output=True, text=True,
                          timeout=60)
    assert done.returncode == 0 and f"{len(expressions)} rules found" in done.stdout + done.stderr


def test_yaml_as_others_read_it() -> None:
    """Our writer writes what a YAML parser reads back."""
    code = ("import json, sys, yaml; "
            "print(json.dumps([yaml.safe_load(open(name, encoding='utf-8')) for name in sys.argv[1:]]))")
    names = [name for name in monitoring.files() if name.endswith(("yml", "yaml"))]
    for python in (sys.executable, "/usr/bin/python3", "python3"):
        if shutil.which(python) and not subprocess.run([python, "-c", "import yaml"], capture_output=True).returncode:
            done = subprocess.run([python, "-c", code, *names], cwd=SHARE, capture_output=True, text=True, timeout=60)
            from tools import zabbix_template

            assert json.loads(done.stdout) == [alerts.rules(), alerts.tests(), zabbix_template.export()]
            return
    pytest.skip("no python here has PyYAML")


def test_what_mars_status_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The three options, with the paths of a cluster; exactly one of them."""
    host = os.uname().nodename
    tree = of_today(SmallTree(tmp_path).cluster(host, "b").resource("data", host, "b"))
    paths = [f"--mars-dir={tree.paths.mars_dir}", f"--run-dir={tree.paths.run_dir}"]
    assert feeds.main(["--prometheus", *paths]) == 0
    assert 'mars_daemon_state{state="down"} 1' in capsys.readouterr().out
    assert feeds.main(["--zabbix=status data attach", *paths]) == 0 and capsys.readouterr().out == "1\n"
    assert feeds.main(["--print-template=list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(templates.TEMPLATES)
    for words in (["--prometheus", "--zabbix=status"], ["--prometheus=x"], ["--zabbix"], ["--prometheus", "--json"]):
        with pytest.raises(UsageError):
            feeds.main(words)
    assert mars_status.FEEDS == feeds.OPTIONS and mars_status.main(["--zabbix=mars mars_port", *paths]) == 0
    assert capsys.readouterr().out == "7777\n" and mars_status.main(["--zabbix=nonsense"]) == 3
