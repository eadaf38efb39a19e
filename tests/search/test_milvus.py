"""A collection of Milvus, in a file and on a server, finds, changes and refuses as an index folder does."""

from __future__ import annotations

import fcntl
import json
import math
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import toy

from rocketqa_paddle import SearchEngine, checkpoints
from rocketqa_paddle.data.dataset import Corpus
from rocketqa_paddle.data.store import write_store
from rocketqa_paddle.records import Passage, Passages, Query
from rocketqa_paddle.search import bm25, fusion, milvus, milvus_connection
from rocketqa_paddle.search.bm25 import BM25Index
from rocketqa_paddle.search.folder import IndexFolder
from rocketqa_paddle.search.index import VectorIndex
from rocketqa_paddle.search.milvus import MilvusIndex
from rocketqa_paddle.search.milvus_building import build, check_replaceable
from rocketqa_paddle.search.milvus_collection import Record
from rocketqa_paddle.search.retrieval import CorpusIndex
from rocketqa_paddle.search.vectors import Vectors

pymilvus = pytest.importorskip("pymilvus", reason="needs the extra milvus")
pytest.importorskip("milvus_lite", reason="needs the extra milvus")

PASSAGES = toy.collection().passages
DRAW = np.random.default_rng(1)
QUERIES = DRAW.normal(size=(5, 16)).astype(np.float32)
NAMES = [str(number) for number in range(len(QUERIES))]
ODD = ("new", 'a"b', "it's", "back\\slash", "日本 é", "p61")


def vectors(count: int) -> np.ndarray:
    return DRAW.normal(size=(count, 16)).astype(np.float32)


VECTORS = vectors(60)
VECTORS[[7, 30, 59]] = VECTORS[3]  # passages of equal scores
WORDY = PASSAGES | {
    "p2": Passage("p2", "北京", "图书馆几点开门"),
    "p4": Passage("p4", "", "日本の図書館 opens at nine"),
    "p6": Passage("p6", "", "of the"),  # which has stop words alone
    "p8": Passage("p8", "red", "red red dog"),
}
TEXTS = ["where is a red dog", "图书馆 dog", "nobody knows", "the", "red Red blue cat"]
FUSIONS = [("rrf", None), ("weighted", 0.0), ("weighted", 0.3), ("weighted", 1.0)]


@pytest.fixture(autouse=True)
def _impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pymilvus asks twice a second whether the index of a new collection is there."""
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(seconds / 50))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("server")
    command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", folder / "served"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], stdout=log, stderr=log
        )
    try:
        for _ in range(100):
            if process.poll() is not None:
                pytest.skip(f"milvus-lite server does not run here: {(folder / 'log').read_text()[-300:]}")
            with socket.socket() as client:
                if not client.connect_ex(("127.0.0.1", port)):
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module", params=["file", "server"])
def uri(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param == "server":
        return request.getfixturevalue("server")
    return str(tmp_path_factory.mktemp("file") / "some.db")


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A collection of its own for every test."""
    return request.node.originalname


def made(uri: str, name: str, model: str = "m") -> MilvusIndex:
    build(uri, name, model, Corpus(PASSAGES), Vectors([VECTORS[:40], VECTORS[40:]]))
    return MilvusIndex(uri, name, model)


def wordy(uri: str, name: str) -> MilvusIndex:
    """A collection with BM25."""
    build(uri, name, "m", Corpus(WORDY), Vectors([VECTORS[:40], VECTORS[40:]]), bm25=True)
    return MilvusIndex(uri, name, "m")


def folder(path: Path, model: str = "m", passages: Passages = PASSAGES) -> IndexFolder:
    path.mkdir()
    VectorIndex(VECTORS, list(passages), model).save(path, write_store(path, passages))
    if passages is WORDY:
        BM25Index(passages.values()).save(path)
    return IndexFolder(path, model)


