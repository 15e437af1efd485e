"""The wire format: plain Python to protobuf messages and back, with no logic beyond that.

`*_to_pb` builds a message, `*_from_pb` reads one and raises `InvalidField` where it is malformed.
`search` and `status` have what only the public API speaks of, `errors` also `google.rpc.Status`,
`transport` channels.
What may enter: what knows both protobuf and our types. What may not: decisions.

Lazy imports (PEP 562), as in `mmesh`: a program that only searches does not load what collections
and filters take.
"""

import typing

from mmesh.lazy_imports import lazy_getattr as _lazy_getattr

if typing.TYPE_CHECKING:
    from mmesh.wire.attributes import (
        attribute_from_pb,
        attribute_to_pb,
        attributes_from_pb,
        attributes_to_pb,
    )
    from mmesh.wire.candidates import (
        MAX_PAGE,
        candidate_from_pb,
        candidate_to_pb,
        page_from_pb,
        page_size_of,
        value_count,
    )
    from mmesh.wire.collections import (
        change_from_pb,
        change_to_pb,
        collection_from_pb,
        collection_to_pb,
        settings_from_pb,
        settings_to_pb,
    )
    from mmesh.wire.content import content_from_pb, content_to_pb, modality_from_pb, modality_to_pb
    from mmesh.wire.enums import (
        by_number,
        consistency_from_pb,
        consistency_to_pb,
        enum_from_pb,
    )
    from mmesh.wire.errors import make_error, problem_from_pb, problem_to_pb
    from mmesh.wire.filters import FilterReader, filter_from_pb, filter_to_pb
    from mmesh.wire.vectors import (
        data_type_from_pb,
        directions_to_pb,
        row_count,
        vectors_from_pb,
        vectors_to_pb,
    )

__all__ = [
    "MAX_PAGE",
    "FilterReader",
    "attribute_from_pb",
    "attribute_to_pb",
    "attributes_from_pb",
    "attributes_to_pb",
    "by_number",
    "candidate_from_pb",
    "candidate_to_pb",
    "change_from_pb",
    "change_to_pb",
    "collection_from_pb",
    "collection_to_pb",
    "consistency_from_pb",
    "consistency_to_pb",
    "content_from_pb",
    "content_to_pb",
    "data_type_from_pb",
    "directions_to_pb",
    "enum_from_pb",
    "filter_from_pb",
    "filter_to_pb",
    "make_error",
    "modality_from_pb",
    "modality_to_pb",
    "page_from_pb",
    "page_size_of",
    "problem_from_pb",
    "problem_to_pb",
    "row_count",
    "settings_from_pb",
    "settings_to_pb",
    "value_count",
    "vectors_from_pb",
    "vectors_to_pb",
]

if not typing.TYPE_CHECKING:  # or type checkers would take any name for one of ours
    _MODULES = {
        "attributes": "attribute_from_pb attribute_to_pb attributes_from_pb attributes_to_pb",
        "candidates": "MAX_PAGE candidate_from_pb candidate_to_pb page_from_pb page_size_of "
        "value_count",
        "collections": "change_from_pb change_to_pb collection_from_pb collection_to_pb "
        "settings_from_pb settings_to_pb",
        "content": "content_from_pb content_to_pb modality_from_pb modality_to_pb",
        "enums": "by_number consistency_from_pb consistency_to_pb enum_from_pb",
        "errors": "make_error problem_from_pb problem_to_pb",
        "filters": "FilterReader filter_from_pb filter_to_pb",
        "vectors": "data_type_from_pb directions_to_pb row_count vectors_from_pb vectors_to_pb",
    }
    __getattr__ = _lazy_getattr(__name__, _MODULES)
