"""Which modalities to search: what the request says, else what its instruction names, else all."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mmesh.content import Modality
from mmesh.search import Search

_VERB = re.compile(
    r"\b(?:find|retrieve|identify|show|display|get|give|pull up|search for|look(?:ing)? for|fetch|"
    r"select|locate|return|provide|want|match|choose|list)\b",
    re.IGNORECASE,
)
_END = re.compile(
    r"(?<![-\w])(?:that|which|who|whose|where|for|of|in|with|to|from|about|by|on|as)(?![-\w])"
    r"|[.,;:!?]",
    re.IGNORECASE,
)
_PARTICIPLE = re.compile(
    r"(?<![-\w])(?:describing|showing|showcasing|illustrating|matching|given|answering)(?![-\w])",
    re.IGNORECASE,
)
_IMAGE = r"(?:image|picture|photo|photograph|drawing|illustration|painting|screenshot|figure|icon)"
_TEXT = (
    r"(?:text|caption|description|paragraph|passage|article|document|sentence|title|summary|"
    r"abstract|note|story|answer|definition|label|name|explanation|fact)"
)
_IMAGE_TEXT = re.compile(
    rf"\b{_IMAGE}s?[\s-]*(?:and|with|,|/|&|-|\+)?[\s-]*{_TEXT}s?[\s-]+pairs?\b|"
    rf"\b{_IMAGE}s?\s+(?:with|and)\s+(?:its |their |an? )?{_TEXT}s?\b|"
    rf"\b{_TEXT}s?\s+(?:with|and)\s+(?:its |their |an? )?{_IMAGE}s?\b|"
    rf"\b(?:illustrated|captioned)\s+(?:\w+\s+)?(?:{_TEXT}|{_IMAGE}|guide|page|entry|entries)s?\b",
    re.IGNORECASE,
)
_NOUN = re.compile(rf"\b(?:(?P<image>{_IMAGE})|(?P<text>{_TEXT}))s?\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Plan:
    """The modalities to search, and why these: "requested", "instruction" or "any"."""

    modalities: tuple[Modality, ...]
    source: str


def make_plan(search: Search) -> Plan:
    """Return what to search."""
    if search.target is not None:
        return Plan((search.target,), "requested")
    named = target_of(search.instruction)
    if named is not None:
        return Plan((named,), "instruction")
    return Plan(tuple(Modality), "any")


def target_of(instruction: str) -> Modality | None:
    """Return the modality that an instruction asks for, or None when it names none.

    Looks at the noun phrase after the verb of seeking, so "Find a caption for the photo" is about
    texts. Meant for instructions in the style of M-BEIR (Wei et al., UniIR, arXiv 2311.17136).
    """
    for verb in _VERB.finditer(instruction):
        rest = instruction[verb.end() :]
        pair = _IMAGE_TEXT.search(rest)
        noun = _head_noun(rest)
        if pair and (noun is None or pair.start() <= noun[0]):
            return Modality.IMAGE_TEXT
        if noun:
            return noun[1]
    return None


def _head_noun(rest: str) -> tuple[int, Modality] | None:
    """Return the last noun of a modality in the phrase that `rest` begins with, and its place."""
    end = _END.search(rest)
    phrase = rest[: end.start()] if end else rest
    nouns = list(_NOUN.finditer(phrase))
    if not nouns:
        return None
    after_first = _PARTICIPLE.search(phrase, nouns[0].end())
    head = [n for n in nouns if after_first is None or n.start() < after_first.start()][-1]
    return head.start(), Modality.IMAGE if head["image"] else Modality.TEXT
