"""Each mistake that one may make in a manifest is found: 29 of the study, and those of ours."""

import copy
import functools

import pytest
import yaml

from tools.k8s.check import ROOT, problems_of
from tools.k8s.manifests import render

SERVICE_MONITOR = """
apiVersion: monitoring.coreos.com/v1
kind: ServiceMonitor
metadata: {name: mmesh}
spec:
  selector:
    matchLabels: {app.kubernetes.io/name: mmesh-gateway}
  endpoints:
    - port: grpc
"""
METRIC = "spec/metrics/0/external/metric/selector/matchLabels"


@functools.cache
def sound():
    """Return objects of all kinds without a mistake, and what makes them known as such."""
    objects = render(ROOT / "k8s" / "tests" / "gpu-ingress")
    alone = yaml.safe_load((ROOT / "k8s/components/hpa/gateway.yaml").read_text())
    alone["metadata"]["namespace"] = "mmesh"
    objects.append(alone)
    objects.append(yaml.safe_load(SERVICE_MONITOR))
    known: set[str] = set()
    assert problems_of(objects, known) == []
    return objects, known


def the(objects, kind, name):
    return next(o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name)


def deployment(objects):
    return the(objects, "Deployment", "mmesh-gateway")


def pod(objects):
    return deployment(objects)["spec"]["template"]["spec"]


def container(objects):
    return pod(objects)["containers"][0]


def shard(objects):
    return the(objects, "StatefulSet", "mmesh-index-4-0")


def service(objects):
    return the(objects, "Service", "mmesh")


def hpa(objects):
    return the(objects, "HorizontalPodAutoscaler", "mmesh-gateway")


def budget(objects):
    return the(objects, "PodDisruptionBudget", "mmesh-gateway")["spec"]


def policy(objects):
    return the(objects, "NetworkPolicy", "clients-to-gateway")["spec"]


def scaled(objects):
    return the(objects, "ScaledObject", "mmesh-gateway")["spec"]


def query(namespace):
    return f'mmesh:gateway_searches:demand{{namespace="{namespace}"}}'


def rules(objects):
    return the(objects, "PrometheusRule", "mmesh-symptoms")["spec"]["groups"][0]["rules"]


def set_at(found, path, value):
    *inner, last = path.split("/")
    for key in inner:
        found = found[int(key) if key.isdigit() else key]
    found[int(last) if last.isdigit() else last] = value


def put(where, path, value):
    return lambda objects: set_at(where(objects), path, value)


def drop(where, key):
    return lambda objects: where(objects).pop(key)


