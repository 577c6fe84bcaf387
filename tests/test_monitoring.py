"""The dashboard and the alert rules name metrics that exist, with labels that they have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from im_actors.server.metrics import TABLES, MetricKind, full_name

yaml = pytest.importorskip("yaml")

MONITORING = Path(__file__).parents[1] / "cluster" / "monitoring"
OURS = re.compile(r"\bray_(im_actors_[a-z_]+)")
BY = re.compile(r"\bby \(([^)]*)\)")
SELECTED = re.compile(r"([a-z_]+)!?=~?\"")
SHOWN = re.compile(r"\{\{ ?(?:\$labels\.)?([a-z_]+) ?\}\}")


def known() -> dict[str, set[str]]:
    """Every name that Prometheus has, and its labels."""
    names: dict[str, set[str]] = {}
    for kind, table in TABLES.items():
        for metric in table:
            labels = {"actor", metric.label} - {""}
            name = full_name(kind, metric)
            if metric.kind is MetricKind.HISTOGRAM:
                names |= {f"{name}_{end}": labels for end in ("sum", "count")}
                names[f"{name}_bucket"] = labels | {"le"}
            else:
                names[name] = labels
    return names


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    return found


def expressions() -> Iterator[tuple[str, str, str]]:
    """(where, expression, what is shown of its labels)."""
    for rule in rules():
        yield rule["alert"], rule["expr"], rule["annotations"]["summary"]
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"], target["legendFormat"]


@pytest.mark.parametrize(("where", "expression", "shown"), list(expressions()))
def test_metrics_and_labels_exist(where: str, expression: str, shown: str) -> None:
    names = known()
    used = OURS.findall(expression)
    assert used, where
    assert set(used) <= names.keys()
    labels = set.union(*(names[name] for name in used))
    groups = [word for found in BY.findall(expression) for word in found.split(", ")]
    assert {*groups, *SELECTED.findall(expression)} <= labels
    kept = set(groups) if groups or "sum(" in expression else labels
    assert set(SHOWN.findall(shown)) - {"value"} <= kept
    for counter in (name for name in used if name.endswith("_total")):
        assert re.search(rf"(rate|increase)\(ray_{counter}", expression), "it only grows"


def test_every_alert_says_what_to_do() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names) >= 10
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert set(rule["annotations"]) == {"summary", "action"}


def test_panels_do_not_overlap() -> None:
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels()]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in panels()}) == len(places)
