"""Alert rules and dashboard: what they read is exported, and what to do is written down."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from voicebot.metrics import Metrics
from voicebot.record import ProviderRequest

ROOT = Path(__file__).parent.parent
RULES = (ROOT / "deploy/alerts.yaml").read_text()
DASHBOARD = json.loads((ROOT / "deploy/grafana.json").read_text())
ALERTS = re.findall(r"- alert: (\w+)\n((?: {8}.*\n)+)", RULES)
_WORDS = {"and", "or", "unless", "by", "without", "on", "ignoring", "bool"}
_THEIRS = {"up"}  # made by Prometheus itself


def names_in(expression: str) -> set[str]:
    """Return the names of the metrics in an expression of PromQL."""
    for part in (r'"[^"]*"', r"\{[^}]*\}", r"\[[^\]]*\]", r"\b(?:by|without|on)\s*\([^)]*\)"):
        expression = re.sub(part, " ", expression)
    found = re.findall(r"\b([a-zA-Z_:][\w:]*)\b(?!\s*\()", expression)
    return set(found) - _WORDS - _THEIRS


def expressions() -> list[str]:
    rules = re.findall(r"expr: (.+)", RULES)
    panels = [t["expr"] for panel in DASHBOARD["panels"] for t in panel["targets"]]
    return rules + panels


def names_used() -> set[str]:
    """Return the metrics that rules and dashboard read."""
    return set().union(*map(names_in, expressions()))


def names_exported(text: str) -> set[str]:
    """Return the metrics that there are, those without a sample yet included."""
    names = set()
    for family in text_string_to_metric_families(text):
        names |= {sample.name for sample in family.samples}
        ends = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
        names |= {f"{family.name}{end}" for end in ends.get(family.type, ("",))}
    return names


def test_what_is_read_is_exported() -> None:
    metrics = Metrics()
    metrics.build.info({"version": "0"})
    metrics.request_over(ProviderRequest("llm", "groq", 0, 0.0))
    metrics.show_breakers("llm", lambda: [("groq", False)])
    assert len(names_used()) > 40
    assert names_used() - names_exported(metrics.text().decode()) == set()


def test_the_names_of_an_expression() -> None:
    assert names_in('sum by (le, x) (rate(a_bucket{b="c"}[5m])) / d_total > 0.1 and up') == {
        *("a_bucket", "d_total"),
    }


def test_rules_are_what_they_seem() -> None:
    """All of them are found, so that none escapes the checks."""
    assert len(ALERTS) == RULES.count("- alert:") == RULES.count("expr:") > 12


@pytest.mark.parametrize("name, rule", ALERTS, ids=[name for name, _ in ALERTS])
def test_an_alert_says_what_is_wrong_and_where_it_is_written_what_to_do(
    name: str, rule: str
) -> None:
    assert re.search(r"severity: (page|ticket)\b", rule)
    assert re.search(r'summary: ".{20,}"', rule)
    assert f'description: "docs/troubleshooting.md, {name}"' in rule
    assert f"| `{name}` |" in (ROOT / "docs/troubleshooting.md").read_text()


def test_every_panel_has_its_place_and_its_unit() -> None:
    panels = DASHBOARD["panels"]
    places = {(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels}
    assert len(places) == len({p["id"] for p in panels}) == len(panels)
    assert all(p["fieldConfig"]["defaults"]["unit"] for p in panels)
