"""The tables of the documentation say what the package has: its systems, its folders, its settings."""

from __future__ import annotations

import re
import runpy
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest
import toy

import rocketqa_paddle
from rocketqa_paddle import presets
from rocketqa_paddle.systems import SYSTEMS

PACKAGE = Path(rocketqa_paddle.__file__).parent
ORDER = runpy.run_path(str(Path(__file__).with_name("test_layers.py")))["ORDER"]


def read(name: str) -> str:
    return (toy.ROOT / name).read_text(encoding="utf-8")


README, CONTRIBUTING, CHANGELOG = map(read, ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))


def table(text: str, head: str) -> list[list[str]]:
    """The cells of the rows under a head, which is the beginning of a line."""
    assert text.count(f"\n{head}") == 1, head
    lines = text[text.index(f"\n{head}") + 1 :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def on_disk(name: str) -> str:
    """A folder or file of the package's top level, as the documentation writes it."""
    return f"{name}/" if (PACKAGE / name).is_dir() else f"{name}.py"


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 200


def test_the_table_of_systems_is_the_registry():
    rows = [row[:3] for row in table(README, "| name | system |")]
    assert rows == [[f"`{system.name}`", system.title, system.description] for system in SYSTEMS.values()]


def test_the_page_of_systems_has_every_system_and_its_presets():
    rows = {row[0].strip("`"): row[2] for row in table(read("docs/systems.md"), "| system | steps |")}
    assert [*rows] == [*SYSTEMS]
    for name, named in rows.items():
        assert set(re.findall(r"`([\w.-]+)`", named)) == {*presets.names(name)}


def test_the_house_is_listed_in_the_order_of_its_imports():
    rows = [
        name for row in table(CONTRIBUTING, "| folder or file |") for name in re.findall(r"`(.+?)`", row[0])
    ]
    assert rows == [on_disk(name) for name in ORDER]


def test_the_file_tree_is_that_of_the_repository():
    tree = README[README.index("\n## Files") :].split("```")[1].splitlines()[1:]
    names = [line.split()[1] for line in tree if line.startswith(("├", "└"))]
    assert names == [on_disk(name) for name in ORDER]
    for line in tree:
        if not line.startswith(("├", "└")):
            assert (toy.ROOT / line.split()[0]).is_dir(), line


# Old names of settings -----------------------------------------------------------------------------

RENAMED = {old.strip("`"): new.strip("`") for old, new in table(CHANGELOG, "| old |")}


def names_of_settings(kind: type) -> set[str]:
    """The names of all fields of settings, at any depth."""
    inner = [hint for hint in get_type_hints(kind).values() if is_dataclass(hint)]
    return {field.name for field in fields(kind)}.union(*map(names_of_settings, inner))


def test_the_new_names_are_those_of_the_settings():
    settings = set().union(*(names_of_settings(system.settings) for system in SYSTEMS.values()))
    assert set(RENAMED.values()) <= settings
    assert not settings & RENAMED.keys()


@pytest.mark.parametrize(
    "path",
    [
        toy.ROOT / "README.md",
        *(toy.ROOT / "docs").glob("*.md"),
        *(toy.ROOT / "rocketqa_paddle").rglob("*.yaml"),
    ],
    ids=lambda path: path.name,
)
def test_old_names_are_gone(path):
    text = path.read_text(encoding="utf-8")
    for old in RENAMED:
        assert not re.search(rf"[.`]{old}[` =:]|^\s*{old}:|\b\w+_{old}\b", text, re.MULTILINE), old
    assert not re.search(r"start weights|stages?\.(?:md|json)", text)
