"""Templates: what comes with mmesh loads, and what is faulty is refused by name."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from mmesh.content import Modality
from mmesh.errors import InvalidField
from mmesh.models.judges.templates import (
    load_template,
    load_template_set,
    parse_template,
    template_names,
)

FOLDER = Path(load_template.__code__.co_filename).with_name("templates")
BUILT_IN = FOLDER / "true-false.v1.toml"
SOURCE = BUILT_IN.read_text()
TEXT, IMAGE, IMAGE_TEXT = Modality.TEXT, Modality.IMAGE, Modality.IMAGE_TEXT
MBEIR = {
    (TEXT, TEXT),
    (TEXT, IMAGE),
    (TEXT, IMAGE_TEXT),
    (IMAGE, TEXT),
    (IMAGE, IMAGE),
    (IMAGE_TEXT, TEXT),
    (IMAGE_TEXT, IMAGE),
    (IMAGE_TEXT, IMAGE_TEXT),
}
"""Modalities of query and candidate in the task families of M-BEIR."""


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """Return a copy of the folder `mbeir.v1`, to change."""
    return shutil.copytree(FOLDER / "mbeir.v1", tmp_path / "mine")


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


def test_each_task_family_of_mbeir_is_asked_in_its_own_words() -> None:
    templates = load_template_set("mbeir.v1")
    assert set(templates.by_task) == MBEIR
    assert len({templates.choose(*task).user for task in MBEIR}) == len(MBEIR)
    assert templates.choose(IMAGE, IMAGE_TEXT) is templates.base


def test_candidates_of_all_modalities_share_the_words_up_to_the_query() -> None:
    templates = load_template_set("mbeir.v1")
    for query in Modality:
        shared = {
            (template.system, template.instruction, template.user.partition("{query}")[0])
            for template in (templates.choose(query, candidate) for candidate in Modality)
        }
        assert len(shared) == 1


def test_the_hash_of_a_folder_changes_with_any_file(copied: Path) -> None:
    lines = (
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(copied.iterdir())
    )
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert load_template_set(copied).identity == f"mbeir@1:{digest[:12]}"
    assert load_template_set(copied).identity == load_template_set("mbeir.v1").identity
    words = copied / "image-to-text.toml"
    words.write_text(words.read_text().replace("picture", "image"))
    assert load_template_set(copied).identity != load_template_set("mbeir.v1").identity


def test_a_template_of_one_file_serves_all_task_families() -> None:
    templates = load_template_set("true-false.v1")
    assert templates.choose(TEXT, IMAGE) == templates.base == load_template("true-false.v1")
    assert templates.identity == templates.base.identity


@pytest.mark.parametrize(
    ("name", "text", "field"),
    [
        ("text-to-video.toml", "", "template"),
        ("text-to-text.toml", 'instruction = "x"', "template.user"),
        ("text-to-text.toml", "compares_modalities = true", "template.compares_modalities"),
        ("text-to-text.toml", 'instruction = "x"\nuser = "{query}"', "template.user"),
        ("base.toml", "", "template.answers"),
    ],
)
def test_a_fault_in_a_folder_is_refused_by_name(
    copied: Path, name: str, text: str, field: str
) -> None:
    (copied / name).write_text(text)
    with pytest.raises(InvalidField) as failure:
        load_template_set(copied)
    assert failure.value.field == field


def test_a_folder_without_a_base_is_refused(copied: Path) -> None:
    (copied / "base.toml").unlink()
    with pytest.raises(InvalidField, match="base"):
        load_template_set(copied)


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
