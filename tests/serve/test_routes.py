"""The endpoints: answers equal those of the models, and errors have the shape of each family of clients."""

from __future__ import annotations

import base64
from pathlib import Path

import command_line
import numpy as np
import pytest
import toy
from scipy.special import expit
from starlette.testclient import TestClient

from rocketqa_paddle.networks import forward
from rocketqa_paddle.networks.encoders import Checkpoint
from rocketqa_paddle.networks.tokenization import Tokenizer
from rocketqa_paddle.search.engine import SearchEngine
from rocketqa_paddle.serve.app import make_app
from rocketqa_paddle.serve.limits import Limits
from rocketqa_paddle.serve.models import Models
from rocketqa_paddle.serve.routes import embed
from rocketqa_paddle.serve.service import Service

TEXTS = ["the red dog lives near a river .", "blue cat", "where is a green whale"]
QUERY = "where is a red dog"


def passages(retriever: Checkpoint, texts: list[str] = TEXTS) -> np.ndarray:
    return forward.encode_passages(retriever, [""] * len(texts), texts)


def logits(reranker: Checkpoint, texts: list[str] = TEXTS) -> np.ndarray:
    return forward.score_pairs(reranker, [QUERY] * len(texts), [""] * len(texts), texts)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def rows(answer: object, expected: np.ndarray) -> None:
    np.testing.assert_allclose(np.array(answer), expected, atol=1e-5)


# /embed -------------------------------------------------------------------------------------------


def test_embed_gives_a_list_of_lists_also_for_one_text(client: TestClient, retriever: Checkpoint) -> None:
    rows(client.post("/embed", json={"inputs": TEXTS}).json(), passages(retriever))
    rows(client.post("/embed", json={"inputs": TEXTS[0]}).json(), passages(retriever, TEXTS[:1]))


@pytest.mark.parametrize("name", ["query", "document", "passage"])
def test_the_prompt_chooses_the_tower(client: TestClient, retriever: Checkpoint, name: str) -> None:
    answer = client.post("/embed", json={"inputs": TEXTS, "prompt_name": name}).json()
    queries = forward.encode_queries(retriever, TEXTS)
    rows(answer, queries if name == "query" else passages(retriever))


def test_vectors_are_scaled_and_cut_as_asked(client: TestClient, retriever: Checkpoint) -> None:
    asked = {"inputs": TEXTS, "normalize": True, "dimensions": 5}
    rows(client.post("/embed", json=asked).json(), unit(passages(retriever)[:, :5]))
    rows(client.post("/embed", json=asked | {"normalize": False}).json(), passages(retriever)[:, :5])


def test_token_ids_are_those_of_tokenize(client: TestClient, retriever: Checkpoint) -> None:
    (tokens, plain) = (
        client.post("/tokenize", json={"inputs": TEXTS[0], "add_special_tokens": special}).json()[0]
        for special in (True, False)
    )
    assert [token["text"] for token in tokens] == ["[CLS]", *TEXTS[0].split(), "[SEP]"]
    assert [token["special"] for token in tokens] == [True, *[False] * (len(tokens) - 2), True]
    for given in (tokens, plain):
        answer = client.post("/embed", json={"inputs": [token["id"] for token in given]}).json()
        rows(answer, passages(retriever, TEXTS[:1]))


