"""Overlays that `mmesh plan` and `mmesh k8s scale` write render, and keep to all rules."""

import json
import shlex
import shutil
import stat

import pytest

from mmesh.kubernetes.shard_set import ShardSet, sizes_of, write_list
from mmesh.mesh_status import MeshStatus, ServiceRole, ServiceState, ServiceStatus
from tools.k8s.check import ROOT, problems_of
from tools.k8s.manifests import Manifests, name_of, render
from tools.k8s.scalers import scalers_of

INDEX = {"app.kubernetes.io/name": "mmesh-index"}


@pytest.fixture
def k8s(tmp_path):
    """A copy of k8s/, to be written to."""
    return shutil.copytree(ROOT / "k8s", tmp_path / "k8s")


@pytest.fixture
def kubectl(tmp_path):
    """A stand-in for kubectl: the calls that it got, and whether it fails."""

    class Kubectl:
        folder = tmp_path / "bin"
        log = tmp_path / "calls"
        env = {"PATH": f"{folder}:/usr/bin:/bin"}  # noqa: RUF012

        def install(self, status=0, calls="*"):
            """End with a status after calls that match a pattern of the shell."""
            self.folder.mkdir(exist_ok=True)
            program = self.folder / "kubectl"
            fail = f'case "$*" in {calls}) exit {status};; esac'
            program.write_text(f'#!/bin/sh\necho "$@" >> {self.log}\n{fail}\n')
            program.chmod(program.stat().st_mode | stat.S_IXUSR)

        @property
        def calls(self):
            return self.log.read_text().splitlines() if self.log.exists() else []

    made = Kubectl()
    made.install()
    return made


@pytest.fixture
def mmesh(command_here, tmp_path, kubectl, monkeypatch):
    monkeypatch.setenv("PATH", kubectl.env["PATH"])
    return lambda *options: command_here(*options, env={}, folder=tmp_path)


@pytest.fixture
def searched(monkeypatch):
    """Let gateways say that they search a set of so many shards, with so many replicas."""

    def say(shards, replicas=2):
        services = tuple(
            ServiceStatus(ServiceRole.INDEX, ServiceState.SERVING, "", shard, shards, replica)
            for shard in range(shards)
            for replica in range(replicas)
        )
        status = MeshStatus(services, "test", shards)
        monkeypatch.setattr("mmesh.cli.commands.cluster.k8s._ask", lambda address: status)

    return say


@pytest.mark.parametrize(
    "options",
    [
        ("--rows", "100M", "--modalities", "text=0.7,image=0.3", "--qps", "500", "--rerank", "20",
         "--gpu", "h100"),
        ("--rows", "2M", "--dim", "384", "--rerank", "20"),
        ("--rows", "300k", "--replicas", "1", "--vectors", "flat"),
    ],
    ids=["large", "without GPUs", "one of each"],
)  # fmt: skip
def test_the_overlay_of_a_plan_is_sound_and_has_the_pods_of_the_plan(mmesh, k8s, options):
    overlay = k8s / "overlays" / "mine"
    code, output, errors = mmesh("plan", *options, "--json", "--kustomize", overlay)
    assert code == 0, errors
    planned = {one["name"]: one for one in json.loads(output)["pods"]}
    manifests = Manifests(render(overlay))
    assert problems_of(list(manifests.objects)) == []
    counts: dict[str, int] = {}
    for pod in manifests.pods:
        name = pod.labels["app.kubernetes.io/name"].removeprefix("mmesh-")
        counts[name] = counts.get(name, 0) + pod.owner["spec"]["replicas"]
        if name in planned and counts[name]:
            requests = pod.containers[0]["resources"]["requests"]
            assert int(requests["cpu"]) == planned[name]["cores"]
            assert int(requests.get("nvidia.com/gpu", 0)) == planned[name]["gpus"]
            assert bytes_of(requests["memory"]) >= planned[name]["memory_bytes"]
    assert {name: count for name, count in counts.items() if count} == {
        name: one["count"] for name, one in planned.items()
    }


