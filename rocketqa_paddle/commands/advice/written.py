"""Settings with their reasons, written as a YAML file with comments."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import yaml

_WIDTH = 110


class Because(NamedTuple):
    """A value and the reason for it."""

    value: Any
    reason: str


Tree = Mapping[str, Any]
"""Values by their names: plain ones, ones with a `Because`, and sections of them."""


def written(head: str, tree: Tree) -> str:
    """Return a YAML file that begins with a comment of paragraphs, and gives the reasons as comments."""
    comments = [line for paragraph in head.splitlines() for line in _comment(paragraph, "")]
    return "\n".join([*comments, *_lines(tree, "")]) + "\n"


def _lines(tree: Tree, indent: str) -> Iterator[str]:
    for name, value in tree.items():
        value, reason = value if isinstance(value, Because) else (value, "")
        if isinstance(value, Mapping) and not _is_plain(value):
            yield from [""] * (not indent)
            yield from _comment(reason, indent)
            yield f"{indent}{name}:"
            yield from _lines(value, f"{indent}  ")
            continue
        line = f"{indent}{name}: {_plain(value)}"
        if len(line) + len(reason) + 4 <= _WIDTH:
            yield f"{line}  # {reason}" if reason else line
        else:
            yield from _comment(reason, indent)
            yield line


def _comment(text: str, indent: str) -> list[str]:
    mark = f"{indent}# "
    return textwrap.wrap(text, _WIDTH, initial_indent=mark, subsequent_indent=mark, break_on_hyphens=False)


def _is_plain(section: Mapping[str, Any]) -> bool:
    """Whether a section fits on a line: it has no reasons and no sections inside."""
    return not any(isinstance(value, Mapping | Because) for value in section.values())


def _plain(value: Any) -> str:
    """A value on one line, as YAML; a small number as people write it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_plain(part)}" for name, part in value.items()) + "}"
    if isinstance(value, float) and 0 < value < 0.001:
        digits, exponent = f"{value:.1e}".split("e")
        return f"{digits}e{int(exponent)}"
    return (
        yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
        .removesuffix("...\n")
        .strip()
    )
