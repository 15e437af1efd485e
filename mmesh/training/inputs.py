"""What a run reads, all of it before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from mmesh.training.held_out import HeldOut, read_held_out
from mmesh.training.recipe import BASE, Recipe
from mmesh.training.sources import Loaded, Source, digest_of, load, pool_of


@dataclass(frozen=True)
class Inputs:
    """The data of a run by name."""

    data: Mapping[str, Loaded]
    """What its stages train on."""
    held: Mapping[str, HeldOut]
    pools: Mapping[str, str]
    """Digests of all candidates, where negatives are mined among them."""

    @property
    def has_instructions(self) -> bool:
        """Whether a query that is trained on has one."""
        return any(one.instruction for each in self.data.values() for one in each.examples)

    @property
    def has_instructions_of_pictures(self) -> bool:
        """Whether a query without text that is trained on has one."""
        return any(
            one.instruction and not one.query.text
            for each in self.data.values()
            for one in each.examples
        )

    def stage_digests(self, recipe: Recipe, base: str) -> dict[str, str]:
        """Return what tells each stage from one of another recipe or of other data.

        Args:
            recipe: the recipe.
            base: what tells the base.
        """
        digests, before = {BASE: base}, BASE
        for stage in recipe.stages:
            data = {name: self.data[name].digest() for name in stage.data}
            key = [digests[stage.begin], asdict(stage), data, recipe.seed]
            key += [asdict(recipe.adapters), recipe.dtype]
            if stage.mine:
                key += [digests[before], {name: self.pools[name] for name in stage.data}]
            digests[stage.name] = digest_of([key])
            before = stage.name
        return digests

    def measuring_digest(self, recipe: Recipe) -> str:
        """Return what tells figures from those on other data, or measured otherwise."""
        held = {name: one.digest() for name, one in self.held.items()}
        return digest_of([[held, recipe.evaluate.mesh]])


def read_inputs(recipe: Recipe, say: Callable[[str], None]) -> Inputs:
    """Return the data that the stages of a recipe name, and all that are held out.

    Raises:
        TrainingError: data are missing or broken.
    """
    used = sorted({name for stage in recipe.stages for name in stage.data})
    data = {name: load(recipe.data[name]) for name in used}
    for name, loaded in data.items():
        say(f"{name}: {len(loaded.examples)} examples{_left_out(len(loaded.broken))}")
    held = {name: read_held_out(source) for name, source in recipe.held_out.items()}
    for name, one in held.items():
        left_out = _left_out(len(one.broken))
        say(f"{name}, held out: {len(one.asked)} queries, pool {len(one.items)}{left_out}")
    mined = sorted({name for stage in recipe.stages if stage.mine for name in stage.data})
    pools = {name: _digest_of_pool(recipe.data[name], data[name]) for name in mined}
    return Inputs(data, held, pools)


def _digest_of_pool(source: Source, loaded: Loaded) -> str:
    return digest_of(item.spelt(source.root) for item in pool_of(source, loaded.examples))


def _left_out(count: int) -> str:
    return f", {count} left out" if count else ""