@pytest.mark.parametrize("scaler", ["keda", "hpa"])
def test_the_overlay_of_a_plan_leaves_numbers_to_an_autoscaler_that_is_added(mmesh, k8s, scaler):
    overlay = k8s / "overlays" / "mine"
    code, _, errors = mmesh("plan", "--rows", "2M", "--rerank", "20", "--kustomize", overlay)
    assert code == 0, errors
    page = overlay / "kustomization.yaml"
    added = f"  - ../../components/monitoring\n  - ../../components/{scaler}\n"
    if scaler == "keda":
        added += "transformers:\n  - ../../components/keda/queries\n"
    page.write_text(page.read_text().replace("labels:\n", f"{added}labels:\n", 1))
    shards = str(sizes_of(overlay / "shards")[-1])
    scale = ("k8s", "scale", "--overlay", overlay, "--shards", shards, "--autoscaler", scaler)
    code, _, errors = mmesh(*scale)
    assert code == 0, errors
    manifests = Manifests(render(overlay))
    assert problems_of(list(manifests.objects)) == []
    workloads = {name_of(one): one for one in manifests.of("Deployment", "StatefulSet")}
    assert scalers_of(manifests.objects).keys() == workloads.keys()
    assert [name for name, one in workloads.items() if "replicas" in one["spec"]] == []


def bytes_of(quantity: str) -> int:
    units = {"Mi": 2**20, "Gi": 2**30}
    return int(quantity[:-2]) * units[quantity[-2:]]


def test_an_overlay_is_never_written_over_another(mmesh, k8s):
    overlay = k8s / "overlays" / "production"
    before = (overlay / "kustomization.yaml").read_text()
    code, _, errors = mmesh("plan", "--rows", "1M", "--kustomize", overlay)
    assert code == 1
    assert "is not empty" in errors
    assert (overlay / "kustomization.yaml").read_text() == before


def test_a_new_shard_set_stands_beside_the_old_one_and_the_old_one_goes(
    mmesh, k8s, kubectl, searched
):
    overlay = k8s / "overlays" / "production"
    code, output, _ = mmesh("k8s", "scale", "--overlay", overlay, "--shards", "2")
    assert code == 0
    assert f"next: kubectl apply -k {overlay}" in output
    both = Manifests(render(overlay))
    assert problems_of(list(both.objects)) == []
    assert len(list(both.of("StatefulSet"))) == 4 + 2
    assert len(list(both.of("ScaledObject"))) == 3 + 4 + 2  # as the set before it was scaled
    searched(2)
    code, output, _ = mmesh("k8s", "scale", "--overlay", overlay, "--shards", "2", "--finish")
    assert code == 0
    kinds = "statefulset,poddisruptionbudget,scaledobject"
    assert f"next: kubectl delete -n mmesh {kinds} -l mmesh.dev/shard-count=4" in output
    left = Manifests(render(overlay))
    assert {pod.labels["mmesh.dev/shard-count"] for pod in left.picked(INDEX)} == {"2"}
    assert kubectl.calls == []


def test_what_is_still_searched_is_not_removed(mmesh, k8s, searched):
    overlay = k8s / "overlays" / "production"
    scale = ("k8s", "scale", "--overlay", overlay, "--shards", "8")
    assert mmesh(*scale)[0] == 0
    searched(4)
    code, _, errors = mmesh(*scale, "--finish", "--apply")
    assert code == 1
    assert "searches go to the set of 4" in errors
    assert (overlay / "shards" / "4").is_dir()


def test_kubectl_is_run_when_that_is_asked_for(mmesh, k8s, kubectl, searched):
    overlay = k8s / "overlays" / "production"
    searched(8, 3)
    scale = ("k8s", "scale", "--overlay", overlay, "--shards", "8", "--apply")
    code, output, _ = mmesh(*scale, "--replicas", "3")
    assert code == 0
    assert "1 gateway searches the new set" in output
    code, _, _ = mmesh(*scale, "--finish")
    assert code == 0
    assert kubectl.calls == [
        f"apply -k {overlay}",
        "delete -n mmesh statefulset,poddisruptionbudget,scaledobject -l mmesh.dev/shard-count=4",
    ]


def test_a_kubectl_that_fails_ends_the_command(mmesh, k8s, kubectl, searched):
    kubectl.install(status=3)
    searched(8)
    overlay = k8s / "overlays" / "production"
    code, output, errors = mmesh("k8s", "scale", "--overlay", overlay, "--shards", "8", "--apply")
    assert code == 1
    assert "ended with 3" in errors
    assert "searches" not in output


def test_the_next_command_names_the_same_overlay_and_gateway(mmesh, k8s):
    overlay = shutil.copytree(k8s / "overlays" / "production", k8s / "overlays" / "of two words")
    here = ("k8s", "scale", "--overlay", overlay, "--shards", "4")
    _, output, _ = mmesh(*here, "--target-address", "dns:///mmesh-gateway.mmesh:50550")
    following = shlex.split(output.splitlines()[-1].removeprefix("then: mmesh "))
    address = ["--target-address", "dns:///mmesh-gateway.mmesh:50550"]
    assert following == [*map(str, here), *address, "--wait"]
    _, output, _ = mmesh(*here)
    assert "--target-address" not in output


