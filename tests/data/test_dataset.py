"""The data of a run: which queries belong to which split, and the fingerprints of the data."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import toy

from rocketqa_paddle.data import dataset
from rocketqa_paddle.data.collections import read_collection
from rocketqa_paddle.data.dataset import Corpus
from rocketqa_paddle.runs.artefacts import described
from rocketqa_paddle.runtime.storage import file_fingerprint, fingerprint
from rocketqa_paddle.settings import DataSettings


@pytest.fixture
def folder(tmp_path):
    return toy.write(tmp_path / "toy")


def load(folder, **settings) -> dataset.Dataset:
    return dataset.load(DataSettings(folder=str(folder), **settings), Path(folder).with_name("corpus"))


def add(path, *lines) -> None:
    path.write_text(path.read_text() + "".join(f"{line}\n" for line in lines))


def test_unlabelled_queries_are_new_texts_each_kept_once(folder):
    """Texts decide, not ids: two files may give their queries the same numbers."""
    queries = folder / "unlabelled.query.txt"
    splits = read_collection(folder, ["train", "dev"]).splits.values()
    texts = [next(iter(split.queries.values())).text for split in splits]
    add(
        queries,
        f"x1\t{texts[0].upper()}",
        f"x2\t {texts[1]}",
        "x3\tlook for  some RED horse",
        "x4\tlook for some red horse",
    )
    before = len(toy.collection().splits["unlabelled"].queries)
    loaded = load(folder, unlabelled="unlabelled", tests=["test"])
    assert len(loaded.unlabelled.queries) in (before, before + 1)  # there may be a query for a red horse
    keys = [query.key for query in loaded.unlabelled.queries.values()]
    assert len(keys) == len(set(keys))
    assert not {"x1", "x2", "x4"} & loaded.unlabelled.queries.keys()
    assert loaded.unlabelled.qrels == {}
    assert [note.partition(" unlabelled queries ")[2] for note in loaded.notes] == [
        "are also labelled training queries: left out",
        "are dev or test queries: left out",
        "repeat another query: left out",
    ]


def test_judgements_of_unlabelled_queries_are_not_read(folder):
    (folder / "qrels.unlabelled.tsv").write_text("no judgement at all\n")
    assert len(load(folder, unlabelled="unlabelled").unlabelled.queries) == 10


@pytest.mark.parametrize("file", ["unlabelled.jsonl", "qrels/unlabelled.tsv"])
def test_unlabelled_queries_of_a_beir_folder(tmp_path, file):
    collection = toy.collection()
    (tmp_path / "qrels").mkdir()
    lines = [{"_id": p.id, "title": p.title, "text": p.text} for p in collection.passages.values()]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    every = [query for split in collection.splits.values() for query in split.queries.values()]
    rows = "".join(json.dumps({"_id": query.id, "text": query.text}) + "\n" for query in every)
    (tmp_path / "queries.jsonl").write_text(rows)
    for name in ("train", "dev"):
        qrels = [f"{q}\t{p}\t1" for q, judged in collection.splits[name].qrels.items() for p in judged]
        (tmp_path / f"qrels/{name}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *qrels]) + "\n")
    unlabelled = collection.splits["unlabelled"].queries
    if file.endswith("jsonl"):
        rows = [json.dumps({"_id": query.id, "text": query.text}) for query in unlabelled.values()]
    else:
        rows = ["query-id\tcorpus-id\tscore", *(f"{query_id}\tp1\t0" for query_id in unlabelled)]
    (tmp_path / file).write_text("\n".join(rows) + "\n")
    assert load(tmp_path, unlabelled="unlabelled").unlabelled.queries == unlabelled


def test_splits_are_cut_to_the_limits(folder):
    loaded = load(
        folder,
        tests=["test"],
        unlabelled="train",
        max_train_queries=12,
        max_unlabelled_queries=9,
        max_dev_queries=4,
        max_test_queries=3,
    )
    assert len(loaded.labelled.queries) == len(loaded.labelled.qrels) == 12
    assert len(loaded.unlabelled.queries) == 9
    assert not loaded.unlabelled.queries.keys() & loaded.labelled.queries.keys()
    assert {name: len(split.queries) for name, split in loaded.evaluated.items()} == {"dev": 4, "test": 3}


def test_the_training_split_may_be_evaluated_and_unlabelled_at_once(folder):
    loaded = load(folder, tests=["train"], unlabelled="train", max_train_queries=25)
    assert len(loaded.unlabelled.queries) == 15
    assert len(loaded.evaluated["train"].queries) == 40


def test_no_unlabelled_query_is_left(folder):
    with pytest.raises(ValueError, match="none of the 40 queries of 'train' is left .40 are also labelled"):
        load(folder, unlabelled="train")


def test_faulty_records_stop_the_reading_or_are_left_out(folder):
    """What is left out changes the fingerprints by its content, and the setting itself changes none."""
    assert described({"data": DataSettings("x")}) == described({"data": DataSettings("x", on_error="skip")})
    whole = load(folder, unlabelled="unlabelled")
    assert str(load(folder, unlabelled="unlabelled", on_error="skip").corpus) == str(whole.corpus)
    add(folder / "qrels.dev.tsv", "dev0\tp99", "nobody\tp1")
    add(folder / "train.query.txt", "lonely\ta query")
    add(folder / "unlabelled.query.txt", "empty\t")
    with pytest.raises(ValueError, match="without a relevant passage: 1, the first is 'lonely'"):
        load(folder)
    loaded = load(folder, unlabelled="unlabelled", on_error="skip")
    assert len(loaded.labelled.queries) == 40
    assert loaded.labelled.fingerprint == whole.labelled.fingerprint
    assert loaded.evaluated["dev"].fingerprint == whole.evaluated["dev"].fingerprint
    assert [note.split(":")[0] for note in loaded.notes] == [
        "queries of train.query.txt without a relevant passage",
        "judged queries that are not in dev.query.txt",
        "judged passages that are not in para.txt",
        "queries of unlabelled.query.txt without a text",
    ]


def test_judgements_of_other_queries_are_told_from_none(folder):
    """As when the ids of the two files are written differently."""
    qrels = folder / "qrels.train.tsv"
    qrels.write_text("".join(f"other-{line}\n" for line in qrels.read_text().splitlines()))
    told = r"'train' has no judgements .*\n  judged queries that are not in train\.query\.txt: .*'other-"
    with pytest.raises(ValueError, match=told):
        load(folder, on_error="skip")


def test_fingerprints_name_content_and_order(folder, tmp_path):
    passages = list(toy.collection().passages.values())
    name = fingerprint(passages)
    assert name == hashlib.sha256("".join(map(repr, passages)).encode()).hexdigest()[:16]
    assert name == fingerprint(load(folder).corpus.rows)
    assert load(folder).corpus.fingerprint == Corpus(dict(load(folder).corpus.passages.items())).fingerprint
    assert name != fingerprint(passages[::-1])
    assert name != fingerprint(passages[:-1])
    (tmp_path / "a").write_bytes(b"x" * 3_000_000)
    (tmp_path / "b").write_bytes(b"x" * 2_999_999 + b"y")
    assert file_fingerprint(tmp_path / "a") != file_fingerprint(tmp_path / "b")
