"""The splits of a collection: which files there are, and what training needs and does not find."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

DEV = ("dev", "validation", "valid", "val")
"""Names of the split that chooses the best models; the first that is there is taken."""
HELD_OUT = ("test", "eval", *DEV)
"""Beginnings of the names of splits whose queries must not be trained on, though they have no judgements."""
UNLABELLED = ("augment", "unlabeled", "unlabelled")
"""Names of BEIR files (`NAME.jsonl`) that are taken for unlabelled queries."""

Layout = tuple[set[str], set[str], Callable[[str, str], Iterable[str]]]
"""Labelled splits, unlabelled ones, and what is lacking of a split that is called something."""


@dataclass(frozen=True)
class Splits:
    """The names of the splits to train on, to choose by, to report on, and to make pseudo labels for."""

    train: str
    dev: str
    tests: tuple[str, ...] = ()
    unlabelled: str | None = None


def find_splits(folder: Path) -> Splits:
    """Tell the splits of a collection in the layout of RocketQA or BEIR by its files.

    Raises:
        FileNotFoundError: the folder, or what training needs of it, is not there; the message lists it all.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected one with para.txt or corpus.jsonl")
    names = {path.name.removesuffix(".gz") for path in folder.iterdir() if path.is_file()}
    beir = "corpus.jsonl" in names and "para.txt" not in names
    labelled, unlabelled, lacking = _beir(folder, names) if beir else _rocketqa(names)
    dev = next((name for name in DEV if name in labelled), None)
    needs = [] if beir or "para.txt" in names else ["para.txt, the passages (or BEIR's corpus.jsonl)"]
    needs += lacking("train", "the training queries") if "train" not in labelled else []
    needs += lacking("dev", "the queries that choose the best models") if dev is None else []
    if needs:
        listed = "".join(f"\n  {need}" for need in dict.fromkeys(needs))
        raise FileNotFoundError(f"{folder} lacks what training needs:{listed}")
    tests = tuple(sorted(labelled - {"train", dev}))
    return Splits("train", dev, tests, min(unlabelled, default=None))


def _rocketqa(names: set[str]) -> Layout:
    queries = {name.removesuffix(".query.txt") for name in names if name.endswith(".query.txt")}
    judged = {
        name.removeprefix("qrels.").removesuffix(".tsv")
        for name in names
        if name.startswith("qrels.") and name.endswith(".tsv")
    }

    def lacking(split: str, noun: str) -> Iterator[str]:
        if split not in queries:
            yield f"{split}.query.txt, {noun}"
        if split not in judged:
            yield f"qrels.{split}.tsv, their relevant passages"

    unlabelled = {name for name in queries - judged if not name.startswith(HELD_OUT)}
    return queries & judged, unlabelled, lacking


def _beir(folder: Path, names: set[str]) -> Layout:
    qrels = folder / "qrels"
    files = {path.name.removesuffix(".gz") for path in qrels.iterdir()} if qrels.is_dir() else set()
    judged = {name.removesuffix(".tsv") for name in files if name.endswith(".tsv")}
    unlabelled = {name for name in UNLABELLED if f"{name}.jsonl" in names}

    def lacking(split: str, noun: str) -> Iterator[str]:
        if "queries.jsonl" not in names:
            yield "queries.jsonl, the queries of all splits"
        yield f"qrels/{split}.tsv, the relevant passages of {noun}"

    labelled = judged if "queries.jsonl" in names else set()
    return labelled, unlabelled, lacking