def test_a_set_stays_in_the_overlay_until_the_cluster_has_let_it_go(mmesh, k8s, kubectl, searched):
    overlay = k8s / "overlays" / "production"
    scale = ("k8s", "scale", "--overlay", overlay, "--shards")
    assert mmesh(*scale, "2")[0] == mmesh(*scale, "8")[0] == 0
    searched(8)
    kubectl.install(status=1, calls="delete*count=4")
    code, output, errors = mmesh(*scale, "8", "--finish", "--apply")
    assert code == 1
    assert "ended with 1" in errors
    assert "removed the set of 2 shards" in output
    assert "removed the set of 4 shards" not in output
    assert sizes_of(overlay / "shards") == [4, 8]
    kubectl.install()
    code, output, _ = mmesh(*scale, "8", "--finish", "--apply")
    assert code == 0
    assert "removed the set of 4 shards" in output
    assert sizes_of(overlay / "shards") == [8]
    assert [call.rpartition("=")[2] for call in kubectl.calls] == ["2", "4", "4"]


@pytest.mark.parametrize(
    ("autoscaler", "other", "deleted"),
    [
        ("keda", "hpa", ["delete -n mmesh scaledobject -l mmesh.dev/shard-count=4"]),
        ("keda", "none", ["delete -n mmesh scaledobject -l mmesh.dev/shard-count=4"]),
        ("hpa", "keda", ["delete -n mmesh horizontalpodautoscaler -l mmesh.dev/shard-count=4"]),
        ("none", "hpa", []),
        ("keda", "keda", []),
    ],
)
def test_an_autoscaler_in_place_of_another_is_never_beside_it(
    mmesh, k8s, kubectl, searched, autoscaler, other, deleted
):
    overlay = k8s / "overlays" / "production"
    ShardSet(4, 2, autoscaler).write(overlay / "shards", k8s)
    searched(4)
    scale = ("k8s", "scale", "--overlay", overlay, "--shards", "4", "--autoscaler", other)
    kubectl.install(status=1, calls="delete*")
    if deleted:
        assert mmesh(*scale, "--apply")[0] == 1
        assert ShardSet.read(overlay / "shards", 4).autoscaler == autoscaler
    kubectl.install()
    assert mmesh(*scale, "--apply")[0] == 0
    assert kubectl.calls == [*deleted, *deleted, f"apply -k {overlay}"]
    assert ShardSet.read(overlay / "shards", 4) == ShardSet(4, 2, other)


def test_who_applies_by_hand_is_told_of_the_old_autoscaler_too(mmesh, k8s, kubectl):
    overlay = k8s / "overlays" / "production"
    scale = ("k8s", "scale", "--overlay", overlay, "--shards", "4")
    code, output, _ = mmesh(*scale, "--autoscaler", "none")
    assert code == 0
    said = [line.removeprefix("next: ") for line in output.splitlines() if "next: " in line]
    delete = "kubectl delete -n mmesh scaledobject -l mmesh.dev/shard-count=4"
    assert said == [delete, f"kubectl apply -k {overlay}"]
    assert kubectl.calls == []


def test_asking_for_the_same_set_again_changes_nothing(mmesh, k8s):
    overlay = k8s / "overlays" / "production"
    before = {p: p.read_text() for p in overlay.rglob("*.yaml")}
    code, output, _ = mmesh("k8s", "scale", "--overlay", overlay, "--shards", "4")
    assert code == 0
    assert "has already a set of 4 shards, 2 pods each" in output
    assert {p: p.read_text() for p in overlay.rglob("*.yaml")} == before


@pytest.mark.parametrize("shards", [2, 8], ids=["fewer", "more"])
def test_the_next_command_keeps_what_the_first_was_given(mmesh, k8s, searched, shards):
    overlay = k8s / "overlays" / "production"
    given = ("--replicas", "3", "--autoscaler", "none")
    code, output, _ = mmesh("k8s", "scale", "--overlay", overlay, "--shards", shards, *given)
    assert code == 0
    searched(shards, 3)
    following = shlex.split(output.splitlines()[-1].removeprefix("then: mmesh "))
    code, output, _ = mmesh(*following)
    assert code == 0
    assert f"has already a set of {shards} shards, 3 pods each" in output
    assert ShardSet.read(overlay / "shards", shards) == ShardSet(shards, 3, "none")


