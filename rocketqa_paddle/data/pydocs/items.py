"""Items of docstrings: the first sentence of one is a query, and the rest is the passage that answers it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

QUERY_WORDS = range(3, 41)
MIN_PASSAGE_WORDS = 8
MAX_PASSAGE_WORDS = 200
# Modules that document the same thing belong to one split.
FAMILIES = {"posixpath": "os", "ntpath": "os", "genericpath": "os", "pydecimal": "decimal", "pyio": "io"}


SENTENCE_END = re.compile(r"(?<!e\.g)(?<!i\.e)(?<!etc)(?<!cf)(?<!vs)[.!?][)\"']*(?:\s+(?=[^a-z\s])|\s\s+|$)")
BLANK_LINE = re.compile(r"\n\s*\n")
NOT_PROSE = re.compile(r"->|=|:$")  # a signature, code, the head of a list
SIGNATURE = re.compile(r"[\w.]+\(.*\)(?:\s*->.*)?")
MARKUP = (
    (re.compile(r"^\s*(?:>>>|\.\.\.)(?= |$)", re.MULTILINE), " "),  # doctest prompts
    (re.compile(r"^\s*([-=~^*#`+])\1{2,}\s*$", re.MULTILINE), " "),  # rulers
    (re.compile(r":[\w:+.-]+:(?=`)"), ""),  # roles, as in :class:`Foo`
    (re.compile(r"`+"), ""),
)


@dataclass(frozen=True, slots=True)
class Item:
    """One passage, named after what it documents; `query` is empty where it answers none."""

    name: str
    module: str
    query: str
    text: str


def clean(text: str) -> str:
    """One readable line: no prompts, rulers or markup, and no character that cannot be printed."""
    for pattern, replacement in MARKUP:
        text = pattern.sub(replacement, text)
    text = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(text.split())


def key(text: str) -> str:
    """What two texts that a reader takes for the same have in common."""
    return text.casefold().rstrip(" .:;!?")


def cut(docstring: str) -> tuple[str, str]:
    """The first sentence and the rest. A leading signature, as C docstrings have, is dropped."""
    paragraph, *others = BLANK_LINE.split(docstring.strip(), maxsplit=1)
    if others and SIGNATURE.fullmatch(paragraph):
        return cut(others[0])
    end = SENTENCE_END.search(paragraph)
    stop = end.end() if end else len(paragraph)
    return clean(paragraph[:stop]), clean("\n\n".join([paragraph[stop:], *others]))


def shorten(text: str) -> str:
    """The first words of a passage; readers cut long ones anyway."""
    return " ".join(text.split()[:MAX_PASSAGE_WORDS])


def family(name: str) -> str:
    """The top-level module, with twins such as `_pydecimal` and `decimal` taken as one."""
    module = name.partition(".")[0].lstrip("_").rstrip("0123456789")
    return FAMILIES.get(module, module)


def make_item(name: str, docstring: str) -> Item:
    """A pair where the docstring makes a fair one, else a passage without a query."""
    query, rest = cut(docstring)
    item = Item(name, family(name), query, shorten(rest))
    return item if is_fair(item) else whole(item)


def is_fair(pair: Item) -> bool:
    """Whether a person could ask the query, and the passage does not just repeat it."""
    return (
        len(pair.query.split()) in QUERY_WORDS
        and len(pair.text.split()) >= MIN_PASSAGE_WORDS
        and not NOT_PROSE.search(pair.query)
        and key(pair.query) not in key(pair.text)
    )


def whole(item: Item) -> Item:
    """The whole docstring as a passage without a query."""
    return replace(item, query="", text=shorten(f"{item.query} {item.text}"))


def marks(item: Item) -> set[tuple[str, str]]:
    """What no other item may have as well."""
    found = {("name", item.name), ("text", key(item.text))}
    return found | {("query", key(item.query))} if item.query else found


def drop_repeats(items: Iterable[Item]) -> list[Item]:
    """Keep the first item of each name, query and passage; no passage may equal a query.

    Where only the passage of a pair was seen before, its whole docstring is kept without a query.
    """
    seen: set[tuple[str, str]] = set()
    kept = []
    for item in items:
        if ("text", key(item.text)) in seen and ("query", key(item.query)) not in seen:
            item = whole(item)
        if item.text and not marks(item) & seen:
            kept.append(item)
            seen |= marks(item)
    return [item for item in kept if ("query", key(item.text)) not in seen]
