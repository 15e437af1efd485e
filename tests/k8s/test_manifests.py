"""What the manifests promise, read from what kustomize renders of them."""

import re

import pytest

from mmesh.capacity.planning import LEAST_GATEWAY
from mmesh.serving.host import MESSAGES_HELD
from services.gateway.config import GatewaySettings
from tools.k8s import check
from tools.k8s.check import ROOT, combinations
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
        text = str(
            list(
                Manifests(render(ROOT / "k8s" / name)).of("HorizontalPodAutoscaler", "ScaledObject")
            )
        )
        assert ":demand" in text or "_demand" in text
        assert "cpu" not in text.lower()


def test_readiness_asks_the_service_itself(production):
    for one in production.of("Deployment", "StatefulSet"):
        container = one["spec"]["template"]["spec"]["containers"][0]
        for probe in ("startupProbe", "readinessProbe"):
            service = container[probe]["grpc"]["service"]
            package = service.split(".")[2]
            protos = "".join(
                p.read_text() for p in (ROOT / "protos/mmesh/api" / package).rglob("*.proto")
            )
            assert re.search(rf"^service {service.rpartition('.')[2]} ", protos, re.MULTILINE)


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


def test_a_gateway_may_hold_what_it_lets_in(production):
    """The comment in gateway.yaml says how often each byte is held."""
    [limit] = {
        pod.containers[0]["resources"]["limits"]["memory"]
        for pod in production.pods
        if pod.labels["app.kubernetes.io/name"] == "mmesh-gateway"
    }
    message = GatewaySettings().max_message_bytes
    held = (70 << 20) + 5 * MESSAGES_HELD * message + (4 + 2) * message
    limit_bytes = int(limit.removesuffix("Gi")) << 30
    assert limit_bytes >= held + 2 * 4 * message  # what comes in at the moment, too
    assert limit_bytes == LEAST_GATEWAY  # of the overlays that `mmesh plan` writes
