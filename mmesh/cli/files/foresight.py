"""What a mesh would refuse of candidates, as far as that is known without asking it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmesh.candidates import Candidate, Embedded, check_candidate, check_vectors
from mmesh.collections import CollectionLimits, check_within
from mmesh.content import Content
from mmesh.errors import DimMismatch, InvalidImage, MmeshError, ModelMismatch
from mmesh.models.pictures import BrokenPicture, containers

if TYPE_CHECKING:
    from mmesh.collections import Collection

_PATH = "candidate"


class Foresight:
    """Judges candidates as the mesh does, by what needs neither decoding nor a model.

    Args:
        collection: that they are meant for; None where there is none yet.
        model_fingerprint: of the vectors that come with them.
    """

    def __init__(self, collection: Collection | None, model_fingerprint: str) -> None:
        self._limits = collection.settings.limits if collection else CollectionLimits()
        self._collection, self._model = collection, model_fingerprint

    def refusal_of(self, made: Candidate | Embedded) -> tuple[str, str] | None:
        """Return reason and message of what is wrong with a candidate; None for nothing known.

        Raises:
            DimMismatch, ModelMismatch: its vector is not for this collection, so that none is.
        """
        candidate = made.candidate if isinstance(made, Embedded) else made
        try:
            check_candidate(candidate, _PATH)
            check_within(candidate, self._limits, _PATH)
            if isinstance(made, Embedded):  # then nobody decodes its pictures
                check_vectors(made.vector[None], 1)
            else:
                _check_pictures(candidate.content)
        except MmeshError as error:
            return error.reason, error.message
        if isinstance(made, Embedded):
            self._check_fit(len(made.vector))
        return None

    def _check_fit(self, dim: int) -> None:
        found = self._collection
        if found is None or found.settings.mirror:  # they may be of the mirror's model
            return
        if self._model != found.model_fingerprint:
            models = (
                f"{self._model!r}; collection {found.name!r} is for {found.model_fingerprint!r}"
            )
            raise ModelMismatch(f"vectors are of model {models}")
        if dim != found.dim:
            raise DimMismatch(f"vectors are {dim} wide; collection {found.name!r} has {found.dim}")


def _check_pictures(content: Content) -> None:
    """Raise `InvalidImage` for what is no picture, too large, or visibly cut off."""
    for number, part in enumerate(content.parts):
        if isinstance(part, str):
            continue
        try:
            size = containers.size_of(part.data)
            if size is None or containers.is_cut_off(part.data):
                raise BrokenPicture(
                    f"is a broken {containers.kind_of(part.data)} file: it ends early"
                )
            containers.check_size(size)
        except BrokenPicture as error:
            raise InvalidImage(f"{_PATH}.content.parts[{number}].image.data", str(error)) from None
