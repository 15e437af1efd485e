"""The state of what is mined: one alone of a snapshot, else whatever it is at each moment.

A snapshot is a read-only collection, such as `CopyCollection` makes. Its token names the state, so
each answer says whether it is of that.
"""

from __future__ import annotations

from mmesh.aio import AsyncClient
from mmesh.collections import Collection
from mmesh.errors import FailedPrecondition, ModelMismatch
from mmesh.values.tokens import Token


class State:
    """What is known of the states in which a collection was searched."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._begun = Token.parse(collection.token)
        self.writes = 0
        """Writes that came in meanwhile, as far as was seen."""

    def saw(self, text: str) -> None:
        """Take note of the token of an answer.

        Raises:
            FailedPrecondition: it is of another collection, or of another state of a snapshot.
        """
        token, name = Token.parse(text), self._collection.name
        if not token.shares_history(self._begun):
            raise FailedPrecondition(
                f"{name!r} was deleted and made anew while it was mined; mine it again",
                {"collection": name},
            )
        if self._collection.settings.read_only and text != self._collection.token:
            raise FailedPrecondition(
                f"the snapshot {name!r} was written to while it was mined; make another",
                {"collection": name},
            )
        self.writes = max(self.writes, token.seq - self._begun.seq)


async def find_mined(client: AsyncClient, name: str, snapshot: str) -> Collection:
    """Return the collection to mine: that of a name or alias, or a snapshot of it.

    Raises:
        CollectionNotFound: there is none, or the snapshot was deleted.
        FailedPrecondition: the snapshot is none, as it can be written to.
        ModelMismatch: the snapshot is of another model than the collection is now.
    """
    collection = await client.get_collection(name)
    if not snapshot:
        return collection
    mined = await client.get_collection(snapshot)
    if not mined.settings.read_only:
        raise FailedPrecondition(
            f"{snapshot!r} is no snapshot, as it can be written to; make one with "
            f"`mmesh collection copy {name} NAME`",
            {"collection": mined.name},
        )
    if mined.model_fingerprint != collection.model_fingerprint:
        raise ModelMismatch(
            f"the snapshot {snapshot!r} is of model {mined.model_fingerprint!r}, and {name!r} is "
            f"of {collection.model_fingerprint!r} now; make another, or mine {snapshot!r} itself",
            {"collection": mined.name},
        )
    return mined
