"""Web pages that need no other file: the page around its sections, tables, and Markdown of reports."""

import re
from collections.abc import Iterable, Sequence
from html import escape
from string import Template

GENERATOR = '<meta name="generator" content="rocketqa_paddle">'
"""Tells that this package wrote a page."""

_STYLE = """
:root { color-scheme: light dark;
  --ink: #1c2128; --soft: #5b6470; --paper: #ffffff; --panel: #f5f6f8; --rule: #d9dde3; --good: #1a7f4b;
  --c0: #2f6fde; --c1: #d9622b; --c2: #1a7f4b; --c3: #9b4dca; --c4: #b8860b; --c5: #c2387a; }
@media (prefers-color-scheme: dark) { :root {
  --ink: #e4e8ed; --soft: #9aa4b0; --paper: #14171b; --panel: #1d2126; --rule: #343a42; --good: #5cc98d;
  --c0: #6ea3ff; --c1: #f2915f; --c2: #5cc98d; --c3: #c492ea; --c4: #e0b44c; --c5: #f082b4; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 64rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; padding-bottom: .25rem;
  border-bottom: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
.soft, footer { color: var(--soft); } footer { margin-top: 3rem; font-size: .85rem; }
.notice { padding: .6rem .9rem; background: var(--panel); border-left: 4px solid var(--c1); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .3rem .9rem .3rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--rule); }
th { color: var(--soft); font-weight: 600; } table.measures td + td { white-space: nowrap; }
table.facts td:first-child { color: var(--soft); white-space: nowrap; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr));
  gap: 1rem; }
figure { margin: 0; padding: .75rem; background: var(--panel); border-radius: 6px; }
figcaption { font-size: .88rem; font-weight: 600; margin-bottom: .25rem; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font: 11.5px system-ui, sans-serif; } svg .name { font-style: italic; }
.grid { stroke: var(--rule); } .axis { stroke: var(--soft); }
.line { fill: none; stroke: var(--c); stroke-width: 1.8; stroke-linejoin: round; } .dot { fill: var(--c); }
.area { fill: var(--c); fill-opacity: .3; stroke: var(--c); stroke-width: 1.2; }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); } .c3 { --c: var(--c3); }
.c4 { --c: var(--c4); } .c5 { --c: var(--c5); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: .4rem 0 0; padding: 0;
  font-size: .82rem; }
.legend li::before { content: ""; display: inline-block; width: .75em; height: .75em; margin-right: .4em;
  border-radius: 2px; background: var(--c); }
details { border: 1px solid var(--rule); border-radius: 6px; margin: .5rem 0; padding: .5rem .9rem; }
summary { cursor: pointer; } details[open] > summary { margin-bottom: .5rem; }
.ranks { color: var(--soft); font-size: .88rem; }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); gap: 1rem; }
.sides h4 { font-size: .88rem; margin: 0 0 .25rem; color: var(--soft); }
.sides ol { margin: 0; padding-left: 1.4rem; font-size: .9rem; } .sides li { margin-bottom: .6rem; }
.positive { border-left: 3px solid var(--good); padding-left: .6rem; }
.tag { color: var(--good); font-weight: 600; font-size: .82rem; }
"""
_PAGE = Template(
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
$generator
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
</head>
<body>
$body
</body>
</html>
"""
)


def page(title: str, body: Iterable[str]) -> str:
    """A whole page of parts that are HTML; the title is a text. Nothing else is loaded to show it."""
    values = {"title": escape(title), "body": "\n".join(body)}
    return _PAGE.substitute(values, generator=GENERATOR, style=_STYLE)


def details(summary: str, *parts: str, opened: bool = False) -> str:
    """Parts that a click on the summary shows and hides; all of them are HTML."""
    return "\n".join([f"<details{' open' * opened}><summary>{summary}</summary>", *parts, "</details>"])


def notice(text: str) -> str:
    """A text that stands out."""
    return f'<p class="notice">{escape(text)}</p>'


def section(title: str, *parts: str) -> str:
    """Parts that are HTML, under a heading that is a text."""
    return "\n".join([f"<section>\n<h2>{escape(title)}</h2>", *parts, "</section>"])


def table(rows: Sequence[Sequence[str]], kind: str, heads: Sequence[str] = ()) -> str:
    """A table of texts, in which `**` around a cell makes it bold; `kind` is its class in the style sheet."""
    head = f"<tr>{''.join(f'<th>{_inline(cell)}</th>' for cell in heads)}</tr>" if heads else ""
    body = "".join(f"<tr>{''.join(f'<td>{_inline(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table class="{kind}">{head}{body}</table></div>'


def from_markdown(text: str) -> str:
    """Show what `evaluation.tables` writes: paragraphs, tables and bold words."""
    parts = []
    for block in filter(None, text.split("\n\n")):
        if block.startswith("|"):
            heads, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in block.split("\n"))
            parts.append(table(rows, "measures", heads))
        else:
            parts.append(f"<p>{_inline(block.strip())}</p>")
    return "\n".join(parts)


def _inline(text: str) -> str:
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escape(text))