def test_the_vocabulary_is_not_counted_for_every_id(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, size = [], len
    monkeypatch.setattr(Tokenizer, "__len__", lambda self: counted.append(self) or size(self._pieces))
    assert client.post("/embed", json={"inputs": [5] * 1000}).status_code == 200
    assert len(counted) < 10


def test_many_tokens_are_written_in_parts(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"inputs": [*TEXTS, ""], "add_special_tokens": False}
    whole = client.post("/tokenize", json=asked).json()
    assert [len(tokens) for tokens in whole] == [8, 2, 5, 0]
    monkeypatch.setattr(embed, "_TOKENS_A_PART", 3)
    assert client.post("/tokenize", json=asked).json() == whole


def test_a_long_text_is_cut_at_either_end_or_refused(client: TestClient, retriever: Checkpoint) -> None:
    words = [f"{colour} {animal}" for colour, animal in toy.PAIRS] * 2
    text, tail = " ".join(words), " ".join(words[-100:])
    for side in ("query", "document"):
        room = retriever.lengths["query"] - 2 if side == "query" else retriever.lengths["passage"] - 3
        asked = {"inputs": text, "prompt_name": side}
        kept = " ".join(tail.split()[-room:])
        left = client.post("/embed", json=asked | {"truncation_direction": "Left"}).json()
        assert left == client.post("/embed", json=asked | {"inputs": kept, "truncate": False}).json()
        right = client.post("/embed", json=asked | {"truncate": True}).json()
        assert right == client.post("/embed", json=asked | {"inputs": " ".join(text.split()[:room])}).json()
        refused = client.post("/embed", json=asked | {"truncate": False})
        assert refused.status_code == 422
        assert "shorten it" in refused.json()["error"]


def test_similarity_compares_a_query_with_documents(client: TestClient, retriever: Checkpoint) -> None:
    asked = {"inputs": {"source_sentence": QUERY, "sentences": TEXTS}}
    query = unit(forward.encode_queries(retriever, [QUERY]))[0]
    rows(client.post("/similarity", json=asked).json(), unit(passages(retriever)) @ query)
    both = client.post("/similarity", json=asked | {"parameters": {"prompt_name": "query"}}).json()
    rows(both, unit(forward.encode_queries(retriever, TEXTS)) @ query)


# /rerank and /predict -----------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [True, False])
def test_rerank_orders_texts(client: TestClient, reranker: Checkpoint, raw: bool) -> None:
    answer = client.post(
        "/rerank", json={"query": QUERY, "texts": TEXTS, "raw_scores": raw, "return_text": True}
    ).json()
    expected = logits(reranker)
    order = np.argsort(-expected)
    assert [rank["index"] for rank in answer] == order.tolist()
    assert [rank["text"] for rank in answer] == [TEXTS[place] for place in order]
    rows([rank["score"] for rank in answer], (expected if raw else expit(expected))[order])


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_documents_ask_for_the_shape_of_cohere(client: TestClient, reranker: Checkpoint, path: str) -> None:
    documents = [{"text": TEXTS[0], "title": "dog"}, *TEXTS[1:]]
    asked = {"query": QUERY, "documents": documents, "top_n": 2, "model": "any", "return_documents": True}
    answer = client.post(path, json=asked).json()
    scores = forward.score_pairs(reranker, [QUERY] * 3, ["dog", "", ""], TEXTS)
    order = np.argsort(-scores)[:2]
    assert [result["index"] for result in answer["results"]] == order.tolist()
    rows([result["relevance_score"] for result in answer["results"]], expit(scores)[order])
    assert [r["document"]["text"] for r in answer["results"]] == [TEXTS[place] for place in order]
    assert answer["usage"]["total_tokens"] > 0
    assert "document" not in client.post(path, json=asked | {"return_documents": False}).json()["results"][0]


def test_predict_scores_a_pair_or_many(client: TestClient, reranker: Checkpoint) -> None:
    expected = logits(reranker)
    one = client.post("/predict", json={"inputs": [QUERY, TEXTS[0]]}).json()
    assert one[0]["label"] == "LABEL_0"
    rows([one[0]["score"]], expit(expected[:1]))
    asked = {"inputs": [[QUERY, text] for text in TEXTS], "raw_scores": True}
    many = client.post("/predict", json=asked).json()
    rows([scored[0]["score"] for scored in many], expected)


def test_a_long_pair_can_keep_its_end(client: TestClient, reranker: Checkpoint) -> None:
    room = reranker.lengths["pair"] - 3 - len(QUERY.split())
    words = [word for pair in toy.PAIRS for word in pair] * 2
    asked = {"query": QUERY, "texts": [" ".join(words)], "raw_scores": True, "truncation_direction": "left"}
    (rank,) = client.post("/rerank", json=asked).json()
    assert rank["score"] == pytest.approx(float(logits(reranker, [" ".join(words[-room:])])[0]), abs=1e-5)


# OpenAI -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings"])
@pytest.mark.parametrize("form", ["float", "base64"])
def test_openai_embeddings(client: TestClient, retriever: Checkpoint, path: str, form: str) -> None:
    for side in ("query", "passage"):
        asked = {"input": TEXTS, "model": f"toy-{side}", "encoding_format": form}
        answer = client.post(path, json=asked).json()
        vectors = [row["embedding"] for row in answer["data"]]
        if form == "base64":
            vectors = [np.frombuffer(base64.b64decode(vector), "<f4") for vector in vectors]
        expected = forward.encode_queries(retriever, TEXTS) if side == "query" else passages(retriever)
        rows(vectors, expected)
        assert [row["index"] for row in answer["data"]] == [0, 1, 2]
        assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0


def test_the_models_of_openai_are_the_towers(client: TestClient) -> None:
    names = [model["id"] for model in client.get("/v1/models").json()["data"]]
    assert names == ["toy-query", "toy-passage", "toy-reranker"]


# /search ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "depth"), [(3, 5), (5, 0), (7, 2), (2, None)])
def test_search_equals_the_engine(client: TestClient, best: Path, k: int, depth: int | None) -> None:
    queries = [QUERY, "look for some green whale"]
    expected = SearchEngine.open(best).search(queries, k, depth)
    answer = client.post("/search", json={"queries": queries, "k": k, "depth": depth}).json()["results"]
    for found, results in zip(answer, expected, strict=True):
        assert [(hit["id"], hit["rank"], hit["found_rank"]) for hit in found] == [
            (r.passage.id, r.rank, r.found_rank) for r in results
        ]
        rows([hit["score"] for hit in found], np.array([r.score for r in results]))
        assert [hit["reranker_score"] is None for hit in found] == [r.reranker_score is None for r in results]


def test_search_in_milvus_equals_that_in_a_folder(client: TestClient, best: Path, tmp_path: Path) -> None:
    pytest.importorskip("milvus_lite", reason="needs the extra milvus")
    flags = {"checkpoint": best / "retriever", "engine": "milvus", "uri": tmp_path / "toy.db"}
    titles = {
        "passages": toy.write(tmp_path / "data") / "para.txt",
        "titles": tmp_path / "data" / "para.title.txt",
    }
    command_line.run("index", *command_line.words(**flags, **titles))
    service = Service(Models.open(best, uri=str(tmp_path / "toy.db")), Limits())
    try:
        asked = {"queries": [QUERY, "green whale"], "k": 5, "depth": 8}
        found = TestClient(make_app(service)).post("/search", json=asked).json()["results"]
    finally:
        service.close()
    for hits, expected in zip(found, client.post("/search", json=asked).json()["results"], strict=True):
        assert [hit["id"] for hit in hits] == [hit["id"] for hit in expected]
        rows([hit["score"] for hit in hits], np.array([hit["score"] for hit in expected]))


# Errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "asked", "status", "told"),
    [
        ("/embed", {"inputs": []}, 400, "no inputs"),
        ("/embed", {"inputs": ["a", ""]}, 422, "input 1 is empty"),
        ("/embed", {"inputs": 5}, 422, "inputs"),
        ("/embed", {"inputs": [["a"]]}, 422, "inputs"),
        ("/embed", {"inputs": [True]}, 422, "inputs"),
        ("/embed", {"inputs": [[]]}, 422, "input 0 is empty"),
        ("/embed", {"inputs": [10**6]}, 422, "token id 1000000"),
        ("/embed", {"inputs": "a", "prompt_name": "title"}, 422, "'query' or 'document'"),
        ("/embed", {"inputs": "a", "dimensions": 17}, 422, "the model has 16"),
        ("/embed", {"inputs": "a", "dimensions": 0}, 422, "dimensions"),
        ("/embed", {"inputs": ["a"] * 101}, 413, "101 inputs"),
        ("/embed", {"inputs": "a" * 20_000}, 413, "20000 bytes"),
        ("/rerank", {"query": " ", "texts": ["a"]}, 422, "query is empty"),
        ("/rerank", {"query": "a", "texts": []}, 400, "no inputs"),
        ("/rerank", {"query": "a"}, 422, "give texts, or documents"),
        ("/predict", {"inputs": ["a"]}, 422, "inputs"),
        ("/search", {"queries": [""]}, 422, "an empty query"),
        ("/search", {"queries": ["a"], "k": 0}, 422, "k"),
        ("/search", {"queries": ["a"], "fuse": "rrf"}, 424, "--bm25"),
        ("/search", {"queries": ["a"], "weight": 0.5}, 422, "fuse"),
        ("/search", {"queries": ["a"] * 30, "k": 1000}, 413, "30000"),
        ("/nothing", {}, 404, "Not Found"),
    ],
)
def test_errors_in_the_shape_of_text_embeddings_inference(
    client: TestClient, path: str, asked: dict, status: int, told: str
) -> None:
    answer = client.post(path, json=asked)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error", "error_type"}
    assert told in answer.json()["error"]