PLANTED = {
    # The 29 of the study.
    "an unknown field": put(container, "readynessProbe", {}),
    "a wrong type": put(deployment, "spec/replicas", "three"),
    "no selector": lambda objects: shard(objects)["spec"].pop("selector"),
    "a removed version": put(hpa, "apiVersion", "autoscaling/v2beta2"),
    "a bad quantity": put(container, "resources/requests/memory", "1 GB"),
    "a bad enum": put(hpa, "spec/behavior/scaleUp/policies/0/type", "Percents"),
    "a target port that no pod has": put(service, "spec/ports/0/targetPort", "http"),
    "a port name that is too long": put(container, "ports/0/name", "grpc_for_everybody"),
    "a service that picks nothing": put(service, "spec/selector", {"app": "no"}),
    "a selector unlike the labels": put(deployment, "spec/selector/matchLabels", {"app": "no"}),
    "no resources": drop(container, "resources"),
    "a scaler of nothing": put(hpa, "spec/scaleTargetRef/name", "mmesh-gate"),
    "at least more than at most": put(hpa, "spec/minReplicas", 99),
    "a budget of both kinds": put(budget, "minAvailable", 1),
    "a mount without volume": put(container, "volumeMounts/0/name", "scratches"),
    "a probe of no port": put(container, "readinessProbe/grpc/port", 50559),
    "a policy for no port": put(policy, "ingress/0/ports/0/port", "http"),
    "a set without its service": put(shard, "spec/serviceName", "mmesh-indices"),
    "no service account": put(pod, "serviceAccountName", "mmesh-nobody"),
    "a bad label": put(deployment, "metadata/labels/app.kubernetes.io~name", "two words"),
    "a bad name": put(deployment, "metadata/name", "Mmesh_Gateway"),
    "privileges": put(container, "securityContext/privileged", True),
    "a scaled object's unknown field": put(scaled, "pollInterval", 5),
    "a scaled object without triggers": drop(scaled, "triggers"),
    "a monitor whose endpoints are no list": lambda objects: set_at(
        the(objects, "ServiceMonitor", "mmesh"), "spec/endpoints", {"port": "grpc"}
    ),
    "a monitor's unknown field": lambda objects: set_at(
        the(objects, "PodMonitor", "mmesh-index"), "spec/podMetricsEndpoints/0/prot", "metrics"
    ),
    "a bad duration": lambda objects: set_at(rules(objects), "0/for", "5 minutes"),
    "bad PromQL": lambda objects: set_at(rules(objects), "0/expr", "sum(rate(up)"),
    "a monitor of no port": lambda objects: set_at(
        the(objects, "ServiceMonitor", "mmesh"), "spec/endpoints/0/port", "metrics"
    ),
    # Ours.
    "a query whose failure shrinks": lambda objects: set_at(
        scaled(objects), "triggers/0/metadata/ignoreNullValues", "true"
    ),
    "a query about another namespace": lambda objects: set_at(
        scaled(objects), "triggers/0/metadata/query", query(namespace="search-eu")
    ),
    "a query about every namespace": lambda objects: set_at(
        scaled(objects), "triggers/0/metadata/query", "mmesh:gateway_searches:demand"
    ),
    "a part of a query about another namespace": lambda objects: set_at(
        scaled(objects),
        "triggers/0/metadata/query",
        f"max({query(namespace='mmesh')} or {query(namespace='search-eu')})",
    ),
    "a metric of another namespace": put(hpa, f"{METRIC}/namespace", "search-eu"),
    "a metric of every namespace": put(hpa, METRIC, {"shard": "0"}),
    "a scaler in another namespace than its query": lambda objects: set_at(
        the(objects, "ScaledObject", "mmesh-index-4-0"), "metadata/namespace", "search-eu"
    ),
    "a metric that nobody exports": lambda objects: set_at(
        rules(objects), "0/expr", "mmesh_gateway_request_total > 0"
    ),
    "a secret in a file": put(container, "env", [{"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}]),
    "an address with a password": put(
        container, "env", [{"name": "LOG", "value": "postgresql://u:p@host/db"}]
    ),
    "a setting that no service has": put(container, "env", [{"name": "MMESH_GATEWAY_X"}]),
    "too little time to drain": put(pod, "terminationGracePeriodSeconds", 30),
    "a tag that moves": put(container, "image", "mmesh-gateway:latest"),
    "root": put(pod, "securityContext/runAsNonRoot", False),
    "a writable root": put(container, "securityContext/readOnlyRootFilesystem", False),
    "a log of its own": lambda objects: set_at(
        the(objects, "Job", "mmesh-migration"),
        "spec/template/spec/containers/0/env/0",
        {"name": "MMESH_INDEX_LOG_URL", "value": "postgresql+psycopg://mmesh@elsewhere/mmesh"},
    ),
    "a call that no policy lets in": lambda objects: set_at(
        the(objects, "NetworkPolicy", "gateway-to-encoder"),
        "spec/ingress/0/from/0/podSelector/matchLabels",
        {"app.kubernetes.io/name": "mmesh-reranker"},
    ),
    "a call that no policy lets out": lambda objects: the(
        objects, "NetworkPolicy", "gateway-to-services"
    )["spec"]["egress"].pop(0),
    "a number beside a scaled object": put(deployment, "spec/replicas", 2),
    "a number beside an autoscaler": lambda objects: (
        objects.remove(the(objects, "ScaledObject", "mmesh-gateway")),
        set_at(deployment(objects), "spec/replicas", 2),
    ),
    "a ConfigMap that is not there": put(container, "envFrom/0/configMapRef/name", "mmesh-gate"),
    "a spread that counts others": put(
        pod, "topologySpreadConstraints/0/labelSelector/matchLabels", {"app": "no"}
    ),
}


@pytest.mark.parametrize("mistake", PLANTED)
def test_a_mistake_is_found(mistake):
    objects, known = sound()
    objects = copy.deepcopy(objects)
    PLANTED[mistake](objects)
    assert problems_of(objects, set(known)) != []


def test_the_study_planted_29():
    assert list(PLANTED).index("a query whose failure shrinks") == 29
