"""Compressed rules are the rules of k8s/, with no duration left as it was."""

import re

import yaml

from tests.scenarios.compression import FACTOR, Alerts, seconds_of, write_rules
from tools.k8s.rules import rule_files

WINDOW = re.compile(r"(?:\[|offset )(\w+)")


def rules_of(path):
    return [r for group in yaml.safe_load(path.read_text())["groups"] for r in group["rules"]]


def milliseconds(duration):
    assert duration.endswith("ms"), duration
    return int(duration.removesuffix("ms"))


def test_every_window_and_every_for_is_divided_by_the_factor(tmp_path):
    compared = 0
    for source, path in zip(rule_files(), write_rules(tmp_path), strict=True):
        for rule, short in zip(rules_of(source), rules_of(path), strict=True):
            durations = [*WINDOW.findall(rule["expr"]), *([rule["for"]] if "for" in rule else [])]
            found = [*WINDOW.findall(short["expr"]), *([short["for"]] if "for" in short else [])]
            wanted = [round(1000 * seconds_of(one) / FACTOR) for one in durations]
            assert [milliseconds(one) for one in found] == wanted
            assert WINDOW.sub("", rule["expr"].strip()) == WINDOW.sub("", short["expr"].strip())
            compared += len(wanted)
    assert compared > 100


def test_an_alert_is_due_after_its_for_and_its_shortest_window():
    alerts = Alerts()
    at_once = alerts.resolves_within_s("MmeshTargetDown")  # it has no window
    assert alerts.fires_within_s("MmeshTargetDown") > at_once
    assert (
        alerts.resolves_within_s("MmeshAvailabilityBudgetBurnsFast")
        == alerts.resolves_within_s("MmeshCoverageIncomplete")  # 5m: that of an hour ends later
        > at_once
    )