@pytest.mark.parametrize(
    ("asked", "status", "code"),
    [
        ({"input": "a", "model": "toy"}, 404, "model_not_found"),
        ({"input": "a"}, 404, "model_not_found"),
        ({"input": ["a", ""], "model": "toy-query"}, 400, None),
        ({"input": [], "model": "toy-query"}, 400, None),
        ({"model": "toy-query"}, 400, None),
        ({"input": "a", "model": "toy-query", "encoding_format": "hex"}, 400, None),
        ({"input": "a", "model": "toy-query", "dimensions": 17}, 400, None),
    ],
)
def test_errors_in_the_shape_of_openai(
    client: TestClient, asked: dict, status: int, code: str | None
) -> None:
    answer = client.post("/v1/embeddings", json=asked)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["message"]
    assert (error["type"] == "invalid_request_error") == (status == 400)
    assert error["code"] == code


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
@pytest.mark.parametrize("changed", [{"query": ""}, {"top_n": 0}, {"documents": [1]}, {"documents": []}])
def test_errors_in_the_shape_of_cohere(client: TestClient, path: str, changed: dict) -> None:
    answer = client.post(path, json={"query": "a", "documents": ["b"]} | changed)
    assert answer.status_code == 400
    assert answer.json()["message"] == answer.json()["detail"] != ""


