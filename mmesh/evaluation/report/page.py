"""A run as one page of HTML, complete in itself, and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from mmesh.evaluation.report.chart import chart_of
from mmesh.evaluation.report.facts import facts_of
from mmesh.evaluation.report.tables import Table, markdown_of, tables_of
from mmesh.evaluation.report.worst import Card, Worst
from mmesh.evaluation.results import Results

_STYLE = """
:root { --ink: #1c2430; --soft: #5c6773; --back: #f6f7f9; --box: #fff; --line: #dfe3e8;
  --way0: #2f6fde; --way1: #e08a1e; --tick: #b3261e; --good: #1a7f45 }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e7ec; --soft: #9aa5b1; --back: #14181d;
  --box: #1b2027; --line: #333b45; --way0: #6f9df0; --way1: #e6a54f; --tick: #ff8a80;
  --good: #63c98c } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back);
  margin: 2rem auto; max-width: 78rem; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin: 0 0 .6rem }
section { background: var(--box); border: 1px solid var(--line); border-radius: 10px;
  padding: 1rem 1.25rem; margin: 1.25rem 0; overflow-x: auto }
ul { margin: 0; padding-left: 1.1rem; color: var(--soft) }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums }
th { text-align: left; color: var(--soft); font-weight: 600; vertical-align: bottom }
th, td { padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line) }
tr:last-child td { border: 0 } .average td { font-weight: 650 }
svg { width: 100%; max-width: 820px } svg text { font-size: 11px; fill: var(--soft) }
.label { text-anchor: end } .axis { text-anchor: middle } .grid { stroke: var(--line) }
.whisker { stroke: var(--ink); stroke-width: 1.5 } .tick { stroke: var(--tick); stroke-width: 2.5 }
.way0 { fill: var(--way0) } .way1 { fill: var(--way1) }
.keys { color: var(--soft); font-size: .86rem } .key { display: inline-block; width: .8rem;
  height: .8rem; border-radius: 3px; margin: 0 .35rem -.1rem .8rem }
.key.way0 { background: var(--way0) } .key.way1 { background: var(--way1) }
.key.tick { background: var(--tick); width: .25rem }
.worst { display: grid; grid-template-columns: 1fr 1.4fr 1.4fr; gap: 1rem; padding: .8rem 0;
  border-bottom: 1px solid var(--line) } .worst:last-child { border: 0 }
.worst h3 { font-size: .8rem; color: var(--soft); margin: 0 0 .4rem; font-weight: 600 }
.cards { display: flex; flex-wrap: wrap; gap: .5rem }
.card { border: 1px solid var(--line); border-radius: 6px; padding: .4rem; font-size: .78rem;
  max-width: 10rem; overflow-wrap: anywhere } .card img { display: block; border-radius: 4px }
.card.good { border-color: var(--good); border-width: 2px } .card small { color: var(--soft) }
"""


def page_of(results: Results, worst: Sequence[Worst]) -> str:
    """Return the page; pictures are small and inside, so that it can be mailed."""
    title = f"mmesh evaluate: {results.dataset}"
    facts = "".join(f"<li>{escape(line)}</li>" for line in facts_of(results))
    first, *others = tables_of(results) or [Table("No task is judged", [], [])]
    sections = [f"<ul>{facts}</ul>", _table(first)]
    if results.tasks:
        sections.append(f"<h2>By task</h2>{chart_of(results)}")
    if worst:
        shown = "".join(_worst(one) for one in worst)
        sections.append(f"<h2>The {len(worst)} worst queries</h2>{shown}")
    sections += [_table(table) for table in others]
    body = "".join(f"<section>{section}</section>" for section in sections)
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    return (
        f'<!doctype html><html lang="en"><head>{head}<title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>{body}</body></html>\n"
    )


def markdown_page(results: Results) -> str:
    """Return the facts and the tables in Markdown."""
    facts = "\n".join(f"- {line}" for line in facts_of(results))
    tables = "\n".join(markdown_of(table) for table in tables_of(results))
    return f"# mmesh evaluate: {results.dataset}\n\n{facts}\n\n{tables}"


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "".join(
        f"<tr{' class=average' if row[0] == 'average' else ''}>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in row)
        + "</tr>"
        for row in table.rows
    )
    return f"<h2>{escape(table.title)}</h2><table><tr>{head}</tr>{rows}</table>"


def _worst(one: Worst) -> str:
    wanted = "".join(_card(card) for card in one.wanted)
    found = "".join(_card(card) for card in one.found) or "nothing"
    title = f"{one.task}, {one.way}: {one.value:.2f}"
    return (
        f'<div class="worst"><div><h3>{escape(title)}</h3><div class="cards">{_card(one.query)}'
        f"</div><small>{escape(one.instruction)}</small></div>"
        f'<div><h3>wanted</h3><div class="cards">{wanted}</div></div>'
        f'<div><h3>found first</h3><div class="cards">{found}</div></div></div>'
    )


def _card(card: Card) -> str:
    pictures = "".join(f'<img alt="" src="data:image/jpeg;base64,{p}">' for p in card.pictures)
    kind = "card good" if card.good else "card"
    return (
        f'<div class="{kind}">{pictures}{escape(card.text)}<br>'
        f"<small>{escape(card.id)}</small></div>"
    )
