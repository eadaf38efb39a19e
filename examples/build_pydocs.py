"""Build a small retrieval collection from the documentation inside the Python that runs this file.

Each docstring gives one item: its first sentence is a query, the rest is the passage that answers it,
and the qualified name is the passage's title. A docstring too short to cut in two is a passage
without a query. Sources are parsed, never imported, so nothing runs and nothing is downloaded.

    python examples/build_pydocs.py                  # the standard library
    python examples/build_pydocs.py --installed scipy numpy     # and two installed packages
    python examples/build_pydocs.py --installed      # and all of them

The folder it writes:

    para.txt                       passage id, text
    para.title.txt                 passage id, title
    {train,dev,test}.query.txt     query id, text
    qrels.{train,dev,test}.tsv     query id, passage id
    natural.query.txt, qrels.natural.tsv     the hand-written questions

All fields are tab-separated. Ids count from 0. The splits share no module. A module is one of the top level,
or one inside of a package with so many queries that it would be most of a split.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import os
import re
import shutil
import sys
import sysconfig
import textwrap
import warnings
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import cleandoc
from itertools import count
from pathlib import Path
from statistics import mean

QUESTIONS = Path(__file__).with_name("pydocs_questions.tsv")
SHARES = {"train": 0.75, "dev": 0.10, "test": 0.15}
LARGEST_MODULE = 0.02  # of all queries; a larger package is divided
QUERY_WORDS = range(3, 41)
MIN_PASSAGE_WORDS = 8
MAX_PASSAGE_WORDS = 200
FILES = ("para.txt", "para.title.txt") + tuple(
    name for split in (*SHARES, "natural") for name in (f"{split}.query.txt", f"qrels.{split}.tsv")
)

SKIPPED_FOLDERS = {"__pycache__", "_vendor", "dist-packages", "lib-dynload", "site-packages", "test", "tests"}
SKIPPED_FOLDERS |= {"distutils", "ensurepip", "idlelib", "lib2to3", "turtledemo"}
TOPICS = ("pydoc_data", "topics")
# Modules that document the same thing belong to one split.
FAMILIES = {"posixpath": "os", "ntpath": "os", "genericpath": "os", "pydecimal": "decimal", "pyio": "io"}

SENTENCE_END = re.compile(r"(?<!e\.g)(?<!i\.e)(?<!etc)(?<!cf)(?<!vs)[.!?][)\"']*(?:\s+(?=[^a-z\s])|\s\s+|$)")
BLANK_LINE = re.compile(r"\n\s*\n")
NOT_PROSE = re.compile(r"->|=|:$")  # a signature, code, the head of a list
SIGNATURE = re.compile(r"[\w.]+\(.*\)(?:\s*->.*)?")
TOPIC_ENTRY = re.compile(r"^(?P<name>[a-z]\w*(?:\.\w+)+)\(.*\)\n\n(?P<text>(?: {3}.*\n|\n)+)", re.MULTILINE)
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


@dataclass
class Sources:
    """What the files gave: docstrings as (name, docstring), and the files that do not parse."""

    docs: list[tuple[str, str]] = field(default_factory=list)
    names_of_first_root: set[str] = field(default_factory=set)
    files: int = 0
    unreadable: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Summary:
    """The figures of a built collection."""

    passages: int
    pairs: Mapping[str, int]
    modules: Mapping[str, int]
    query_words: float
    passage_words: float
    questions: int
    dropped_questions: int
    files: int
    unreadable: Sequence[str]

    def __str__(self) -> str:
        splits = ", ".join(f"{s} {self.pairs[s]} ({self.modules[s]} modules)" for s in SHARES)
        lines = [
            f"{self.passages} passages, {sum(self.pairs.values())} of them with a query: {splits}",
            f"mean words: query {self.query_words:.1f}, passage {self.passage_words:.1f}",
            f"natural questions: {self.questions} kept, {self.dropped_questions} dropped (no answer here)",
            f"source files: {self.files} parsed, {len(self.unreadable)} skipped as unreadable",
        ]
        return "\n".join(lines + [f"  skipped: {path}" for path in self.unreadable[:5]])


# Reading the sources


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


# From docstrings to items


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


# From items to a collection


def digest(text: str) -> str:
    """A hash that is the same in every process."""
    return hashlib.sha256(text.encode()).hexdigest()


def divide(items: Sequence[Item]) -> list[Item]:
    """Take the modules inside of a large package for modules of their own."""
    sizes = Counter(item.module for item in items if item.query)
    large = {module for module, size in sizes.items() if size > LARGEST_MODULE * sizes.total()}
    return [
        replace(item, module=".".join(item.name.split(".")[:2])) if item.module in large else item
        for item in items
    ]


def assign_splits(items: Iterable[Item]) -> dict[str, str]:
    """Each module's split: in the order of their hashes, each to the split furthest behind its share."""
    sizes = Counter(item.module for item in items if item.query)
    missing = {split: share * sizes.total() for split, share in SHARES.items()}
    chosen = {}
    for module in sorted(sizes, key=digest):
        chosen[module] = max(missing, key=missing.__getitem__)
        missing[chosen[module]] -= sizes[module]
    return chosen


def sample(items: Sequence[Item], limit: int | None, first: Container[str]) -> Sequence[Item]:
    """At most `limit` items in their order: always the same ones.

    Those named in `first` (the standard library) come before the rest, which the questions do not ask
    for, and of the rest those with a query; among equals, a fixed draw from every module alike.
    """
    if limit is None:
        return items
    ranked = sorted(items, key=lambda item: (item.name not in first, not item.query, digest(item.name)))
    chosen = {item.name for item in ranked[:limit]}
    return [item for item in items if item.name in chosen]


