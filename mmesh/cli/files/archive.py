"""Exports of collections: a Parquet file with a row for each candidate.

The columns are id, modality, parts (JSON; pictures by their number in `images`), text (of all
parts, for people), images (binaries), attributes (JSON; moments as {"timestamp": RFC 3339}) and
vector. The metadata says the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from itertools import chain
from pathlib import Path
from typing import Any

import click
import numpy as np

from mmesh.candidates import Candidate, Embedded, Page
from mmesh.cli.files.parquet import batches_of, import_arro3, schema_of, vectors_of
from mmesh.cli.files.sources.items import Item, Unreadable, item_of, source_name
from mmesh.content import AttributeValue, Content, Image, Part
from mmesh.values.timestamps import format_timestamp, parse_timestamp
from mmesh.vectors import FloatMatrix

FORMAT = 1
_KEY = "mmesh."
_MOMENT = "timestamp"
"""Key of a moment in the JSON of attributes, so that it is read back as one."""
_READ_ROWS = 8
_GROUP_ROWS, _GROUP_BYTES = 8192, 32 << 20
"""Most rows of a row group, which is held in memory until it is written, and about its size."""
_PICTURE_ROWS = 64
"""Of a collection with pictures, whose first page may have none."""
_ROWS_AT_ONCE = 8
"""Rows after which the writer sees whether a page, which readers hold as a whole, is full."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the file says of itself, each under its name after "mmesh."."""

    collection: str
    model_fingerprint: str
    dim: int
    token: str
    """Newest write of the collection when the export began."""
    count: int
    """Candidates of the collection when the export began."""
    format: int = FORMAT


def write_archive(
    path: Path,
    header: Header,
    pages: Iterator[Page],
    *,
    images: bool,
    on_rows: Callable[[int], None],
    pictures: int = 0,
) -> int:
    """Write candidates page by page; return how many. The pages say whether there are vectors.

    `pictures` says how many candidates have one, wherever they come: row groups are small then.
    What `pages` raises is raised again.
    """
    core, io = import_arro3()
    first = next(pages, None) or Page((), "")
    schema = _schema(core, images, header.dim if first.vectors is not None else None)
    group_rows = min(_group_rows(first), _PICTURE_ROWS if images and pictures else _GROUP_ROWS)
    rows = _Rows(core, schema, chain([first], pages), on_rows)
    del first  # a page with pictures takes tens of megabytes
    metadata = {_KEY + name: str(value) for name, value in asdict(header).items()}
    try:
        io.write_parquet(
            core.RecordBatchReader.from_batches(schema, rows.batches()),
            str(path),
            key_value_metadata=metadata,
            max_row_group_size=group_rows,
            compression="zstd(3)",
            write_batch_size=_ROWS_AT_ONCE,
        )
    except Exception as error:
        raise rows.failure or click.ClickException(f"{path} cannot be written: {error}") from None
    return rows.count