def test_an_error_names_the_place_and_no_type_of_ours(client: TestClient) -> None:
    answer = client.post("/embed", json={"inputs": 5}).json()["error"]
    assert answer == "body.inputs: Input should be a valid string; body.inputs: Input should be a valid list"


def test_what_is_no_json_is_refused_without_being_quoted(client: TestClient) -> None:
    for body in (
        b"secret",
        b"\xff\xfe",
        b'{"inputs": "\\ud800"}',
        b"[" * 15_000,
        b"null",
        b'{"inputs": NaN}',
    ):
        answer = client.post("/embed", content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 422), body[:20]
        assert set(answer.json()) == {"error", "error_type"}
        assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("part", "works", "fails"),
    [
        (
            "retriever",
            {"/embed": {"inputs": "a"}, "/v1/embeddings": {"input": "a", "model": "retriever-query"}},
            {"/rerank": {"query": "a", "texts": ["b"]}, "/search": {"queries": ["a"]}},
        ),
        (
            "reranker",
            {"/rerank": {"query": "a", "texts": ["b"]}, "/predict": {"inputs": ["a", "b"]}},
            {"/embed": {"inputs": "a"}, "/v1/embeddings": {"input": "a", "model": "x"}},
        ),
    ],
)
def test_a_model_alone_is_served_for_what_it_can_do(
    best: Path, part: str, works: dict[str, dict], fails: dict[str, dict]
) -> None:
    service = Service(Models.open(best / part), Limits())
    try:
        client = TestClient(make_app(service))
        for path, asked in works.items():
            assert client.post(path, json=asked).status_code == 200
        for path, asked in fails.items():
            assert client.post(path, json=asked).status_code == 424
        kind = "embedding" if part == "retriever" else "reranker"
        assert kind in client.get("/info").json()["model_type"]
    finally:
        service.close()


# Status -------------------------------------------------------------------------------------------


def counted(client: TestClient, name: str) -> float:
    """The sum of a metric's values, for all of its labels."""
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(name)]
    return sum(float(line.split()[-1]) for line in lines)


@pytest.mark.parametrize(
    ("path", "changed"),
    [("/embed", {"prompt_name": "x"}), ("/embed", {"dimensions": 17}), ("/v1/embeddings", {"model": "x"})],
)
def test_a_refused_request_is_counted_as_such_and_computes_nothing(
    client: TestClient, path: str, changed: dict
) -> None:
    names = ["te_request_failure", "te_request_success", "te_embed_count"]
    before = [counted(client, name) for name in names]
    assert client.post(path, json={"inputs": "a", "input": "a", "model": "toy-query"} | changed).is_error
    assert [counted(client, name) for name in names] == [before[0] + 1, *before[1:]]


def test_machines_may_ask_for_the_head_alone(client: TestClient) -> None:
    for path in ("/health", "/ping", "/"):
        answer = client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")


def test_info_health_and_metrics(client: TestClient) -> None:
    info = client.get("/info").json()
    assert (info["model_id"], info["max_client_batch_size"]) == ("toy", 100)
    assert info["search"] == {"passages": 60, "reranker": True, "depth": 20, "bm25": False}
    assert client.get("/health").status_code == client.get("/ping").status_code == 200

    names = ['te_request_count{method="single"}', 'te_request_success{method="single"}', "te_embed_success"]
    names += ["te_request_duration_count", 'te_request_failure{err="validation"}']
    before = [counted(client, name) for name in names]
    client.post("/embed", json={"inputs": "a"})
    client.post("/embed", json={"inputs": ""})
    assert [counted(client, name) - was for name, was in zip(names, before, strict=True)] == [2, 1, 1, 1, 1]