def read_questions(path: Path) -> list[tuple[str, list[str]]]:
    """The questions, each with the qualified names that answer it."""
    questions = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        question, _, names = line.partition("\t")
        if not question.strip() or not names.strip():
            raise ValueError(
                f"{path}, line {number}: {line!r} is not a question. "
                "Write the question, a tab, then the names that answer it, separated by spaces."
            )
        questions.append((question.strip(), names.split()))
    return questions


def layout(
    items: Sequence[Item], splits: Mapping[str, str], questions: Iterable[tuple[str, list[str]]]
) -> dict[str, list[str]]:
    """The lines of every file. A question without an answer among the items is left out."""
    files: dict[str, list[str]] = {name: [] for name in FILES}
    query_ids = count()

    def ask(split: str, text: str, answers: Iterable[int]) -> None:
        query_id = next(query_ids)
        files[f"{split}.query.txt"].append(f"{query_id}\t{text}")
        files[f"qrels.{split}.tsv"].extend(f"{query_id}\t{answer}" for answer in answers)

    for number, item in enumerate(items):
        files["para.txt"].append(f"{number}\t{item.text}")
        files["para.title.txt"].append(f"{number}\t{item.name}")
        if item.query:
            ask(splits[item.module], item.query, [number])
    numbers = {item.name: number for number, item in enumerate(items)}
    for question, names in questions:
        if answers := [numbers[name] for name in dict.fromkeys(names) if name in numbers]:
            ask("natural", question, answers)
    return files


def write_folder(out: Path, files: Mapping[str, Iterable[str]]) -> None:
    """Write the files to a temporary folder, then rename it: never half a collection."""
    check_replaceable(out)
    fresh = out.with_name(f".{out.name}.{os.getpid()}")
    fresh.mkdir(parents=True)
    try:
        for name, lines in files.items():
            text = "".join(f"{line}\n" for line in lines)
            (fresh / name).write_text(text, encoding="utf-8", newline="\n")
        if out.exists():
            shutil.rmtree(out)
        fresh.rename(out)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def check_replaceable(out: Path) -> None:
    """Refuse to replace a folder that holds anything but an earlier build."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ValueError(f"{out} is a file. Give a folder to write to as --out.")
    if foreign := sorted(path.name for path in out.iterdir() if path.name not in FILES):
        raise ValueError(
            f"{out} holds files that this script did not write: {', '.join(foreign[:3])}. "
            "Only an earlier build is replaced. Give another --out, or move those files away."
        )


def summarise(
    items: Sequence[Item], splits: Mapping[str, str], sources: Sources, asked: int, kept: int
) -> Summary:
    """Count what was built."""
    pairs = [item for item in items if item.query]
    return Summary(
        passages=len(items),
        pairs={split: sum(splits[item.module] == split for item in pairs) for split in SHARES},
        modules={
            split: len({item.module for item in pairs if splits[item.module] == split}) for split in SHARES
        },
        query_words=mean(len(item.query.split()) for item in pairs),
        passage_words=mean(len(item.text.split()) for item in items),
        questions=kept,
        dropped_questions=asked - kept,
        files=sources.files,
        unreadable=sources.unreadable,
    )


def build(
    roots: Sequence[Path],
    out: Path,
    questions: Path | None = None,
    max_passages: int | None = None,
) -> Summary:
    """Write the collection of the sources under `roots` to the folder `out`."""
    check(roots, max_passages)
    asked = read_questions(questions) if questions else []
    sources = read_sources(roots)
    every = divide(drop_repeats(make_item(name, docstring) for name, docstring in sources.docs))
    splits = assign_splits(every)
    items = sample(every, max_passages, sources.names_of_first_root)
    if not any(item.query for item in items):
        raise ValueError(
            f"No docstring of two sentences or more among {sources.files} files under "
            f"{', '.join(map(str, roots))}. Give folders of documented Python source, or a larger "
            "--max-passages."
        )
    files = layout(items, splits, asked)
    write_folder(out, files)
    return summarise(items, splits, sources, len(asked), len(files["natural.query.txt"]))


def check(roots: Iterable[Path], max_passages: int | None) -> None:
    """Refuse arguments that cannot give a collection."""
    for root in roots:
        if not root.is_dir():
            raise ValueError(f"{root} is not a folder. Give folders that hold Python source.")
    if max_passages is not None and max_passages < 1:
        raise ValueError(f"--max-passages is {max_passages}. Give 1 or more, or leave it out to keep all.")


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
    raise ValueError(f"No package {name} is installed. Install it, or leave it out of --installed.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Build from the command line."""
    parser = argparse.ArgumentParser(description="Build a retrieval collection from Python's own docstrings.")
    parser.add_argument("--out", type=Path, default=Path("data/pydocs"), help="folder (default: %(default)s)")
    parser.add_argument(
        "--installed",
        nargs="*",
        metavar="PACKAGE",
        help="read these installed packages as well; without names, all",
    )
    parser.add_argument("--questions", type=Path, default=QUESTIONS, help="the natural questions")
    parser.add_argument("--max-passages", type=int, metavar="N", help="keep a sample of N passages")
    options = parser.parse_args(arguments)
    try:
        summary = build(python_roots(options.installed), options.out, options.questions, options.max_passages)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"wrote {options.out}\n{summary}")


if __name__ == "__main__":
    main()
