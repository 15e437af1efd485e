"""The migration Job's program does what its README says, on the log of a real database."""

import os
import shutil
import subprocess
import sys

import pytest

from services.index.log.databases.schema import VERSION
from tools.k8s.check import ROOT, problems_of
from tools.k8s.manifests import render


@pytest.fixture(scope="module")
def job():
    objects = render(ROOT / "k8s" / "tests" / "gpu-ingress")
    job = next(one for one in objects if one["metadata"]["name"] == "mmesh-migration")
    return job["spec"]["template"]["spec"]["containers"][0]


def test_the_job_brings_an_empty_log_to_this_release_and_may_run_again(job, tmp_path):
    [interpreter, *arguments] = job["command"]
    assert interpreter == "python"
    environment = os.environ | {"MMESH_INDEX_LOG_URL": f"sqlite:///{tmp_path / 'log.db'}"}
    said = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.splitlines()[-1])
    assert said[0].endswith(f"the log is of version {VERSION}")
    assert said[1] == "nothing was changed"


def test_the_job_reads_the_log_of_a_development_mesh_that_it_is_added_to(tmp_path):
    k8s = shutil.copytree(ROOT / "k8s", tmp_path / "k8s")
    page = k8s / "overlays" / "development" / "kustomization.yaml"
    components = "components:\n  - ../../components/migration-job\n"
    page.write_text(page.read_text().replace("components:\n", components, 1))
    objects = render(page.parent)
    assert problems_of(objects) == []
    addresses = [str(variables_of(one)["MMESH_INDEX_LOG_URL"]) for one in objects if reads_log(one)]
    assert len(addresses) == 3
    assert len(set(addresses)) == 1
    late = page.read_text().replace(components, "components:\n", 1)
    page.write_text(late.replace("labels:\n", "  - ../../components/migration-job\nlabels:\n", 1))
    assert ["another log" in str(one) for one in problems_of(render(page.parent))] == [True]


def variables_of(one):
    spec = one.get("spec", {}).get("template", {}).get("spec", {})
    return {
        variable["name"]: {**variable, "name": None}
        for container in spec.get("containers", ())
        for variable in container.get("env", ())
    }


def reads_log(one):
    return "MMESH_INDEX_LOG_URL" in variables_of(one)
