"""Searches as one HTML page with their pictures, for people who look rather than read."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from mmesh.cli.output.tables import footnotes
from mmesh.cli.output.terminal import shown
from mmesh.content import Content, Image

if TYPE_CHECKING:
    from mmesh.migration import Migration, Pair
    from mmesh.search import Hit, Search, SearchResult

_SIGNATURES = (
    (b"\x89PNG", "image/png"),
    (b"\xff\xd8", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"RIFF", "image/webp"),
)
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem;
  padding: 0 1rem; color: #1c2430; background: #f6f7f9 }
h1 { font-size: 1.5rem } h2 { font-size: 1.05rem; margin: .2rem 0 .8rem }
section { background: #fff; border: 1px solid #dfe3e8; border-radius: 10px;
  padding: 1rem 1.25rem; margin: 1.25rem 0 }
.query { display: flex; gap: 1rem; align-items: center; margin-bottom: .8rem }
.query img { height: 96px; border-radius: 6px } .query p { margin: 0; font-size: 1.05rem }
.instruction, .foot { color: #66707d; font-size: .85rem }
.both { display: grid; grid-template-columns: 1fr 1fr; gap: 1.25rem }
.hits { display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: .8rem }
.hit { border: 1px solid #e6e9ed; border-radius: 8px; padding: .6rem; font-size: .86rem;
  background: #fcfcfd; overflow-wrap: anywhere }
.hit img { width: 100%; height: 130px; object-fit: contain; border-radius: 4px;
  background: #eef0f3 }
.meta { color: #66707d; font-size: .78rem; display: flex; justify-content: space-between;
  gap: .4rem }
.tag { background: #e7eefc; color: #2b4fa3; border-radius: 4px; padding: 0 .35rem }
@media (prefers-color-scheme: dark) {
  body { background: #14181d; color: #e3e7ec }
  section { background: #1b2027; border-color: #2c333c }
  .hit { background: #20262e; border-color: #2c333c } .hit img { background: #14181d }
  .tag { background: #22345c; color: #a9c3ff } }
"""
_CHARACTERS = 400
"""Of a text that are shown."""
_END = "</body></html>\n"


def search_page(searches: Sequence[tuple[Search, SearchResult]], title: str) -> str:
    """Return a page, complete in itself, that shows searches and their hits.

    Pictures of hits are there when the search asked for content.
    """
    return _page("\n".join(_section(search, result) for search, result in searches), title)


def _page(sections: str, title: str) -> str:
    return f"{_beginning(title)}{sections}{_END}"


def _beginning(title: str) -> str:
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    return (
        f'<!doctype html><html lang="en"><head>{head}<title>{_escaped(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{_escaped(title)}</h1>"
    )


@contextmanager
def comparison_page(path: Path, migration: Migration) -> Iterator[Callable[[Pair], None]]:
    """Write a page, complete in itself, with the hits of both collections side by side.

    Yields what writes a pair, hit by hit: pictures of many pairs are more than memory can hold.
    """
    names = migration.old.name, migration.new.name
    with path.open("w", encoding="utf-8") as file:
        file.write(_beginning(f"{migration.alias}: old and new model"))
        yield lambda pair: file.writelines(_side_by_side(pair, names))
        file.write(_END)


def _side_by_side(pair: Pair, names: tuple[str, str]) -> Iterator[str]:
    yield f'<section><div class="query">{_content(pair.query)}</div><div class="both">'
    for name, result in zip(names, (pair.old, pair.new), strict=True):
        yield f'<div><h2>{_escaped(name)}</h2><div class="hits">'
        yield from _hits(result)
        yield "</div></div>"
    share = "nothing was found" if pair.overlap is None else f"{pair.overlap:.0%} are the same"
    yield f'</div><p class="foot">hits: {share}</p></section>'


def _hits(result: SearchResult) -> Iterator[str]:
    yield from map(_hit, result.hits)
    if not result.hits:
        yield "<p>Nothing found.</p>"


def _section(search: Search, result: SearchResult) -> str:
    receipt = result.receipt
    target = " or ".join(modality.value for modality in receipt.searched)
    heading = f"{receipt.query_modality.value} → {target}"
    foot = "<br>".join(_escaped(line) for line in footnotes(result))
    return (
        f"<section><h2>{_escaped(heading)}</h2>"
        f'<div class="query">{_content(search.query)}</div>'
        f'<p class="instruction">{_escaped(search.instruction)}</p>'
        f'<div class="hits">{"".join(_hits(result))}</div><p class="foot">{foot}</p></section>'
    )


def _hit(hit: Hit) -> str:
    content = _content(hit.content) if hit.content else ""
    score = f"{hit.score:.3f} · similarity {hit.retrieval_score:.3f}"
    if hit.rerank_score is not None:
        score += f" · judged {hit.rerank_score:.3f}"
    return (
        f'<div class="hit"><div class="meta"><b>{hit.rank}</b>'
        f'<span class="tag">{_escaped(hit.modality.value)}</span></div>{content}'
        f'<div class="meta"><span>{_escaped(hit.id)}</span><span>{score}</span></div></div>'
    )


def _content(content: Content) -> str:
    return "".join(
        _image(p) if isinstance(p, Image) else f"<p>{_escaped(_cut(p))}</p>" for p in content.parts
    )


def _cut(text: str) -> str:
    return text if len(text) <= _CHARACTERS else f"{text[: _CHARACTERS - 1]}…"


def _escaped(text: str) -> str:
    """Return text for a page, where what changes the direction of writing is said, too."""
    return escape(shown(text.replace("\r\n", "\n")))


def _image(image: Image) -> str:
    kind = next((media for sign, media in _SIGNATURES if image.data.startswith(sign)), "")
    if not kind:
        return "<p>[picture]</p>"
    data = base64.b64encode(image.data).decode()
    return f'<img alt="" src="data:{kind};base64,{data}">'
