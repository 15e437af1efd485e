"""Which modality an instruction names, and that reading it is cheap whatever it says."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmesh.content import MAX_INSTRUCTION_BYTES, WITH_IMAGE, Content, Modality, check_instruction
from mmesh.search import Search
from services.gateway.search.plan import (
    MOST_WORDS,
    Plan,
    Word,
    make_plan,
    named_by,
    target_of,
    words_of,
)

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
        ("I want to search for pictures", IMAGE),
        ("Trouve une image de ce lieu", None),
        ("  Find \n\t a  caption\u2003 for it", TEXT),
    ],
)
def test_an_instruction_names_its_target(instruction, target):
    assert target_of(instruction) is target


def search(**options):
    return Search("c", Content.of("a cat"), **options)


def test_the_request_decides_before_the_instruction():
    plan = make_plan(search(target=TEXT, instruction="Find an image of it."))
    assert (plan.modalities, plan.source) == ((TEXT,), "requested")


def test_a_target_may_be_several_modalities():
    search = Search("photos", Content.of("a cat"), "Find a text.", target=WITH_IMAGE)
    assert make_plan(search) == Plan((Modality.IMAGE, Modality.IMAGE_TEXT), "requested")


def test_the_instruction_decides_when_the_request_does_not():
    plan = make_plan(search(instruction="Find an image of it."))
    assert (plan.modalities, plan.source) == ((IMAGE,), "instruction")


def test_without_either_all_modalities_are_searched():
    assert make_plan(search()).modalities == tuple(Modality)


# -- the cost of reading


class Counted(list[Word]):
    """Words that count how often one is looked at."""

    reads = 0

    def __getitem__(self, place):
        self.reads += 1
        return super().__getitem__(place)


HOSTILE = [
    "find image" + " " * 4000,
    "find " * 800,
    "find image and " * 270,
    "find image with its " * 200,
    "find image" + "-" * 4000 + "caption",
    "find illustrated " * 240,
    "image " * 680,
    "find " + "image-caption " * 290,
    "want search for look for " * 160,
    "find" + ", image" * 580,
    "find" + "," * 4000,
    "find a " + "thing showing " * 290,
]


@pytest.mark.parametrize("instruction", HOSTILE, ids=lambda text: text[:24].strip())
def test_reading_an_instruction_is_linear_whatever_it_says(instruction):
    check_instruction(instruction)  # all are legal
    assert len(instruction) > MAX_INSTRUCTION_BYTES * 0.8
    words = Counted(words_of(instruction))
    assert len(words) <= MOST_WORDS
    named_by(words)
    assert words.reads <= 16 * len(words)


# -- the oracle: the regular expressions that decided before. Their time grows with the cube of the
# length, so they are for short instructions.

VERB = re.compile(
    r"\b(?:find|retrieve|identify|show|display|get|give|pull up|search for|look(?:ing)? for|fetch|"
    r"select|locate|return|provide|want|match|choose|list)\b",
    re.IGNORECASE,
)
END = re.compile(
    r"(?<![-\w])(?:that|which|who|whose|where|for|of|in|with|to|from|about|by|on|as)(?![-\w])"
    r"|[.,;:!?]",
    re.IGNORECASE,
)
PARTICIPLE = re.compile(
    r"(?<![-\w])(?:describing|showing|showcasing|illustrating|matching|given|answering)(?![-\w])",
    re.IGNORECASE,
)
AN_IMAGE = (
    r"(?:image|picture|photo|photograph|drawing|illustration|painting|screenshot|figure|icon)"
)
A_TEXT = (
    r"(?:text|caption|description|paragraph|passage|article|document|sentence|title|summary|"
    r"abstract|note|story|answer|definition|label|name|explanation|fact)"
)
A_PAIR = re.compile(
    rf"\b{AN_IMAGE}s?[\s-]*(?:and|with|,|/|&|-|\+)?[\s-]*{A_TEXT}s?[\s-]+pairs?\b|"
    rf"\b{AN_IMAGE}s?\s+(?:with|and)\s+(?:its |their |an? )?{A_TEXT}s?\b|"
    rf"\b{A_TEXT}s?\s+(?:with|and)\s+(?:its |their |an? )?{AN_IMAGE}s?\b|"
    rf"\b(?:illustrated|captioned)\s+(?:\w+\s+)?"
    rf"(?:{A_TEXT}|{AN_IMAGE}|guide|page|entry|entries)s?\b",
    re.IGNORECASE,
)
NOUN = re.compile(rf"\b(?:(?P<image>{AN_IMAGE})|(?P<text>{A_TEXT}))s?\b", re.IGNORECASE)


def expected_target(instruction):
    for verb in VERB.finditer(instruction):
        rest = instruction[verb.end() :]
        pair = A_PAIR.search(rest)
        noun = expected_noun(rest)
        if pair and (noun is None or pair.start() <= noun[0]):
            return PAIR
        if noun:
            return noun[1]
    return None


def expected_noun(rest):
    end = END.search(rest)
    phrase = rest[: end.start()] if end else rest
    nouns = list(NOUN.finditer(phrase))
    if not nouns:
        return None
    after_first = PARTICIPLE.search(phrase, nouns[0].end())
    head = [n for n in nouns if after_first is None or n.start() < after_first.start()][-1]
    return head.start(), IMAGE if head["image"] else TEXT


WORDS = (  # noqa: SIM905  # easier to read than quoted words
    "find Retrieve show want match pull up search for look looking in with to about and its their "
    "a an the image images photo photograph picture icons caption captions text stories story note "
    "pair pairs illustrated captioned guide pages entries entry describing matching given showing "
    "cat Wikipedia day-to-day in-line best me"
).split()
GAPS = [" "] * 12 + ["-", "-", ", ", ". ", "/", " & ", "+", ": ", " - ", "'s ", " (", ") ", "!"]


BEGINNINGS = ["", "Find ", "find an image ", "I want to retrieve a text ", "Look for photos with "]


@settings(max_examples=500)
@given(
    st.sampled_from(BEGINNINGS),
    st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(GAPS)), max_size=12),
)
def test_words_are_judged_as_the_regular_expressions_did(beginning, parts):
    instruction = beginning + "".join(f"{word}{gap}" for word, gap in parts)
    assert target_of(instruction) is expected_target(instruction)
