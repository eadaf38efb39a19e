"""Docstrings of Python source files. Sources are parsed, never imported, so nothing of theirs runs."""

import ast
import os
import re
import sysconfig
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from inspect import cleandoc
from pathlib import Path

SKIPPED_FOLDERS = {"__pycache__", "_vendor", "dist-packages", "lib-dynload", "site-packages", "test", "tests"}
SKIPPED_FOLDERS |= {"distutils", "ensurepip", "idlelib", "lib2to3", "turtledemo"}
TOPICS = ("pydoc_data", "topics")
TOPIC_ENTRY = re.compile(r"^(?P<name>[a-z]\w*(?:\.\w+)+)\(.*\)\n\n(?P<text>(?: {3}.*\n|\n)+)", re.MULTILINE)


@dataclass
class Sources:
    """What the files gave: docstrings as (name, docstring), and the files that do not parse."""

    docs: list[tuple[str, str]] = field(default_factory=list)
    names_of_first_root: set[str] = field(default_factory=set)
    files: int = 0
    unreadable: list[str] = field(default_factory=list)


def source_files(root: Path) -> Iterator[Path]:
    """The Python files under `root` worth reading, in a fixed order."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in SKIPPED_FOLDERS)
        for name in sorted(files):
            if name.endswith(".py") and not name.startswith("test_"):
                yield Path(folder, name)


def module_parts(root: Path, path: Path) -> tuple[str, ...]:
    """`os/path.py` -> ("os", "path"); a package is named after its folder, and so is a root that is one."""
    base = root.parent if (root / "__init__.py").is_file() else root
    parts = path.relative_to(base).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts


def documented(node: ast.AST, prefix: str) -> Iterator[tuple[str, str]]:
    """Every public function, method and class with a docstring, by qualified name."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            if child.name.startswith("_"):
                continue
            name = f"{prefix}.{child.name}"
            if docstring := ast.get_docstring(child):
                yield name, docstring
            if isinstance(child, ast.ClassDef):
                yield from documented(child, name)
        elif isinstance(child, (ast.stmt, ast.excepthandler)):
            yield from documented(child, prefix)


def topic_entries(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """The entries of pydoc's topics, such as `str.join`, whose own docstrings are written in C."""
    values = [node.value for node in tree.body if isinstance(node, ast.Assign)]
    for topics in (ast.literal_eval(value) for value in values if isinstance(value, ast.Dict)):
        for text in topics.values():
            for entry in TOPIC_ENTRY.finditer(text):
                if "._" not in entry["name"]:
                    yield entry["name"], cleandoc(textwrap.dedent(entry["text"]))


def read_sources(roots: Iterable[Path]) -> Sources:
    """Parse every file under `roots`; a file that does not parse is noted and left out."""
    sources = Sources()
    for root in roots:
        for path in source_files(root):
            parts = module_parts(root, path)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # old escapes in other people's strings
                    tree = ast.parse(path.read_bytes())
            except (SyntaxError, ValueError, RecursionError, OSError):
                sources.unreadable.append(path.relative_to(root).as_posix())
                continue
            sources.files += 1
            sources.docs += topic_entries(tree) if parts == TOPICS else documented(tree, ".".join(parts))
        sources.names_of_first_root = sources.names_of_first_root or {name for name, _ in sources.docs}
    return sources


def python_roots(packages: Sequence[str] | None) -> list[Path]:
    """The standard library of this Python, and installed packages: those named, or all if none is named."""
    stdlib, *site = (Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib"))
    if packages is None:
        return [stdlib]
    site = list(dict.fromkeys(site))
    return [stdlib, *(package_folder(name, site) for name in packages)] if packages else [stdlib, *site]


def package_folder(name: str, site: Iterable[Path]) -> Path:
    """Where an installed package lives."""
    for folder in site:
        if (folder / name / "__init__.py").is_file():
            return folder / name
    raise ValueError(f"no package {name} is installed: install it, or leave it out")
