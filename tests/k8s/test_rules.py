"""Rules, alerts, dashboards and runbooks: they parse, fire when they must, and hang together."""

import functools
import json
import re
import shutil
import subprocess

import pytest
import yaml

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
    assert all(any(case.startswith(f"{name} ") for name in names) or case.startswith("demand ")
               for case in cases)  # fmt: skip


def test_every_alert_says_how_bad_it_is_and_what_to_do():
    for rule in alerts():
        assert rule["labels"]["severity"] in ("page", "ticket"), rule["alert"]
        assert rule["annotations"]["summary"], rule["alert"]
        assert (ROOT / rule["annotations"]["runbook_url"]).is_file(), rule["alert"]


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
