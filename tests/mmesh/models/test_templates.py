"""Templates: what comes with mmesh loads, and what is faulty is refused by name."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from mmesh.content import Modality
from mmesh.errors import InvalidField
from mmesh.models.templates import load_template, parse_template, template_names

BUILT_IN = Path(load_template.__code__.co_filename).with_name("templates") / "true-false.v1.toml"
SOURCE = BUILT_IN.read_text()


@pytest.mark.parametrize("name", template_names())
def test_templates_that_come_with_mmesh_load_under_their_name(name: str) -> None:
    template = load_template(name)
    assert f"{template.name}.v{template.version}" == name


def test_identity_is_name_version_and_hash_of_the_file() -> None:
    digest = hashlib.sha256(BUILT_IN.read_bytes()).hexdigest()
    assert load_template("true-false.v1").identity == f"true-false@1:{digest[:12]}"


def test_a_template_of_ones_own_is_read_from_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(SOURCE.replace("image = 0.5", "image = 0.25"))
    assert load_template(path).weights[Modality.IMAGE] == 0.25
    assert load_template(path).identity != load_template("true-false.v1").identity


def test_filling_does_not_look_for_slots_in_what_is_filled_in() -> None:
    template = load_template("true-false.v1")
    text = template.filled({"instruction": "{query}", "query": "{candidate}", "candidate": "c"})
    assert "Task:\n{query}\n\nQuery:\n{candidate}\n\nCandidate:\nc\n" in text


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("version = 1", 'version = "1"', "template.version"),
        ('true = "True"', "", "template.answers.true"),
        ('false = "False"', 'false = "True"', "template.answers"),
        ("image_text = 0.5", "image_text = 1.5", "template.weights.image_text"),
        ("{query}", "{candidate}", "template.user"),
        ("[answers]", "[answers", "template"),
    ],
)
def test_a_fault_is_refused_by_the_name_of_its_field(old: str, new: str, field: str) -> None:
    with pytest.raises(InvalidField) as failure:
        parse_template(SOURCE.replace(old, new).encode())
    assert failure.value.field == field


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InvalidField, match=r"true-false\.v1"):
        load_template("true-or-false")
    with pytest.raises(InvalidField, match="cannot be read"):
        load_template(tmp_path / "none.toml")
