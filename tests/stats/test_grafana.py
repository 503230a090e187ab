"""The Grafana dashboard: it asks only for metrics and labels that the Prometheus endpoint has."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from memifrt import Runtime
from memifrt.stats.prometheus import metrics
from memifrt.stats.snapshot import snapshot
from memifrt.stats.switch import SwitchStats
from tests.lib.support import Pair

DASHBOARD: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "docs" / "grafana-dashboard.json").read_text(encoding="utf-8")
)
#: Labels that Prometheus adds to what it scrapes.
_OF_PROMETHEUS = {"instance", "job"}
SWITCH: SwitchStats = {
    "ageing": 300.0, "limit": 8192, "port_limit": 8192, "learned": 1, "moved": 0, "expired": 0, "addresses": [],
    "ports": [{
        "name": "port", "vlans": "", "up": True, "addresses": 1, "evicted": 0, "rx_packets": 1, "rx_bytes": 1,
        "tx_packets": 1, "tx_bytes": 1, "flooded": 0, "waiting": 0, "losses": [{"reason": "full", "packets": 1}],
    }],
}  # fmt: skip


def queries() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


@pytest.fixture
def exported(make_pair: Callable[..., Pair], runtime: Runtime) -> dict[str, set[str]]:
    """The labels of each metric of a runtime that has everything: a connection, counters, a switch."""
    make_pair()
    runtime.application_counters["a"] = lambda: {"lost": 1}
    runtime.switch_stats = lambda: SWITCH
    found: dict[str, set[str]] = {}
    for line in metrics(snapshot(runtime)).splitlines():
        if not line.startswith("#"):
            name, _, labels = line.partition("{")
            found[name] = set(re.findall(r'(\w+)="', labels))
    return found


def test_every_metric_and_label_of_the_dashboard_exists(exported: dict[str, set[str]]) -> None:
    asked = 0
    for query in queries():
        for name, labels in re.findall(r"(memifrt_\w+)(?:\{([^}]*)\})?", query):
            assert name in exported, query
            assert set(re.findall(r"(\w+)=", labels)) <= exported[name] | _OF_PROMETHEUS, query
            asked += 1
    assert asked > 20


def test_the_dashboard_shows_every_metric(exported: dict[str, set[str]]) -> None:
    assert {name for query in queries() for name in re.findall(r"memifrt_\w+", query)} == {*exported}


def test_legends_name_labels_that_exist(exported: dict[str, set[str]]) -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            (name, *_) = re.findall(r"memifrt_\w+", target["expr"])
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= exported[name], target


def test_counters_are_asked_for_as_rates() -> None:
    for query in queries():
        for before, name in re.findall(r"([\w ]*\(?)(memifrt_\w+_total)", query):
            assert before.endswith(("rate(", "increase(")), (name, query)


def test_panels_neither_overlap_nor_share_an_id() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
