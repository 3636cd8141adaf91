"""Files that lie in mars.pyz and are taken out by `mars-status --print-template NAME`, or served by marsd."""

from __future__ import annotations

import os

from marsx.base.errors import NotFoundError

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "share")
TEMPLATES = {
    "prometheus-rules.yml": "alert rules for Prometheus",
    "prometheus-rules-test.yml": "their tests, for promtool test rules",
    "grafana-dashboard.json": "dashboard for Grafana",
    "zabbix-template.yaml": "template for Zabbix 6.0 and newer",
    "zabbix-agent.conf": "UserParameter lines for the Zabbix agent",
}
PAGE = ("page.html", "page.css", "page.js")


def text(name: str) -> str:
    """Contents of one; NotFoundError names all."""
    if name not in TEMPLATES and name not in PAGE:
        raise NotFoundError(f"unknown template '{name[:80]}'", f"there are: {', '.join(TEMPLATES)}")
    with open(os.path.join(HERE, name), encoding="utf-8") as file:
        return file.read()
