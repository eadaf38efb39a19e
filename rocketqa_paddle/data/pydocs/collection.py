"""A collection of docstrings: items divided into splits that share no module, written as a folder."""

import hashlib
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from statistics import mean

from rocketqa_paddle.data.pydocs.items import Item, drop_repeats, make_item
from rocketqa_paddle.data.pydocs.sources import Sources, read_sources
from rocketqa_paddle.runtime.folders import Contents, replacing
from rocketqa_paddle.runtime.storage import write_json

QUESTIONS = Path(__file__).with_name("questions.tsv")
SHARES = {"train": 0.75, "dev": 0.10, "test": 0.15}
LARGEST_MODULE = 0.02  # of all queries; a larger package is divided
FILES = ("para.txt", "para.title.txt") + tuple(
    name for split in (*SHARES, "natural") for name in (f"{split}.query.txt", f"qrels.{split}.tsv")
)
RECORD, MADE_BY = "pydocs.json", "rocketqa_paddle.data.pydocs"
CONTENTS = Contents(
    "collection of docstrings",
    names=(RECORD, *FILES),
    markers=(RECORD,),
    is_ours=lambda values: values.get("made_by") == MADE_BY,
)


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
                f"{path}:{number}: {line!r} is not a question: "
                "write the question, a tab, then the names that answer it, separated by spaces"
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


def write_folder(out: Path, files: Mapping[str, Iterable[str]], summary: Summary) -> None:
    """Write the files and the figures as a folder, whole or not at all; see `replacing`."""
    with replacing(out, CONTENTS) as folder:
        for name, lines in files.items():
            text = "".join(f"{line}\n" for line in lines)
            (folder / name).write_text(text, encoding="utf-8", newline="\n")
        write_json(folder / RECORD, {"made_by": MADE_BY, **asdict(summary)})


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
    """Write the collection of the Python sources under some folders.

    The folder that it writes has the layout of RocketQA (docs/formats.md), with the splits `train`, `dev`,
    `test` and `natural`. Ids count from 0.

    Args:
        roots: folders of Python source; what the first one documents comes before the others.
        out: the folder to write. Nothing but an earlier build is ever replaced.
        questions: file of hand-written questions, see `read_questions`; they are the split `natural`.
        max_passages: keep a sample of so many passages, always the same one; all of them if it is None.

    Raises:
        ValueError: a root is no folder, the sources have no docstring to divide, the questions break their
            format, or `out` holds something else.
    """
    check(roots, max_passages)
    CONTENTS.check(out)
    asked = read_questions(questions) if questions else []
    sources = read_sources(roots)
    every = divide(drop_repeats(make_item(name, docstring) for name, docstring in sources.docs))
    splits = assign_splits(every)
    items = sample(every, max_passages, sources.names_of_first_root)
    if not any(item.query for item in items):
        raise ValueError(
            f"no docstring of two sentences or more among {sources.files} files under "
            f"{', '.join(map(str, roots))}: give folders of documented Python source, or more passages"
        )
    files = layout(items, splits, asked)
    summary = summarise(items, splits, sources, len(asked), len(files["natural.query.txt"]))
    write_folder(out, files, summary)
    return summary


def check(roots: Iterable[Path], max_passages: int | None) -> None:
    """Refuse arguments that cannot give a collection."""
    for root in roots:
        if not root.is_dir():
            raise ValueError(f"{root} is not a folder: give folders that hold Python source")
    if max_passages is not None and max_passages < 1:
        raise ValueError(f"max_passages={max_passages}, expected at least 1")