def assert_alike(one: object, other: object, k: int = 100) -> None:
    """Both find the same passages in the same order, with the same scores."""
    (run, passages), (expected, texts) = (index.find(NAMES, QUERIES, k) for index in (one, other))
    assert dict(passages) == dict(texts)
    for query in NAMES:
        assert [(h.rank, h.passage_id) for h in run[query]] == [
            (h.rank, h.passage_id) for h in expected[query]
        ]
        assert [h.score for h in run[query]] == pytest.approx([h.score for h in expected[query]], abs=1e-5)


def by_hand(passages: Passages, mean_length: float) -> list[dict[str, float]]:
    """The scores of BM25 by their formula, for every one of `TEXTS`: those above 0."""
    words = dict(zip(passages, bm25.words(f"{p.title} {p.text}" for p in passages.values()), strict=True))
    found = []
    for asked in bm25.words(TEXTS):
        scores = dict.fromkeys(passages, 0.0)
        for word in asked:
            there = sum(word in of for of in words.values())
            rareness = math.log(1 + (len(passages) - there + 0.5) / (there + 0.5))
            for id, of in words.items():
                norm = 1.5 * (0.25 + 0.75 * len(of) / mean_length)
                scores[id] += rareness * of.count(word) / (of.count(word) + norm)
        found.append({id: score for id, score in scores.items() if score})
    return found


def assert_bm25(index: MilvusIndex, passages: Passages) -> None:
    """BM25 finds what its formula says, with the mean length of `WORDY`."""
    lengths = [len(words) for words in bm25.words(f"{p.title} {p.text}" for p in WORDY.values())]
    _, run = index.both(NAMES, QUERIES, TEXTS, 100)
    for query, expected in zip(NAMES, by_hand(passages, np.mean(lengths)), strict=True):
        assert {hit.passage_id: hit.score for hit in run[query]} == pytest.approx(expected, abs=1e-5)


def client(uri: str) -> pymilvus.MilvusClient:
    return pymilvus.MilvusClient(uri)


# What it finds -------------------------------------------------------------------------------------


def test_hits_are_those_of_the_exact_search(uri, name, tmp_path, monkeypatch):
    expected, index = folder(tmp_path / "index"), made(uri, name)
    for k in (1, 2, 3, 59, 60, 100):
        assert_alike(index, expected, k)
    monkeypatch.setattr(milvus, "_NUMBERS", 1)  # a request a query
    assert_alike(index, expected)
    assert index.find([], QUERIES[:0], 5) == ({}, {})
    assert len(index) == 60


def test_an_engine_finds_the_same_in_milvus(uri, name, best):
    retriever = checkpoints.load(best / "retriever")
    corpus = Corpus(PASSAGES)
    encoded = CorpusIndex(retriever, corpus, progress="").vectors
    build(uri, name, retriever.digest(), corpus, encoded)
    queries = ["where is a red dog", "blue cat"]
    expected = SearchEngine.open(best).search(queries, k=7, depth=3)
    assert SearchEngine.open(best, uri=uri, collection=name).search(queries, k=7, depth=3) == expected
    with pytest.raises(ValueError, match=r"two indexes, x and .*: give one of them"):
        SearchEngine.open(best, "x", uri=uri)


def test_threads_get_the_answers_given_alone(uri, name):
    index = made(uri, name)
    expected = [index.find([id], query[None], 9) for id, query in zip(NAMES, QUERIES, strict=True)]
    with ThreadPoolExecutor(3) as pool:
        jobs = list(range(len(NAMES))) * 5
        found = pool.map(lambda n: index.find([NAMES[n]], QUERIES[n : n + 1], 9), jobs)
        assert [*found] == [expected[job] for job in jobs]


# With BM25 ------------------------------------------------------------------------------------------


def test_bm25_finds_what_it_finds_in_a_folder(uri, name, tmp_path, monkeypatch):
    expected, index = folder(tmp_path / "index", passages=WORDY), wordy(uri, name)
    for k in (1, 5, 100):
        for run, other in zip(
            index.both(NAMES, QUERIES, TEXTS, k), expected.both(NAMES, QUERIES, TEXTS, k), strict=True
        ):
            for query in NAMES:
                assert [h.passage_id for h in run[query]] == [h.passage_id for h in other[query]]
                scores = [h.score for h in other[query]]
                assert [h.score for h in run[query]] == pytest.approx(scores, abs=1e-5)
    assert run[NAMES[0]]
    assert run[NAMES[1]][0].passage_id == "p2"
    assert run[NAMES[2]] == run[NAMES[3]] == []
    assert_bm25(index, WORDY)
    monkeypatch.setattr(milvus, "_NUMBERS", 1)  # a request a query
    assert_bm25(index, WORDY)
    assert_alike(index, expected)  # and without it the retriever finds the same


