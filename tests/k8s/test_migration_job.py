"""The migration Job's program does what its README says, on the log of a real database."""

import os
import subprocess
import sys

import pytest

from tools.k8s.check import ROOT
from tools.k8s.manifests import render


@pytest.fixture(scope="module")
def job():
    objects = render(ROOT / "k8s" / "tests" / "gpu-ingress")
    job = next(one for one in objects if one["metadata"]["name"] == "mmesh-migration")
    return job["spec"]["template"]["spec"]["containers"][0]


def test_the_job_brings_an_empty_log_to_this_release_and_may_run_again(job, tmp_path):
    [interpreter, flag, program] = job["command"]
    assert (interpreter, flag) == ("python", "-c")
    environment = os.environ | {"MMESH_INDEX_LOG_URL": f"sqlite:///{tmp_path / 'log.db'}"}
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("the log is of version ")