@pytest.mark.parametrize("combination", ["overlays/production", "tests/hpa"])
def test_autoscalers_ask_for_pods_of_the_namespace_of_their_overlay(
    mmesh, k8s, combination
):  # 2 s: looks at all schemas
    overlay = k8s / combination
    page = overlay / "kustomization.yaml"
    moved = page.read_text().replace("namespace: mmesh", 'namespace: "search-eu" # ours')
    page.write_text(moved)  # after its first set was written
    assert mmesh("k8s", "scale", "--overlay", overlay, "--shards", "1")[0] == 0
    objects = render(overlay)
    assert problems_of(objects) == []
    scalers = list(Manifests(objects).of("ScaledObject", "HorizontalPodAutoscaler"))
    assert {one["metadata"]["namespace"] for one in scalers} == {"search-eu"}
    queries = [trigger.query for one in scalers_of(scalers).values() for trigger in one.triggers]
    assert len(queries) > 4 + 1
    assert all('namespace="search-eu"' in query for query in queries)


def test_a_set_alone_that_keda_scales_asks_for_pods_of_its_namespace(mmesh, k8s):
    overlay = k8s / "tests" / "two-shard-sets"  # without the component `keda` and its queries
    page = overlay / "kustomization.yaml"
    page.write_text(page.read_text().replace("namespace: mmesh", "namespace: search-eu"))
    scale = ("k8s", "scale", "--overlay", overlay, "--shards", "3", "--autoscaler", "keda")
    assert mmesh(*scale)[0] == 0
    queries = [t.query for one in scalers_of(render(overlay)).values() for t in one.triggers]
    assert len(queries) == 3
    assert all('namespace="search-eu"' in query for query in queries)
    assert "has already" in mmesh(*scale)[1]
    page.write_text(page.read_text().replace("namespace: search-eu", "namespace: mmesh"))
    assert "wrote" in mmesh(*scale)[1]
    assert ShardSet.read(overlay / "shards", 3).namespace == "mmesh"


@pytest.mark.parametrize("autoscaler", ["none", "hpa"])
def test_a_set_that_names_no_namespace_is_the_same_in_each(mmesh, k8s, autoscaler):
    overlay = k8s / "overlays" / "production"
    ShardSet(4, 2, autoscaler).write(overlay / "shards", k8s)
    page = overlay / "kustomization.yaml"
    page.write_text(page.read_text().replace("namespace: mmesh", "namespace: search-eu"))
    assert "has already" in mmesh("k8s", "scale", "--overlay", overlay, "--shards", "4")[1]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda overlay: (overlay / "kustomization.yaml").unlink(), "has no kustomization.yaml"),
        (
            lambda overlay: overlay.joinpath("kustomization.yaml").write_text("resources: []\n"),
            "does not list `shards`",
        ),
        (lambda overlay: shutil.rmtree(overlay / "shards" / "4" / "0"), "was not written by"),
    ],
    ids=["no overlay", "sets of another", "a set by hand"],
)
def test_a_folder_that_is_no_overlay_of_ours_is_left_alone(mmesh, k8s, spoil, says):
    overlay = k8s / "overlays" / "production"
    spoil(overlay)
    before = sorted(overlay.rglob("*"))
    code, _, errors = mmesh("k8s", "scale", "--overlay", overlay, "--shards", "8")
    assert code == 1
    assert says in errors
    assert sorted(overlay.rglob("*")) == before


def test_a_switch_that_does_not_come_is_given_up(mmesh, k8s, searched):
    searched(4)
    overlay = k8s / "overlays" / "production"
    code, _, errors = mmesh(
        "k8s", "scale", "--overlay", overlay, "--shards", "8", "--wait", "--timeout", "1"
    )
    assert code == 1
    assert "not switched after 1 s" in errors
    assert "0 of 8 shards have 2 ready; searches go to the set of 4" in errors


@pytest.mark.parametrize(
    "overlay", sorted((ROOT / "k8s").glob("*/*/shards")), ids=lambda p: p.parent.name
)
def test_committed_shard_sets_are_as_they_would_be_written(overlay, tmp_path):
    folder = tmp_path / "k8s" / overlay.relative_to(ROOT / "k8s")
    for size in sizes_of(overlay):
        ShardSet.read(overlay, size).write(folder, tmp_path / "k8s")
    write_list(folder)
    wanted = {p.relative_to(folder): p.read_text() for p in folder.rglob("*.yaml")}
    assert wanted == {p.relative_to(overlay): p.read_text() for p in overlay.rglob("*.yaml")}