@pytest.mark.parametrize(("fuse", "weight"), FUSIONS)
def test_a_fusion_is_that_of_a_folder(uri, name, tmp_path, monkeypatch, fuse, weight):
    indexes = wordy(uri, name), folder(tmp_path / "index", passages=WORDY)
    monkeypatch.setattr(fusion, "POOL", 20)
    for numbers, k in ((milvus._NUMBERS, 7), (1, 7), (1, 60)):
        monkeypatch.setattr(milvus, "_NUMBERS", numbers)
        (run, passages, inner), (expected, texts, scores) = (
            index.fused(NAMES, QUERIES, TEXTS, k, fuse, weight) for index in indexes
        )
        assert dict(passages) == dict(texts)
        for query in NAMES:
            assert [h.passage_id for h in run[query]] == [h.passage_id for h in expected[query]]
            assert [h.score for h in run[query]] == pytest.approx(
                [h.score for h in expected[query]], abs=1e-5
            )
            assert inner[query] == pytest.approx(scores[query][: len(inner[query])], abs=1e-5)
    assert indexes[0].fused([], QUERIES[:0], [], 5, fuse, weight) == ({}, {}, {})
    assert not any(indexes[0].both([], QUERIES[:0], [], 5))


def test_an_engine_fuses_in_milvus(uri, name, best, tmp_path):
    retriever = checkpoints.load(best / "retriever")
    made = CorpusIndex(retriever, Corpus(WORDY), progress="")
    made.save(tmp_path / "index", retriever.digest(), bm25=True)
    build(uri, name, retriever.digest(), Corpus(WORDY), made.vectors, bm25=True)
    there = SearchEngine.open(best, uri=uri, collection=name)
    here = SearchEngine.open(best, tmp_path / "index")
    for depth in (0, 3):
        found, expected = (engine.search(TEXTS, 7, depth, fuse="rrf") for engine in (there, here))
        assert [[r.passage for r in results] for results in found] == [
            [r.passage for r in results] for results in expected
        ]
    queries = {id: Query(id, text) for id, text in zip(NAMES, TEXTS, strict=True)}
    for found, expected in zip(there.candidates(queries), here.candidates(queries), strict=True):
        assert [[h.passage_id for h in found[id]] for id in NAMES] == [
            [h.passage_id for h in expected[id]] for id in NAMES
        ]


def test_changes_of_passages_reach_the_words(uri, name, monkeypatch):
    monkeypatch.setattr(milvus_connection, "BATCH", 4)
    index, passages = wordy(uri, name), dict(WORDY)
    more = {id: Passage(id, "", f"{id} 图书馆 knows") for id in (*ODD, "p8", "p9")}
    index.update(Corpus(more), Vectors([vectors(len(more))]))
    assert_bm25(index, passages := passages | more)
    index.delete(gone := ["p1", "p2", "new", "nobody"])
    passages = {id: passage for id, passage in passages.items() if id not in gone}
    assert_bm25(MilvusIndex(uri, name, "m"), passages)


