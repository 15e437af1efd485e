"""Exports of collections: a Parquet file with a row for each candidate.

The columns are id, modality, parts (JSON; pictures by their number in `images`), text (of all
parts, for people), images (binaries), attributes (JSON) and vector. The metadata says the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from mmesh.candidates import Candidate, Embedded, Page
from mmesh.cli.files.parquet import batches_of, import_arro3, open_parquet, vectors_of
from mmesh.cli.files.sources import Unreadable
from mmesh.content import Content, Image, Part
from mmesh.vectors import FloatMatrix

FORMAT = 1
_KEY = "mmesh."
_READ_ROWS = 64
_GROUP_ROWS, _GROUP_ROWS_WITH_IMAGES = 8192, 256
"""Rows of a group, which is held in memory until it is written."""


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
) -> int:
    """Write candidates page by page; return how many. The pages say whether there are vectors.

    What `pages` raises is raised again.
    """
    core, io = import_arro3()
    first = next(pages, None) or Page((), "")
    schema = _schema(core, images, header.dim if first.vectors is not None else None)
    rows = _Rows(core, schema, first, pages, on_rows)
    metadata = {_KEY + name: str(value) for name, value in asdict(header).items()}
    try:
        io.write_parquet(
            core.RecordBatchReader.from_batches(schema, rows.batches()),
            str(path),
            key_value_metadata=metadata,
            max_row_group_size=_GROUP_ROWS_WITH_IMAGES if images else _GROUP_ROWS,
            compression="zstd(3)",
        )
    except Exception as error:
        raise rows.failure or click.ClickException(f"{path} cannot be written: {error}") from None
    return rows.count


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
        first: Page,
        pages: Iterator[Page],
        on_rows: Callable[[int], None],
    ) -> None:
        self._core, self._schema, self._first = core, schema, first
        self._pages, self._on_rows = pages, on_rows
        self.count = 0
        self.failure: BaseException | None = None

    def batches(self) -> Iterator[Any]:
        """Yield a batch for each page."""
        page: Page | None = self._first
        try:
            while page is not None:
                if page.candidates:
                    yield self._batch_of(page)
                self.count += len(page.candidates)
                self._on_rows(self.count)
                page = next(self._pages, None)
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
                json.dumps(dict(one.attributes), ensure_ascii=False) for one in page.candidates
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
    metadata = open_parquet(path).schema.metadata or {}
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
    return "vector" in open_parquet(path).schema.names


def read_archive(path: Path, *, vectors: bool) -> Iterator[Candidate | Embedded | Unreadable]:
    """Yield the candidates of an export in order, with their vectors if wanted."""
    for batch in batches_of(path, _READ_ROWS):
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
        typed = {n: tuple(v) if isinstance(v, list) else v for n, v in attributes.items()}
        return Candidate(row["id"], Content(parts), typed)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        return Unreadable(str(row.get("id")), str(error) or type(error).__name__)


def _part_of(part: dict[str, Any], images: list[bytes] | None) -> Part:
    if "text" in part:
        return str(part["text"])
    if images is None:
        raise ValueError("its pictures were left out of the export")
    return Image(images[part["image"]], part["media_type"])
