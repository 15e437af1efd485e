"""The commands of the how-tos about clusters, as far as they run without a cluster or a builder.

kubectl is the real one: what it would send is rendered or made by a dry run, and checked.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmesh.mesh_status import MeshStatus, ServiceRole, ServiceState, ServiceStatus
from tools.k8s.check import ROOT, problems_of
from tools.k8s.manifests import Manifests, kubectl_path, name_of, render

HOW_TO = ROOT / "docs/how-to"
FENCE = re.compile(r"^```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ELSEWHERE = {
    "make images": "builds images; `make images-test` builds them, too, and runs them",
    "podman build": "builds an image of many gigabytes",
    "for target in": "stores images in a registry",
    "docker compose": "needs Docker; tests/k8s/test_images.py checks compose.yaml",
    "make k8s-check": "tests/k8s/test_manifests.py runs what it runs",
    "mmesh ingest": "docs/quickstart.md, which a test follows, has it",
    "kubectl -n mmesh get": "only looks",
    "mmesh status": "asks a cluster's gateway",
}
"""Commands of the pages that are not run here, by how they begin, and why."""


def commands_of(page: Path) -> Iterator[str]:
    for block in FENCE.findall(page.read_text("utf-8")):
        if block.startswith("for "):
            yield " ".join(block.split())
            continue
        for line in block.splitlines():
            if command := shlex.join(shlex.split(line, comments=True)):
                yield command


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A folder with a copy of k8s/, where commands are run."""
    shutil.copytree(ROOT / "k8s", tmp_path / "k8s")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def follow(checkout, command_here, monkeypatch) -> Callable[[Path], list[str]]:
    """Run the commands of a page in order; return those of kubectl."""
    monkeypatch.setattr("mmesh.cli.commands.cluster.k8s._ask", lambda address: all_serve(8))

    def run_one(command: str) -> None:
        words = shlex.split(command)
        if words[0] == "kubectl":
            run_kubectl(words[1:])
        elif words[0] == "mmesh":
            code, _, errors = command_here(*words[1:], env={}, folder=checkout)
            assert code == 0, f"{command}: {errors}"
        else:
            pytest.fail(f"{command} is neither run nor named as tested elsewhere")

    def follow(page: Path) -> list[str]:
        commands = [one for one in commands_of(page) if not one.startswith(tuple(ELSEWHERE))]
        for command in commands:
            run_one(command)
        return [one for one in commands if one.startswith("kubectl")]

    return follow


def all_serve(shards: int) -> MeshStatus:
    services = tuple(
        ServiceStatus(ServiceRole.INDEX, ServiceState.SERVING, "", shard, shards, replica)
        for shard in range(shards)
        for replica in range(2)
    )
    return MeshStatus(services, "test", shards)


def run_kubectl(words: list[str]) -> None:
    """Do what can be done of a command without a cluster."""
    if words[:1] == ["kustomize"] or words[0] in ("apply", "diff"):
        assert problems_of(render(Path(words[-1]))) == []
    elif "create" in words:
        made(words)
    else:
        assert "delete" in words


def made(words: list[str]) -> str:
    """Return the object that a `kubectl create` would make."""
    command = [kubectl_path() or "kubectl", *words, "--dry-run=client", "-o", "name"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_deploy_and_scale_as_the_page_says(follow, checkout):  # 10 s: renders three times
    commands = follow(HOW_TO / "deploy.md")
    assert {words.split()[1] for words in commands} >= {"create", "diff", "apply", "delete"}
    sets = [p.name for p in (checkout / "k8s/overlays/production/shards").iterdir() if p.is_dir()]
    assert sets == ["8"]
    (delete,) = [one for one in commands if " delete " in one]
    assert delete.endswith("-l mmesh.dev/shard-count=4")


def test_plan_as_the_page_says(follow, checkout):
    assert follow(HOW_TO / "plan.md") == ["kubectl kustomize k8s/overlays/mine"]
    assert (checkout / "k8s/overlays/mine/kustomization.yaml").is_file()


def test_the_page_makes_the_secrets_that_pods_ask_for():
    created = {
        made(shlex.split(one)[1:]).removeprefix("secret/"): one
        for one in commands_of(HOW_TO / "deploy.md")
        if " create secret " in one
    }
    manifests = Manifests(render(ROOT / "k8s/overlays/production"))
    asked = {
        (source["name"], source.get("key"))
        for pod in manifests.pods
        for container in pod.containers
        for source in secrets_of(container)
    }
    assert {name for name, _ in asked} == created.keys()
    assert all(
        key is None or f"--from-literal={key}=" in created[name].replace("'", "")
        for name, key in asked
    )


def secrets_of(container: dict) -> Iterator[dict]:
    yield from (one["secretRef"] for one in container.get("envFrom", ()) if "secretRef" in one)
    for variable in container.get("env", ()):
        if source := variable.get("valueFrom", {}).get("secretKeyRef"):
            yield source


def test_an_upgrade_by_its_tag_replaces_images_and_nothing_else(checkout):
    overlay = checkout / "k8s/overlays/production"
    before = {(one["kind"], name_of(one)): str(one) for one in render(overlay)}
    page = overlay / "kustomization.yaml"
    page.write_text(page.read_text().replace("newTag: 0.1.0", "newTag: 0.2.0"))
    after = {(one["kind"], name_of(one)): str(one) for one in render(overlay)}
    changed = {kind for kind, _ in (key for key in before if before[key] != after[key])}
    assert before.keys() == after.keys()
    assert changed == {"Deployment", "StatefulSet"}
    assert {key: text.replace(":0.2.0", ":0.1.0") for key, text in after.items()} == before


def test_what_is_tested_elsewhere_is_still_on_a_page():
    text = "\n".join(
        one for page in ("deploy", "plan") for one in commands_of(HOW_TO / f"{page}.md")
    )
    assert [begin for begin in ELSEWHERE if f"\n{begin}" not in f"\n{text}"] == []