@pytest.mark.parametrize("after", [0, 2])
def test_words_are_right_after_a_change_that_was_stopped(uri, name, monkeypatch, after):
    """Stopped among the passages, and among the counts of the words."""
    monkeypatch.setattr(milvus_connection, "BATCH", 2)
    monkeypatch.setattr(milvus, "_ROWS", 10)
    index = wordy(uri, name)
    more = {id: Passage(id, "", f"{id} red knows") for id in (*ODD, "p8")}
    added, upsert = vectors(len(more)), pymilvus.MilvusClient.upsert
    asked = []

    def stop(client, collection, *others):
        asked.append(collection)
        words = collection.endswith("_rocketqa_words")
        if sum(other == collection for other in asked) > 2 and words == bool(after):
            raise KeyboardInterrupt
        return upsert(client, collection, *others)

    with monkeypatch.context() as patch:
        patch.setattr(pymilvus.MilvusClient, "upsert", stop)
        with pytest.raises(KeyboardInterrupt):
            index.update(Corpus(more), Vectors([added]))
    index.find(NAMES, QUERIES, 5)
    index.fused(NAMES, QUERIES, TEXTS, 5, "rrf", None)
    again = MilvusIndex(uri, name, "m")
    again.update(Corpus(more), Vectors([added]))
    assert_bm25(again, passages := WORDY | more)
    assert index.delete(["p8"]) == 1  # by an engine that was open before
    assert_bm25(again, {id: passage for id, passage in passages.items() if id != "p8"})
    assert len(MilvusIndex(uri, name, "m")) == len(passages) - 1


def test_a_collection_is_replaced_with_its_words(uri, name):
    words = f"{name}_rocketqa_words"
    wordy(uri, name)
    assert_bm25(wordy(uri, name), WORDY)
    assert words in client(uri).list_collections()
    plain = made(uri, name)
    assert not [other for other in client(uri).list_collections() if other.startswith(f"{name}_")]
    for search in (
        lambda: plain.fused(NAMES, QUERIES, TEXTS, 5, "rrf", None),
        lambda: plain.both(NAMES, QUERIES, TEXTS, 5),
    ):
        with pytest.raises(ValueError, match=f"{name} has no BM25: build it with .* --bm25 true"):
            search()


def test_words_that_are_missing_or_of_something_else(uri, name, monkeypatch):
    words = f"{name}_rocketqa_words"
    index = wordy(uri, name)
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ValueError, match="a fusion with BM25 needs the package bm25s"):
            index.fused(NAMES, QUERIES, TEXTS, 5, "rrf", None)
        with pytest.raises(ValueError, match="an update needs the package bm25s"):
            index.need_bm25s("an update")
        made(uri, f"{name}_plain").need_bm25s("an update")
        assert_alike(index, index)
    client(uri).drop_collection(words)
    with pytest.raises(ValueError, match="counts of its words are missing: build it again with"):
        MilvusIndex(uri, name)
    client(uri).create_collection(words, dimension=4)
    with pytest.raises(ValueError, match=f"{words} is a collection that this project did not write"):
        wordy(uri, name)
    assert words in client(uri).list_collections()


def test_a_collection_of_format_1_opens_and_changes(uri, name, tmp_path):
    made(uri, name)
    properties = client(uri).describe_collection(name)["properties"]
    record = json.loads(properties["rocketqa"]) | {"format_version": 1}
    del record["mean_length"]
    client(uri).alter_collection_properties(name, {"rocketqa": json.dumps(record)})
    index, expected = MilvusIndex(uri, name, "m"), folder(tmp_path / "index")
    assert_alike(index, expected)
    more = {"new": Passage("new", "", "new")}
    for opened in (index, expected):
        opened.update(Corpus(more), Vectors([VECTORS[:1]]))
    assert_alike(MilvusIndex(uri, name, "m"), IndexFolder(tmp_path / "index"))
    client(uri).alter_collection_properties(name, {"rocketqa": json.dumps(record | {"format_version": 3})})
    with pytest.raises(ValueError, match="format 3, expected 2: drop it"):
        MilvusIndex(uri, name)


# Changes -------------------------------------------------------------------------------------------