def _group_rows(page: Page) -> int:
    """Return how many rows a row group has, guessed by a page: the writer takes one number."""
    if not page.candidates:
        return _GROUP_ROWS
    width = 0 if page.vectors is None else page.vectors.nbytes
    size = width + sum(64 + one.content.size for one in page.candidates)
    return min(_GROUP_ROWS, max(1, len(page.candidates) * _GROUP_BYTES // max(1, size)))


def _schema(core: Any, images: bool, dim: int | None) -> Any:
    kinds = core.DataType
    fields = [
        core.Field(name, kinds.utf8(), nullable=False)
        for name in ("id", "modality", "parts", "text", "attributes")
    ]
    if images:
        item = core.Field("item", kinds.binary(), nullable=False)
        fields.append(core.Field("images", kinds.list(item), nullable=False))
    if dim is not None:
        item = core.Field("item", kinds.float32(), nullable=False)
        fields.append(core.Field("vector", kinds.list(item, dim), nullable=False))
    return core.Schema(fields)


class _Rows:
    """Pages as record batches; keeps what interrupts them, which the writer would reword."""

    def __init__(
        self,
        core: Any,
        schema: Any,
        pages: Iterator[Page],
        on_rows: Callable[[int], None],
    ) -> None:
        self._core, self._schema = core, schema
        self._pages, self._on_rows = pages, on_rows
        self.count = 0
        self.failure: BaseException | None = None

    def batches(self) -> Iterator[Any]:
        """Yield a batch for each page."""
        try:
            for page in self._pages:
                if page.candidates:
                    yield self._batch_of(page)
                self.count += len(page.candidates)
                self._on_rows(self.count)
        except BaseException as failure:
            self.failure = failure
            raise

    def _batch_of(self, page: Page) -> Any:
        columns = {
            "id": [one.id for one in page.candidates],
            "modality": [one.content.modality.value for one in page.candidates],
            "parts": [_parts_json(one.content) for one in page.candidates],
            "text": [one.content.text for one in page.candidates],
            "attributes": [
                json.dumps(dict(one.attributes), ensure_ascii=False, default=_moment_json)
                for one in page.candidates
            ],
        }
        kind = self._core.DataType.utf8()
        made = {name: self._core.Array(values, kind) for name, values in columns.items()}
        if "images" in self._schema.names:
            made["images"] = self._images_of(page)
        if page.vectors is not None:
            made["vector"] = self._vectors_of(page.vectors)
        return self._core.RecordBatch.from_arrays(
            [made[name] for name in self._schema.names], schema=self._schema
        )

    def _images_of(self, page: Page) -> Any:
        pictures = [[image.data for image in one.content.images] for one in page.candidates]
        ends = np.cumsum([0, *map(len, pictures)], dtype=np.int32)
        flat = [data for of_one in pictures for data in of_one]
        return self._core.list_array(
            self._core.Array(ends, self._core.DataType.int32()),
            self._core.Array(flat, self._core.DataType.binary()),
            type=self._schema.field("images").type,
        )

    def _vectors_of(self, vectors: FloatMatrix) -> Any:
        flat = self._core.Array(vectors.ravel(), self._core.DataType.float32())
        kind = self._schema.field("vector").type
        return self._core.fixed_size_list_array(flat, vectors.shape[1], type=kind)


def _parts_json(content: Content) -> str:
    pictures = iter(range(len(content.images)))
    parts: list[dict[str, Any]] = [
        {"text": part}
        if isinstance(part, str)
        else {"image": next(pictures), "media_type": part.media_type}
        for part in content.parts
    ]
    return json.dumps(parts, ensure_ascii=False)


def read_header(path: Path) -> Header:
    """Return what an export says of itself.

    Raises:
        click.ClickException: it is no export, or one of a later version.
    """
    return header_of(schema_of(path).metadata or {}, path)


def header_of(metadata: Mapping[bytes, bytes], path: Path) -> Header:
    """Return what the metadata of an export say; see `read_header`."""
    found = {
        name.decode().removeprefix(_KEY): value.decode()
        for name, value in metadata.items()
        if name.decode().startswith(_KEY)
    }
    try:
        numbers = {name: int(found[name]) for name in ("dim", "count", "format")}
        header = Header(**(found | numbers))  # type: ignore[arg-type]  # those that are no strings
    except (KeyError, TypeError, ValueError):
        raise click.ClickException(
            f"{path} was not made by `mmesh export`; `mmesh ingest` reads any Parquet file"
        ) from None
    if header.format > FORMAT:
        raise click.ClickException(f"{path} was made by a later version of mmesh")
    return header


def has_vectors(path: Path) -> bool:
    """Tell whether an export has the column `vector`."""
    return "vector" in schema_of(path).names


def archive_items(path: Path, *, vectors: bool) -> Iterator[Item | Unreadable]:
    """Yield the items of an export in order; they have their vectors if wanted."""
    source = source_name(path)
    for one in read_archive(path, vectors=vectors):
        yield one if isinstance(one, Unreadable) else item_of(one, source)


def read_archive(path: Path, *, vectors: bool) -> Iterator[Candidate | Embedded | Unreadable]:
    """Yield the candidates of an export in order, with their vectors if wanted."""
    yield from read_batches(batches_of(path, _READ_ROWS), path, vectors=vectors)


def read_batches(
    batches: Iterable[Any], path: Path, *, vectors: bool
) -> Iterator[Candidate | Embedded | Unreadable]:
    """Yield the candidates of the record batches of an export; see `read_archive`."""
    for batch in batches:
        names = [name for name in batch.column_names if name != "vector"]
        rows = batch.select(names).to_struct_array().to_pylist()
        matrix = vectors_of(batch, path) if vectors else None
        for number, row in enumerate(rows):
            made = _candidate_of(row)
            if matrix is None or isinstance(made, Unreadable):
                yield made
            else:
                yield Embedded(made, matrix[number])


def _candidate_of(row: dict[str, Any]) -> Candidate | Unreadable:
    try:
        parts = tuple(_part_of(part, row.get("images")) for part in json.loads(row["parts"]))
        attributes = json.loads(row["attributes"])
        typed = {name: _value_of(value) for name, value in attributes.items()}
        return Candidate(row["id"], Content(parts), typed)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        return Unreadable(str(row.get("id")), str(error) or type(error).__name__)


def _moment_json(value: date) -> dict[str, str]:
    return {_MOMENT: format_timestamp(value)}


def _value_of(value: Any) -> AttributeValue:
    if isinstance(value, list):
        return tuple(value)
    single: AttributeValue = parse_timestamp(value[_MOMENT]) if isinstance(value, dict) else value
    return single


def _part_of(part: dict[str, Any], images: list[bytes] | None) -> Part:
    if "text" in part:
        return str(part["text"])
    if images is None:
        raise ValueError("its pictures were left out of the export")
    return Image(images[part["image"]], part["media_type"])
