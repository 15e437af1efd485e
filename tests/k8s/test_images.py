"""Containerfile and compose.yaml as far as they can be checked without building an image."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tools.k8s.check import ROOT
from tools.k8s.manifests import render

BIN = Path(sys.executable).parent
LOCKS = sorted((ROOT / "requirements" / "images").glob("*.txt"))
LOCK_OF = {"gateway": "gateway", "index": "index", "encoder": "lite", "reranker": "lite"}
SERVICES = tuple(LOCK_OF)


def targets():
    text = (ROOT / "Containerfile").read_text()
    return re.findall(r"^FROM runtime AS (\S+)$", text, re.MULTILINE)


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_keeps_to_its_schema():
    run(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", ROOT / "compose.yaml")


def test_compose_builds_what_there_are_targets_for():
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    built = {one["build"]["target"] for one in services.values() if "build" in one}
    assert built == set(SERVICES) <= set(targets())


def test_compose_and_images_ask_for_health_in_the_same_way():
    text = (ROOT / "Containerfile").read_text()
    asked = re.findall(r"^HEALTHCHECK .* CMD (\[.*\])\nENTRYPOINT .*services\.(\w+)", text, re.M)
    assert len(asked) == len(targets())
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    for command, service in asked:
        assert services[service]["healthcheck"]["test"] == ["CMD", *json.loads(command)]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is missing")
def test_the_prometheus_of_compose_reads_its_configuration(tmp_path):
    configs = yaml.safe_load((ROOT / "compose.yaml").read_text())["configs"]
    (tmp_path / "prometheus.yml").write_text(configs["prometheus"]["content"])
    run(shutil.which("promtool"), "check", "config", tmp_path / "prometheus.yml")


def test_manifests_name_images_that_can_be_built():
    wanted = {f"mmesh-{target}" for target in targets()}
    for name in ("overlays/production", "tests/gpu-ingress", "overlays/laptop"):
        for one in render(ROOT / "k8s" / name):
            pods = one.get("spec", {}).get("template", {}).get("spec", {})
            for container in pods.get("containers", ()):
                image = container["image"].rpartition("/")[2].partition(":")[0]
                assert image in wanted or one["metadata"]["name"] in ("mmesh-postgres", "mmesh-s3")


def test_the_user_of_the_images_is_that_of_the_pods():
    assert re.search(r"^USER 10001:10001$", (ROOT / "Containerfile").read_text(), re.MULTILINE)
    for one in render(ROOT / "k8s" / "overlays" / "production"):
        if one["kind"] in ("Deployment", "StatefulSet"):
            assert one["spec"]["template"]["spec"]["securityContext"]["runAsUser"] == 10001


def test_images_are_built_from_all_that_the_wheel_is_made_of():
    made = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    wheel = made["targets"]["wheel"]
    copies = re.findall(r"^COPY (\S+) (\S+)$", (ROOT / "Containerfile").read_text(), re.MULTILINE)
    let_in = (ROOT / ".containerignore").read_text().split()
    for path in [*wheel["packages"], *wheel.get("force-include", ())]:
        assert (path, path) in copies
        assert f"!{path}" in let_in


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_a_lock_has_a_hash_for_every_package_and_names_no_registry(lock):
    text = lock.read_text().replace("\\\n", " ")
    rows = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert rows
    assert all("==" in row and "--hash=sha256:" in row for row in rows)
    assert not re.search(r"https?://|index-url|find-links", text)


@pytest.mark.parametrize("service", SERVICES)
def test_cpu_images_have_the_versions_that_the_tests_run_with(service):
    tested = dict(re.findall(r"^([\w.-]+)==(\S+)", _text("constraints.txt"), re.MULTILINE))
    tested = {_normal(name): version for name, version in tested.items()}
    lock = _text(f"images/{LOCK_OF[service]}.txt")
    locked = re.findall(r"^([\w.-]+)==(\S+)", lock, re.MULTILINE)
    assert {name: version for name, version in locked if tested.get(name, version) != version} == {}


def test_what_the_gateway_needs_is_in_the_layer_below_all_cpu_images():
    shared = set(re.findall(r"^[\w.-]+==\S+", _text("images/gateway.txt"), re.MULTILINE))
    for lock in {"index", "lite"}:
        assert shared <= set(
            re.findall(r"^[\w.-]+==\S+", _text(f"images/{lock}.txt"), re.MULTILINE)
        )


def test_the_gateway_has_no_torch_faiss_or_vllm():
    assert not re.search(r"^(torch|faiss|vllm|onnxruntime)", _text("images/gateway.txt"), re.M)


def _text(name):
    return (ROOT / "requirements" / name).read_text()


def _normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements_of(extra, project):
    """Return the names of what an extra installs, with what it includes."""
    names = set()
    for line in [*project["dependencies"], *project["optional-dependencies"][extra]]:
        found = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", line)
        if found[1] == "mmesh":
            names |= {n for one in found[2].split(",") for n in requirements_of(one, project)}
        else:
            names.add(re.sub(r"[-_.]+", "-", found[1]).lower())
    return names


@pytest.mark.parametrize("service", SERVICES)
def test_a_lock_has_all_that_its_service_needs(service):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lock = _text(f"images/{LOCK_OF[service]}.txt")
    locked = set(re.findall(r"^([a-z0-9.-]+)==", lock, re.MULTILINE))
    missing = requirements_of(service, project) - locked
    assert not missing, "run requirements/lock-images.sh"
