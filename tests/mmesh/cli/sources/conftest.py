"""Files read as `mmesh ingest` reads them, without a mesh."""

from __future__ import annotations

import io

import pytest
from PIL import Image as Pillow

from mmesh.cli.files.sources.attribute_values import ColumnRules
from mmesh.cli.files.sources.items import PassedOver, Unreadable, reason_of
from mmesh.cli.files.sources.notes import Notes
from mmesh.cli.files.sources.reading import Reading, read_sources


class Read:
    """What a source gave: candidates by id, in order, refusals, and notes by topic."""

    def __init__(self, *sources, **how) -> None:
        notes = Notes()
        self.candidates, self.refused, self.passed_over = [], [], []
        for one in read_sources(sources, how.get("reading") or Reading(**how), notes):
            if isinstance(one, Unreadable):
                self.refused.append(one)
                continue
            if isinstance(one, PassedOver):
                self.passed_over.append(one.id)
                continue
            try:
                self.candidates.append(one.make())
            except Exception as error:
                self.refused.append(Unreadable(one.id, reason_of(error)))
        self.notes = {}
        for line in notes.lines():
            said = f"{line.count} {line.what} ({line.where}); "
            self.notes[line.topic] = self.notes.get(line.topic, "") + said
        self.by_id = {one.id: one for one in self.candidates}

    @property
    def ids(self):
        return [one.id for one in self.candidates]

    @property
    def refused_ids(self):
        return [one.id for one in self.refused]

    def attributes(self, candidate_id):
        return dict(self.by_id[candidate_id].attributes)

    def text(self, candidate_id):
        return self.by_id[candidate_id].content.text


@pytest.fixture
def read():
    return Read


@pytest.fixture
def rules():
    return lambda **how: ColumnRules(**({"types": {}} | how))


@pytest.fixture
def picture():
    """Make the bytes of a picture in any format of Pillow."""

    def make(kind: str = "PNG", mode: str = "RGB", size=(8, 6), **options) -> bytes:
        out = io.BytesIO()
        Pillow.new(mode, size, 120 if mode in ("L", "I;16", "I", "F") else None).save(
            out, kind, **options
        )
        return out.getvalue()

    return make
