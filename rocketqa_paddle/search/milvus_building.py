"""How a corpus becomes a collection of Milvus, which replaces an older one when it is whole."""

from __future__ import annotations

import re

from rocketqa_paddle.data.dataset import Corpus
from rocketqa_paddle.search import milvus_connection
from rocketqa_paddle.search.milvus_collection import Record, bar, check_ours, create, read_record
from rocketqa_paddle.search.milvus_connection import connect, shown, speaking
from rocketqa_paddle.search.milvus_words import PROPERTY, WordCounts, count_passages, words_of
from rocketqa_paddle.search.vectors import Vectors


def check_replaceable(uri: str, collection: str) -> None:
    """Refuse a place where `build` would replace something that we did not write, before any work.

    Raises:
        ValueError: says what is there; or another process has the file.
        OSError: Milvus does not answer.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,199}", collection):
        raise ValueError(
            f"collection {collection!r}: expected at most 200 letters, digits and _, and no digit at first"
        )
    client = connect(uri)
    with speaking(shown(uri)):
        for name in (collection, _unfinished(collection)):
            if client.has_collection(name):
                read_record(client, name, f"{shown(uri)}, {name}")
            if client.has_collection(words := words_of(name)):
                check_ours(client, words, f"{shown(uri)}, {words}", PROPERTY)


def build(
    uri: str, collection: str, model: str, corpus: Corpus, vectors: Vectors, *, bm25: bool = False
) -> None:
    """Write a corpus into a collection, batch by batch, which replaces an older one of ours when it is whole.

    Args:
        uri: a file of milvus-lite, `NAME.db`, which is made if it is not there, or a server.
        collection: its name. While it is filled, the name ends in `_rocketqa_new`.
        model: the digest of the model that made the vectors.
        corpus: the passages.
        vectors: their vectors, `[passages, hidden]`.
        bm25: index the words as well, for fused searches; needs the package bm25s.

    Raises:
        ValueError: see `check_replaceable` and `check_lengths`.
        OSError: Milvus does not answer.
    """
    check_replaceable(uri, collection)
    client, new = connect(uri), _unfinished(collection)
    counts, mean_length = count_passages(corpus.rows) if bm25 else ({}, None)
    record = Record(
        model, vectors.dimension, passages=len(corpus), next_row=len(corpus), mean_length=mean_length
    )
    with speaking(f"{shown(uri)}, {collection}"):
        for unfinished in (new, words_of(new)):
            client.drop_collection(unfinished)
        create(client, new, record)
        with bar("insert", len(corpus)) as progress:
            for first, block in vectors.blocks(milvus_connection.BATCH):
                rows = range(first, first + len(block))
                client.insert(new, record.entities(corpus.rows[first : rows.stop], rows, block))
                progress.update(len(block))
        if bm25:
            words = WordCounts(client, new)
            words.create()
            words.add(counts)
        for old in (words_of(collection), collection):  # a stop here leaves no words of other passages
            client.drop_collection(old)
        if bm25:
            client.rename_collection(words_of(new), words_of(collection))
        client.rename_collection(new, collection)
        client.load_collection(collection)


def _unfinished(collection: str) -> str:
    return f"{collection}_rocketqa_new"
