"""The SDK offers every RPC of the public API, and `mmesh` exports what its calls speak of."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import re
import types
import typing

import pytest
from numpy.typing import ArrayLike, NDArray

import mmesh
from mmesh import AsyncClient, Client
from mmesh.api.collection.v1 import collection_pb2
from mmesh.api.content.v1 import content_pb2
from mmesh.api.gateway.v1 import gateway_pb2
from mmesh.api.vector.v1 import vector_pb2
from mmesh.filters import Filter
from mmesh.ingest import Progress
from mmesh.vectors import FloatMatrix

SERVICE = gateway_pb2.DESCRIPTOR.services_by_name["RetrievalService"]
FOR_TYPES = {
    "Filter": Filter,
    "ArrayLike": ArrayLike,
    "NDArray": NDArray,
    "FloatMatrix": FloatMatrix,
    "Progress": Progress,
}
"""Names in annotations that the SDK does not import."""
CALLS = sorted(re.sub(r"(?<!^)(?=[A-Z])", "_", method.name).lower() for method in SERVICE.methods)


def public_names(cls: type) -> list[str]:
    return sorted(name for name in dir(cls) if not name.startswith("_"))


@pytest.mark.parametrize("cls", [AsyncClient, Client], ids=lambda cls: cls.__name__)
def test_a_client_offers_every_rpc_in_snake_case_and_nothing_else_but_close(cls):
    assert public_names(cls) == sorted([*CALLS, "close"])


@pytest.mark.parametrize("name", CALLS)
def test_both_clients_take_the_same_arguments(name):
    def parameters(cls: type) -> list[tuple[str, object, object]]:
        signature = inspect.signature(getattr(cls, name))
        return [(p.name, p.kind, p.default) for p in signature.parameters.values()]

    assert parameters(Client) == parameters(AsyncClient)


@pytest.mark.parametrize("name", [name for name in CALLS if name != "ingest"])
def test_every_unary_call_takes_a_timeout_that_is_not_endless_by_default(name):
    timeout = inspect.signature(getattr(AsyncClient, name)).parameters["timeout"]
    assert timeout.kind is inspect.Parameter.KEYWORD_ONLY
    assert 0 < timeout.default < 600


@pytest.mark.parametrize("cls", [AsyncClient, Client], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("name", [*CALLS, "close"])
def test_every_call_has_a_docstring_of_its_own(cls, name):
    assert vars(cls)[name].__doc__


def test_the_exports_are_sorted_and_complete():
    for name in mmesh.__all__:
        getattr(mmesh, name)  # loaded by now
    own = {
        name
        for name, value in vars(mmesh).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert list(mmesh.__all__) == sorted(mmesh.__all__, key=lambda name: (not name.isupper(), name))
    assert set(mmesh.__all__) == own


def classes_in(hint: object, seen: set[type]) -> set[type]:
    """Return the classes of mmesh that a type names, those of their fields included."""
    for part in typing.get_args(hint):
        classes_in(part, seen)
    is_ours = isinstance(hint, type) and hint.__module__.startswith("mmesh.")
    if is_ours and hint not in seen:
        seen.add(hint)
        if dataclasses.is_dataclass(hint):
            for field_hint in typing.get_type_hints(hint, localns=FOR_TYPES).values():
                classes_in(field_hint, seen)
    return seen


def test_every_class_that_a_call_takes_or_returns_is_exported():
    named: set[type] = set()
    for name in CALLS:
        call = getattr(AsyncClient, name)
        known = FOR_TYPES | {one: getattr(mmesh, one) for one in mmesh.__all__}
        for hint in typing.get_type_hints(call, localns=known).values():
            classes_in(hint, named)
    # Conditions are written as text for `parse_filter`, or built from the classes of mmesh.filters.
    spoken_of = {cls.__name__ for cls in named if cls.__module__ != "mmesh.filters"}
    assert spoken_of
    assert spoken_of <= set(mmesh.__all__)


def test_every_enum_of_the_public_api_has_a_value_for_each_of_the_wire():
    for exported, wire_enum in (
        (mmesh.MergePolicy, gateway_pb2.MergePolicy),
        (mmesh.RerankOutcome, gateway_pb2.RerankOutcome),
        (mmesh.ServiceRole, gateway_pb2.ServiceRole),
        (mmesh.ServiceState, gateway_pb2.ServiceState),
        (mmesh.Consistency, collection_pb2.Consistency),
        (mmesh.Modality, content_pb2.Modality),
        (mmesh.DataType, vector_pb2.DataType),
    ):
        assert issubclass(exported, enum.Enum)
        prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", exported.__name__).upper()
        on_the_wire = {
            name.removeprefix(f"{prefix}_")
            for name in wire_enum.keys()  # noqa: SIM118  # no mapping
        }
        assert {value.name for value in exported} == on_the_wire - {"UNSPECIFIED"}