def test_changes_are_those_of_a_folder(uri, name, tmp_path, monkeypatch):
    monkeypatch.setattr(milvus_connection, "BATCH", 4)
    path, index = tmp_path / "index", made(uri, name)
    folder(path)
    more = {id: Passage(id, "", f"text of {id}") for id in (*ODD, "p3", "p59", "p0")}
    added = vectors(len(more))
    added[[0, 6, 7]] = VECTORS[3]  # a new one comes last of equal scores, p3 and p59 where they were
    for opened in (index, IndexFolder(path)):
        assert opened.update(Corpus(more), Vectors([added])) == 3
    assert_alike(index, IndexFolder(path, "m"))
    for opened in (index, IndexFolder(path)):
        assert opened.delete([*ODD[:3], "p7", "p8", "nobody", "p7"]) == 5
    assert_alike(MilvusIndex(uri, name, "m"), IndexFolder(path, "m"))
    again = {id: Passage(id, "T", "again") for id in ("p7", "new")}
    for opened in (index, IndexFolder(path)):
        assert opened.update(Corpus(again), Vectors([np.stack([VECTORS[3]] * 2)])) == 0
    assert_alike(MilvusIndex(uri, name, "m"), IndexFolder(path, "m"))
    assert len(index) == len(IndexFolder(path)) == 60 + 6 - 5 + 2
    for opened in (index, IndexFolder(path)):
        with pytest.raises(ValueError, match="no passage would be left"):
            opened.delete([*PASSAGES, *more])
        assert len(opened) == 63


def test_an_update_that_was_stopped_goes_on(uri, name, tmp_path, monkeypatch):
    monkeypatch.setattr(milvus_connection, "BATCH", 2)
    index, expected = made(uri, name), folder(tmp_path / "index")
    more = {id: Passage(id, "", id) for id in (*ODD, "p1")}
    added, entities = vectors(7), Record.entities

    def stop(record, passages, *others):
        if passages[0].id == ODD[4]:
            raise KeyboardInterrupt
        return entities(record, passages, *others)

    monkeypatch.setattr(Record, "entities", stop)
    with pytest.raises(KeyboardInterrupt):
        index.update(Corpus(more), Vectors([added]))
    assert len(again := MilvusIndex(uri, name, "m")) == 64
    monkeypatch.setattr(Record, "entities", entities)
    assert again.update(Corpus(more), Vectors([added])) == 5
    expected.update(Corpus(more), Vectors([added]))
    assert_alike(MilvusIndex(uri, name), IndexFolder(tmp_path / "index"))


def test_a_build_that_was_stopped_leaves_the_old_collection(uri, name, tmp_path, monkeypatch):
    old = made(uri, name)
    fewer = {id: PASSAGES[id] for id in list(PASSAGES)[:20]}
    with monkeypatch.context() as patch:
        patch.setattr(Record, "entities", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build(uri, name, "m", Corpus(fewer), Vectors([VECTORS[:20]]))
    assert_alike(MilvusIndex(uri, name, "m"), folder(tmp_path / "index"))
    build(uri, name, "m", Corpus(fewer), Vectors([VECTORS[:20]]))
    assert len(MilvusIndex(uri, name, "m")) == 20
    assert f"{name}_rocketqa_new" not in client(uri).list_collections()
    assert len(old.find(NAMES, QUERIES, 100)[1]) == 20  # a name is what an engine keeps


def test_two_clients_see_what_either_does(server, name):
    index = made(server, name)
    assert "p5" in index.find(NAMES, QUERIES, 60)[1]
    code = "from rocketqa_paddle.search.milvus import MilvusIndex\n"
    code += f"print(MilvusIndex({server!r}, {name!r}).delete(['p5']))"
    done = toy.run(sys.executable, "-c", code, cwd=Path.cwd())
    assert (done.stdout, done.returncode) == ("1\n", 0), done.stderr
    assert "p5" not in index.find(NAMES, QUERIES, 60)[1]
    assert len(index) == 59


# What it refuses -----------------------------------------------------------------------------------


def test_another_model_is_refused(uri, name):
    index = made(uri, name)
    with pytest.raises(
        ValueError, match=f"{name}: made by model m, but the checkpoint is n: search with .*build it"
    ):
        MilvusIndex(uri, name, "n")
    with pytest.raises(ValueError, match="queries have 3 dimensions, the index 16"):
        index.find(NAMES, QUERIES[:, :3], 5)
    with pytest.raises(ValueError, match="16384 hits of a query, but Milvus gives at most 16376"):
        index.find(NAMES, QUERIES, 16384)
    made(uri, name, "n")
    with pytest.raises(OSError, match="Milvus answers: .*vector_m.* open the collection again"):
        index.find(NAMES, QUERIES, 5)


def test_a_collection_of_something_else_stays(uri, name):
    for there in (name, f"{name}_rocketqa_new"):
        client(uri).create_collection(there, dimension=4)
        client(uri).insert(there, [{"id": 1, "vector": [1.0, 2, 3, 4]}])
        with pytest.raises(
            ValueError, match=f"{there} is a collection that this project did not write, and stays"
        ):
            made(uri, name)
        assert client(uri).get_collection_stats(there)["row_count"] == 1
        if there == name:
            with pytest.raises(ValueError, match="did not write"):
                MilvusIndex(uri, name)
            client(uri).drop_collection(name)


def test_a_collection_that_was_changed_is_refused(uri, name):
    made(uri, name)
    client(uri).delete(name, ids=["p1"])
    with pytest.raises(ValueError, match="59 passages, but its record says 60.* build it again"):
        MilvusIndex(uri, name)
    client(uri).alter_collection_properties(name, {"rocketqa": "[1]"})
    with pytest.raises(ValueError, match="its property rocketqa is damaged"):
        MilvusIndex(uri, name)


def test_what_is_not_there_is_said_to_be_missing(uri, name, tmp_path):
    wordy(uri, there := f"a_{name}")
    with pytest.raises(FileNotFoundError, match=rf"no such collection \(there: {there}[,)]") as error:
        MilvusIndex(uri, "gone")
    assert "_rocketqa_words" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="gone.db: not there; make it with"):
        MilvusIndex(str(tmp_path / "gone.db"))
    assert not (tmp_path / "gone.db").exists()


