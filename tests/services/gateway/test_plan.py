import pytest

from mmesh.content import Content, Modality
from mmesh.search import Search
from services.gateway.search.plan import make_plan, target_of

TEXT, IMAGE, PAIR = Modality.TEXT, Modality.IMAGE, Modality.IMAGE_TEXT


# The first instructions of M-BEIR's tasks and variants of them (UniIR, arXiv 2311.17136).
@pytest.mark.parametrize(
    ("instruction", "target"),
    [
        ("Find a caption for the news in the given photo.", TEXT),
        ("Identify the news-related image in line with the described event.", IMAGE),
        ("Find a product description for the fashion item in the image.", TEXT),
        ("Based on the following fashion description, retrieve the best matching image.", IMAGE),
        ("Retrieve passages from Wikipedia that provide answers to the question.", TEXT),
        ("Find a Wikipedia image that answers this question.", IMAGE),
        ("Find a day-to-day image that looks similar to the provided image.", IMAGE),
        ("Retrieve a Wikipedia paragraph that provides an answer about the image.", TEXT),
        ("Retrieve a Wikipedia image-description pair that provides evidence.", PAIR),
        ("Find a fashion image that aligns with the reference image and style note.", IMAGE),
        ("Find me an everyday image that matches the given caption.", IMAGE),
        ("Find an image caption describing the following everyday image.", TEXT),
        ("Identify the image showcasing the described everyday scene", IMAGE),
        ("I want to retrieve an image of this daily life description", IMAGE),
        ("Can you help me find a daily image that meets the modification?", IMAGE),
        ("I'm looking for a similar everyday image with the described changes", IMAGE),
        ("Find an image with its description that answers this question.", PAIR),
        ("Find pictures with captions about cats", PAIR),
        ("Show me illustrated articles on rockets", PAIR),
        ("", None),
        ("Find things like this.", None),
        ("The image shows a cat.", None),
    ],
)
def test_an_instruction_names_its_target(instruction, target):
    assert target_of(instruction) is target


def search(**options):
    return Search("c", Content.of("a cat"), **options)


def test_the_request_decides_before_the_instruction():
    plan = make_plan(search(target=TEXT, instruction="Find an image of it."))
    assert (plan.modalities, plan.source) == ((TEXT,), "requested")


def test_the_instruction_decides_when_the_request_does_not():
    plan = make_plan(search(instruction="Find an image of it."))
    assert (plan.modalities, plan.source) == ((IMAGE,), "instruction")


def test_without_either_all_modalities_are_searched():
    assert make_plan(search()).modalities == tuple(Modality)
