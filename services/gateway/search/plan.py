"""Query planning, which modalities to search: what is requested, else what the instruction names.

Instructions are understood in English only, by the nouns that follow a verb of seeking ("find a
caption for the photo" is about texts). One in another language names nothing, so all modalities
are searched; a caller who writes one should set `target`. An instruction is scanned once, word by
word: it comes from anybody and is read on the event loop.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from mmesh.content import Modality
from mmesh.search import Search, targets_of

MOST_WORDS = 64
"""Words of an instruction that are looked at. Those of M-BEIR have fewer than 30; a batch of 256
searches, each with the worst that 64 can be, is read in 20 ms."""

_VERBS = frozenset((
    "find", "retrieve", "identify", "show", "display", "get", "give", "fetch", "select", "locate",
    "return", "provide", "want", "match", "choose", "list",
))  # fmt: skip
_VERB_PAIRS = {("pull", "up"), ("search", "for"), ("look", "for"), ("looking", "for")}
_PREPOSITIONS = frozenset((
    "that", "which", "who", "whose", "where", "for", "of", "in", "with", "to", "from", "about",
    "by", "on", "as",
))  # fmt: skip
"""Words that end a noun phrase, as the stops do."""
_STOPS = frozenset(".,;:!?")
_PARTICIPLES = frozenset((
    "describing", "showing", "showcasing", "illustrating", "matching", "given", "answering",
))  # fmt: skip
"""Words after which the nouns of a phrase are no longer its head."""
_NOUNS = dict.fromkeys(
    ("image", "picture", "photo", "photograph", "drawing", "illustration", "painting",
     "screenshot", "figure", "icon"),
    Modality.IMAGE,
) | dict.fromkeys(
    ("text", "caption", "description", "paragraph", "passage", "article", "document", "sentence",
     "title", "summary", "abstract", "note", "story", "answer", "definition", "label", "name",
     "explanation", "fact"),
    Modality.TEXT,
)  # fmt: skip
_PAGES = frozenset(("guide", "page", "entry", "entries"))
"""Nouns that are about both when they are illustrated."""
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Plan:
    """The modalities to search, and why these: "requested", "instruction" or "any"."""

    modalities: tuple[Modality, ...]
    source: str


def make_plan(search: Search) -> Plan:
    """Return what to search."""
    if requested := targets_of(search.target):
        return Plan(requested, "requested")
    named = target_of(search.instruction)
    if named is not None:
        return Plan((named,), "instruction")
    return Plan(tuple(Modality), "any")


def target_of(instruction: str) -> Modality | None:
    """Return the modality that an instruction asks for, or None when it names none.

    Looks at the noun phrase after the verb of seeking, so "Find a caption for the photo" is about
    texts. Meant for instructions in the style of M-BEIR (Wei et al., UniIR, arXiv 2311.17136).
    """
    return named_by(words_of(instruction))


class Word(NamedTuple):
    """A word in lower case, with the characters between it and its neighbours."""

    text: str
    before: str
    after: str

    @property
    def is_whole(self) -> bool:
        """Whether it is no part of a word with hyphens."""
        return not self.before.endswith("-") and not self.after.startswith("-")

    @property
    def ends_phrase(self) -> bool:
        """Whether a noun phrase ends before it."""
        return not _STOPS.isdisjoint(self.before) or (self.text in _PREPOSITIONS and self.is_whole)

    @property
    def noun(self) -> Modality | None:
        """The modality that it names, in the singular or plural."""
        return _NOUNS.get(self.text) or _NOUNS.get(self.text.removesuffix("s"))


def words_of(instruction: str) -> list[Word]:
    """Return the first words of an instruction; any white space between two is one space."""
    text = " ".join(instruction.split()).lower()
    found = list(islice(_WORD.finditer(text), MOST_WORDS))
    ends = [0, *(word.end() for word in found)]
    starts = [*(word.start() for word in found), len(text)]
    gaps = [text[end:start] for end, start in zip(ends, starts, strict=True)]
    return [Word(word[0], gaps[n], gaps[n + 1]) for n, word in enumerate(found)]


def named_by(words: Sequence[Word]) -> Modality | None:
    """Return the modality that the words of an instruction ask for; looks at each a few times."""
    start = _after_verb(words, 0)
    if start is None:
        return None
    pair = next((place for place in range(start, len(words)) if _is_pair(words, place)), None)
    while start is not None:
        head, end = _head_noun(words, start)
        if pair is not None and (head is None or pair <= head):
            return Modality.IMAGE_TEXT
        if head is not None:
            return words[head].noun
        start = _after_verb(words, end)
    return None


def _after_verb(words: Sequence[Word], start: int) -> int | None:
    """Return the place after the first verb of seeking whose last word is at `start` or later."""
    before = words[start - 1].text if start else ""
    for place in range(start, len(words)):
        word = words[place]
        if word.text in _VERBS or (word.before == " " and (before, word.text) in _VERB_PAIRS):
            return place + 1
        before = word.text
    return None


def _head_noun(words: Sequence[Word], start: int) -> tuple[int | None, int]:
    """Return the place of the head noun of the phrase from `start` on, and where the phrase ends.

    That is its last noun of a modality, but for those that describe the first ones.
    """
    head: int | None = None
    is_described = False
    for place in range(start, len(words)):
        word = words[place]
        if word.ends_phrase:
            return head, place
        is_described |= head is not None and word.text in _PARTICIPLES and word.is_whole
        if not is_described and word.noun:
            head = place
    return head, len(words)


# -- pairs of a picture and its text


def _is_pair(words: Sequence[Word], place: int) -> bool:
    """Tell whether words from `place` on name texts with pictures, such as "captioned photos"."""
    if words[place].text in ("illustrated", "captioned"):
        return _is_page(words, place + 1) or (
            _follows(words, place + 1) and _is_page(words, place + 2)
        )
    return words[place].noun is not None and (
        _has_other_noun(words, place) or _has_counterpart(words, place)
    )


def _is_page(words: Sequence[Word], place: int) -> bool:
    """Tell whether what follows is about both modalities once it is illustrated."""
    if not _follows(words, place):
        return False
    word = words[place]
    return word.noun is not None or word.text in _PAGES or word.text.removesuffix("s") in _PAGES


def _has_other_noun(words: Sequence[Word], place: int) -> bool:
    """Tell whether a noun is joined to one of the other modality: "images with their captions"."""
    if not (_follows(words, place + 1) and words[place + 1].text in ("with", "and")):
        return False
    other = place + 2
    if _follows(words, other) and words[other].text in ("its", "their", "a", "an"):
        other += 1
    return _follows(words, other) and words[other].noun not in (None, words[place].noun)


def _has_counterpart(words: Sequence[Word], place: int) -> bool:
    """Tell whether a picture and its text are called a pair: "image-caption pairs"."""
    if words[place].noun is not Modality.IMAGE:
        return False
    text, joints = place + 1, ",/&+"
    if _is_joined(words, text, "") and words[text].text in ("with", "and"):
        text, joints = text + 1, ""
    return (
        _is_joined(words, text, joints)
        and words[text].noun is Modality.TEXT
        and _is_joined(words, text + 1, "")
        and words[text + 1].text in ("pair", "pairs")
    )


def _follows(words: Sequence[Word], place: int) -> bool:
    """Tell whether there is a word at `place`, after a space."""
    return place < len(words) and words[place].before == " "


def _is_joined(words: Sequence[Word], place: int, joints: str) -> bool:
    """Tell whether there is a word, after spaces, hyphens and at most one of `joints`."""
    if place >= len(words):
        return False
    between = words[place].before.strip(" -")
    return not between or (len(between) == 1 and between in joints)