@pytest.mark.parametrize("wrong", ["with-dash", "1st", ""])
def test_names_that_milvus_does_not_take(uri, wrong):
    with pytest.raises(ValueError, match="letters, digits and _"):
        build(uri, wrong, "m", Corpus(PASSAGES), Vectors([VECTORS]))


def test_long_passages_are_refused(uri, name):
    long = {"long": Passage("long", "", "é" * 33000)}
    with pytest.raises(ValueError, match="passage 'long': its text has 66000 bytes, but Milvus keeps 65535"):
        build(uri, name, "m", Corpus(long), Vectors([VECTORS[:1]]))
    fits = {"fits": Passage("fits", "", "é" * 32767)}
    build(uri, name, "m", Corpus(fits), Vectors([VECTORS[:1]]))
    assert MilvusIndex(uri, name).find(NAMES, QUERIES, 1)[1] == fits


def test_a_file_that_another_process_has(tmp_path):
    place = tmp_path / "some.db"
    (place / "collections").mkdir(parents=True)
    with (place / "LOCK").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for use in (MilvusIndex, lambda uri: check_replaceable(uri, "x")):
            with pytest.raises(
                ValueError, match="another process has this file.*milvus-lite server --data-dir"
            ):
                use(str(place))


def test_places_that_are_no_milvus(tmp_path):
    (tmp_path / "notes.db").write_text("mine")
    (tmp_path / "folder.db").mkdir()
    (tmp_path / "folder.db" / "notes").write_text("mine")
    for name in ("notes.db", "folder.db"):
        with pytest.raises(ValueError, match=f"{name} is something else"):
            check_replaceable(str(tmp_path / name), "x")
    with pytest.raises(ValueError, match="expected a file NAME.db, or a server"):
        check_replaceable("localhost:19530", "x")
    with pytest.raises(OSError, match="http://127.0.0.1:1: Milvus answers") as error:
        check_replaceable("http://me:secret@127.0.0.1:1", "x")
    assert "secret" not in str(error.value)


def test_without_the_packages_a_line_says_how_to_install_them(tmp_path, monkeypatch):
    for missing in ("milvus_lite.server_manager", "pymilvus"):
        monkeypatch.setitem(sys.modules, missing, None)
        with pytest.raises(ImportError, match=r"pip install 'rocketqa_paddle\[milvus\]'"):
            check_replaceable(str(tmp_path / "x.db"), "x")
