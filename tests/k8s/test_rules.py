"""Rules, alerts, dashboards and runbooks: they parse, fire when they must, and hang together."""

import functools
import json
import re
import shutil
import subprocess
import sys
from typing import get_args

import pytest
import yaml

from mmesh.cli.commands.top import troubles
from services.index.store.manifest import Damage
from tools.dashboards.boards import ALL
from tools.dashboards.files import FOLDER as DASHBOARDS
from tools.k8s import queries
from tools.k8s.check import ROOT
from tools.k8s.rules import FOLDER, rule_files

TESTS = sorted((FOLDER / "tests").glob("*.yaml"))
RUNBOOKS = ROOT / "docs" / "runbooks"
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is missing; `apt-get install prometheus` brings it"
)


@functools.cache
def rules():
    groups = [g for path in rule_files() for g in yaml.safe_load(path.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"]]


def alerts():
    return [rule for rule in rules() if "alert" in rule]


def known_names():
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    return queries.documented_names() | queries.FOREIGN | recorded


def promtool(*arguments):
    done = subprocess.run([PROMTOOL, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_accepts_all_rules():
    promtool("check", "rules", *rule_files())


@needs_promtool
@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_alerts_fire_when_they_must_and_only_then(path):  # 8 s for all of them
    promtool("test", "rules", path)


def test_every_alert_has_a_case_that_fires_and_one_that_must_not():
    cases = [case["name"] for path in TESTS for case in yaml.safe_load(path.read_text())["tests"]]
    names = [rule["alert"] for rule in alerts()]
    assert len(names) == len(set(names))
    wanted = [f"{name} {end}" for name in names for end in ("fires", "is silent")]
    assert sorted(set(wanted) - set(cases)) == []
    assert all(
        any(case.startswith(f"{name} ") for name in names) or case.startswith("demand ")
        for case in cases
    )


def test_every_alert_says_how_bad_it_is_and_what_to_do():
    for rule in alerts():
        assert rule["labels"]["severity"] in ("page", "ticket"), rule["alert"]
        assert rule["annotations"]["summary"], rule["alert"]
        assert (ROOT / rule["annotations"]["runbook_url"]).is_file(), rule["alert"]


def recorded():
    return {rule["record"]: queries.names_in(rule["expr"]) for rule in rules() if "record" in rule}


def measured_by(expression):
    """Return the metrics of an expression, and those of the rules that it reads."""
    names, last = queries.names_in(expression), set()
    while names != last:
        last, names = names, names.union(*(recorded().get(name, set()) for name in names))
    return names


def test_every_alert_leads_to_a_dashboard_that_shows_what_it_is_about():
    shown = {
        f"d/mmesh-{board.name}": set().union(
            *(measured_by(query.expr) for panel in board.panels for query in panel.queries)
        )
        for board in ALL
    }
    blind = {"MmeshHistoryLost", "MmeshParityDrift"}  # of what is no series until it happens
    for rule in alerts():
        page = shown[rule["annotations"]["dashboard_url"]]
        assert rule["alert"] in blind or page & measured_by(rule["expr"]), rule["alert"]


def test_every_runbook_belongs_to_an_alert_and_has_its_four_parts():
    used = {(ROOT / rule["annotations"]["runbook_url"]).name for rule in alerts()}
    pages = {path.name: path.read_text() for path in RUNBOOKS.glob("*.md")}
    assert pages.keys() - {"README.md"} == used
    for name in used:
        heads = re.findall(r"^## (.+)$", pages[name], re.MULTILINE)
        assert heads == ["What it means", "Confirm", "Do", "Do not"], name


def test_a_runbook_names_its_alerts():
    for rule in alerts():
        page = (ROOT / rule["annotations"]["runbook_url"]).read_text()
        assert rule["alert"] in page or rule["alert"].partition("Burns")[0] in page, rule["alert"]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_reads_only_what_is_exported(rule):
    assert queries.parse_error(rule["expr"]) is None
    assert queries.names_in(rule["expr"]) <= known_names()


def test_every_panel_reads_only_what_is_exported():
    for board in ALL:
        for panel in board.panels:
            for query in panel.queries:
                assert queries.parse_error(query.expr) is None, query.expr
                assert queries.names_in(query.expr) <= known_names(), query.expr


def test_every_documented_metric_is_in_a_panel_or_a_rule():
    """A metric that nobody looks at is a question, not an answer."""
    texts = [rule["expr"] for rule in rules()]
    texts += [query.expr for board in ALL for panel in board.panels for query in panel.queries]
    rows = re.findall(r"^\| `(\w+)`", queries.METRICS.read_text(), re.MULTILINE)
    assert [name for name in rows if not any(name in text for text in texts)] == []


EXPORTED = """
import importlib, json
from prometheus_client import REGISTRY
for service in ("encoder", "gateway", "index", "reranker"):
    importlib.import_module(f"services.{service}.metrics")
samples = [one for metric in REGISTRY.collect() for one in metric.samples]
print(json.dumps([[one.name, sorted(one.labels.values())] for one in samples]))
"""


@functools.cache
def exported_at_the_start():
    """Return the names and label values of what a process exports before anything happens."""
    done = subprocess.run([sys.executable, "-c", EXPORTED], capture_output=True, check=True)
    return {(name, *values) for name, values in json.loads(done.stdout)}


def test_demand_is_a_number_before_the_first_work():
    """A process that has done nothing yet would count as one that is as busy as the others."""
    texts = [rule["expr"] for rule in rules() if rule.get("record", "").endswith(":demand")]
    names = set().union(*map(queries.names_in, texts)) - {"up"}
    assert len(names) >= 7
    assert names <= {name for name, *_ in exported_at_the_start()}


def test_what_fires_at_some_events_is_counted_from_zero():
    """The first sample of a counter is no rise, so an event that makes its series is not seen.

    Where processes take turns, as to sweep the store, that could be all events.
    """
    there = {name for name, *_ in exported_at_the_start()}
    texts = " ".join(rule["expr"] for rule in alerts())
    counted = set(re.findall(r"increase\((\w+)(?:{[^}]*})?\[\w+\]", texts))
    assert len(counted) >= 8
    counted.remove("mmesh_errors_total")  # once a method was called; see test_handlers.py
    counted.remove("mmesh_gateway_rejected_total")  # after 20, of one reason
    counted.remove("mmesh_task_failures_total")  # fires after more than 5, of one task
    counted.remove("mmesh_index_recall_probe_wanted_total")  # after 200, of one collection
    assert counted <= there


def test_a_series_that_a_rule_chooses_by_label_is_counted_from_zero():
    texts = " ".join(rule["expr"] for rule in rules())
    chosen = set(re.findall(r'(\w+_total){\w+=~?"(\w+)"}', texts))
    assert ("mmesh_gateway_degradations_total", "SHARD_UNAVAILABLE") in chosen
    special = {"mmesh_errors_total", "mmesh_index_recall_probe_wanted_total"}  # as above
    assert {one for one in chosen if one[0] not in special} <= exported_at_the_start()


@pytest.mark.parametrize(
    ("counter", "kinds"),
    [
        ("gc", ["DataLoss", "FailedPrecondition", "LogUnavailable", "StorageFull", "Unavailable"]),
        ("purge", ["DataLoss", "LogUnavailable", "Unavailable"]),
        ("tail", ["DataLoss", "LogUnavailable"]),
        ("collection", ["DataLoss", "MemoryFull"]),
        ("snapshot", [*get_args(Damage), "unreadable", "not_stored", "not_restored"]),
    ],
)
def test_failures_of_every_known_kind_are_counted_from_zero(counter, kinds):
    name = f"mmesh_index_{counter}_failures_total"
    assert {(name, kind) for kind in kinds} <= exported_at_the_start()


def test_a_ratio_of_few_events_fires_nothing():
    ratios = [rule for rule in alerts() if ":ratio_rate" in rule["expr"]]
    assert len(ratios) >= 11
    for rule in ratios:
        assert re.search(r"increase.* >= \d+", " ".join(rule["expr"].split())), rule["alert"]


def test_no_alert_is_silent_because_another_mesh_is_well():
    """What is absent is so in all meshes of a Prometheus."""
    for rule in alerts():
        assert "absent(" not in rule["expr"], rule["alert"]
    everywhere = [rule["alert"] for rule in alerts() if "absent_" in rule["expr"]]
    assert everywhere == ["MmeshServiceGone"]  # of what was never scraped, beside what was
    for rule in alerts():
        for labels in re.findall(r"\b(?:sum|min|max|avg|count) by \(([^)]*)\)", rule["expr"]):
            assert "namespace" in labels, rule["alert"]


def test_every_panel_says_what_it_shows():
    for board in ALL:
        for panel in board.panels:
            assert panel.description, (board.name, panel.title)
            assert panel.unit, (board.name, panel.title)


def test_panels_name_runbooks_that_exist():
    for board in ALL:
        for panel in board.panels:
            for name in re.findall(r"Runbook: ([a-z-]+)", panel.description):
                assert (RUNBOOKS / f"{name}.md").is_file(), (panel.title, name)


def test_dashboards_are_listed_for_grafana_and_link_to_each_other():
    listed = (FOLDER / "kustomization.yaml").read_text()
    for board in ALL:
        assert f"dashboards/{board.name}.json" in listed
        built = json.loads((DASHBOARDS / f"{board.name}.json").read_text())
        assert built["uid"] == f"mmesh-{board.name}"
        assert len(built["links"]) == len(ALL) - 1


def test_demand_has_no_value_that_stands_in_for_a_missing_one():
    for rule in rules():
        if rule.get("record", "").endswith(":demand"):
            assert not queries.names_in(rule["expr"]) & {"vector"}
            assert not re.search(r"\bor\b|vector\(|absent", rule["expr"]), rule["record"]


def test_the_page_of_mmesh_top_is_alarmed_when_alerts_are():
    expressions = {rule["alert"]: " ".join(rule["expr"].split()) for rule in alerts()}
    limits = {
        "MmeshIndexStale": ("mmesh_index_staleness_seconds) > 120", troubles.STALE_S == 120),
        "MmeshSnapshotOld": ("age_seconds) > 6 * 3600", troubles.SNAPSHOT_S == 6 * 3600),
        "MmeshDiskAlmostFull": ("size_bytes) < 0.1", troubles.DISK_FREE == 0.1),
        "MmeshParityDrift": ("> 0.02", troubles.PARITY == 0.02),
    }
    for alert, (limit, is_same) in limits.items():
        assert limit in expressions[alert]
        assert is_same, alert
