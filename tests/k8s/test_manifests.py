"""What the manifests promise, read from what kustomize renders of them."""

import re
import shutil

import pytest

from tools.k8s import check, shards
from tools.k8s.check import ROOT, combinations, problems_of
from tools.k8s.manifests import Manifests, RenderFailed, name_of, render


@pytest.fixture(scope="module")
def production():
    return Manifests(render(ROOT / "k8s" / "overlays" / "production"))


def test_every_combination_is_sound():  # 5 s
    assert check.check()


def test_a_check_of_what_has_not_changed_renders_nothing(monkeypatch):
    assert check.check()
    monkeypatch.setattr(check, "render", lambda folder: pytest.fail("rendered again"))
    assert check.check()


def test_every_component_is_part_of_a_combination():
    listed = "".join((folder / "kustomization.yaml").read_text() for folder in combinations())
    components = [p.name for p in (ROOT / "k8s" / "components").iterdir()]
    assert [name for name in components if f"components/{name}\n" not in listed] == []


def test_every_component_says_what_it_is_for():
    for folder in (ROOT / "k8s" / "components").iterdir():
        assert (folder / "README.md").is_file(), folder


def test_each_shard_has_replicas_on_its_own_labels(production):
    sets = [one for one in production.of("StatefulSet")]
    found = {one["spec"]["selector"]["matchLabels"]["mmesh.dev/shard"] for one in sets}
    assert found == {"0", "1", "2", "3"}
    for one in sets:
        labels = one["spec"]["selector"]["matchLabels"]
        spread = one["spec"]["template"]["spec"]["topologySpreadConstraints"]
        assert all(rule["labelSelector"]["matchLabels"] == labels for rule in spread)
        assert spread[0]["minDomains"] == 2


def test_no_number_of_pods_is_set_where_an_autoscaler_sets_it(production):
    scaled = {one["spec"]["scaleTargetRef"]["name"] for one in production.of("ScaledObject")}
    workloads = {name_of(one): one for one in production.of("Deployment", "StatefulSet")}
    assert scaled == workloads.keys()
    assert all("replicas" not in one["spec"] for one in workloads.values())


def test_autoscalers_never_look_at_the_processor():
    for name in ("overlays/production", "tests/hpa"):
        text = str(list(Manifests(render(ROOT / "k8s" / name)).of(
            "HorizontalPodAutoscaler", "ScaledObject")))  # fmt: skip
        assert ":demand" in text or "_demand" in text
        assert "cpu" not in text.lower()


def test_readiness_asks_the_service_itself(production):
    for one in production.of("Deployment", "StatefulSet"):
        container = one["spec"]["template"]["spec"]["containers"][0]
        for probe in ("startupProbe", "readinessProbe"):
            service = container[probe]["grpc"]["service"]
            package = service.split(".")[2]
            protos = "".join(p.read_text() for p in (ROOT / "protos/mmesh/api" / package).rglob("*"
                             ".proto"))  # fmt: skip
            assert re.search(rf"^service {service.rpartition('.')[2]} ", protos, re.MULTILINE)


def test_a_new_shard_set_stands_beside_the_old_one_and_the_old_one_goes(tmp_path):
    k8s = tmp_path / "k8s"
    shutil.copytree(ROOT / "k8s", k8s)
    overlay = k8s / "overlays" / "production"
    shards.main([str(overlay), "--shards", "8", "--replicas", "2", "--autoscaler", "keda"])
    both = Manifests(render(overlay))
    assert problems_of(list(both.objects)) == []
    assert len(list(both.of("StatefulSet"))) == 4 + 8
    shards.main([str(overlay), "--shards", "4", "--drop"])
    left = Manifests(render(overlay))
    counts = {pod.labels["mmesh.dev/shard-count"] for pod in left.picked(
        {"app.kubernetes.io/name": "mmesh-index"})}  # fmt: skip
    assert counts == {"8"}


def test_where_nothing_is_allowed_whoever_calls_somebody_may():
    manifests = Manifests(render(ROOT / "k8s" / "tests" / "gpu-ingress"))
    selectors = [
        one["spec"]["podSelector"].get("matchLabels")
        for one in manifests.of("NetworkPolicy")
        if one["spec"].get("egress") and one["spec"]["podSelector"]
    ]
    silent = {name_of(pod.owner) for pod in manifests.pods if not any(map(pod.matches, selectors))}
    assert silent == {"mmesh-encoder", "mmesh-reranker"}


def test_what_kustomize_refuses_is_reported(tmp_path):
    (tmp_path / "kustomization.yaml").write_text("resources: [nowhere.yaml]\n")
    with pytest.raises(RenderFailed, match="nowhere"):
        render(tmp_path)
