"""What panels say while a mesh changes: promtool evaluates their queries on made-up series."""

import shutil
import subprocess

import pytest
import yaml

from tools.dashboards.boards import ALL
from tools.k8s.queries import with_intervals

PROMTOOL = shutil.which("promtool")
pytestmark = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is missing; `apt-get install prometheus` brings it"
)
NAMESPACE = 'namespace="mmesh"'


@pytest.fixture
def shows(tmp_path):
    """Check that the first line of a panel has these values, by labels, ten minutes in."""

    def shows(title, series, values):
        (found,) = [panel for board in ALL for panel in board.panels if panel.title == title]
        expr = with_intervals(found.queries[0].expr).replace("$namespace", "mmesh")
        given = [{"series": name, "values": numbers} for name, numbers in series.items()]
        samples = [{"labels": labels, "value": value} for labels, value in values.items()]
        check = {"expr": expr, "eval_time": "10m", "exp_samples": samples}
        case = {"interval": "1m", "input_series": given, "promql_expr_test": [check]}
        path = tmp_path / "case.yaml"
        path.write_text(yaml.safe_dump({"rule_files": [], "tests": [case]}))
        done = subprocess.run([PROMTOOL, "test", "rules", path], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    return shows


def test_candidates_are_those_of_one_shard_set_while_another_replaces_it(shows):
    def series(shard, of, replica="0"):
        pod = f'pod="index-{of}-{shard}-{replica}"'
        where = f'{NAMESPACE},{pod},shard="{shard}",shard_count="{of}"'
        return f'mmesh_index_candidates{{{where},collection="c",modality="text"}}'

    old = {series(0, 2): "100x20", series(1, 2): "110x20", series(1, 2, "1"): "110x20"}
    new = {series(0, 3): "70x20", series(1, 3): "75x20", series(2, 3): "65x20"}
    loading = {series(0, 3): "70x20", series(1, 3): "3x20"}
    for others in ({}, new, loading):
        shows("Candidates", old | others, {'{collection="c"}': 210})


def test_the_store_is_what_the_newest_sweep_found_whichever_process_made_it(shows):
    def bytes_of(pod, state):
        return f'mmesh_index_store_bytes{{{NAMESPACE},pod="{pod}",state="{state}"}}'

    def time_of(pod):
        return f'mmesh_index_store_sweep_time_seconds{{{NAMESPACE},pod="{pod}"}}'

    series = {
        bytes_of("i-0", "named"): "500x20",
        bytes_of("i-0", "waiting"): "0x20",
        time_of("i-0"): "1000x20",
        bytes_of("i-1", "named"): "0x20",
        bytes_of("i-1", "waiting"): "500x20",
        time_of("i-1"): "2000x20",
        time_of("i-2"): "0x20",
    }
    shows("Pictures in the store", series, {'{state="named"}': 0, '{state="waiting"}': 500})
