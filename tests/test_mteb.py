"""Models as mteb takes them, called as mteb 2 does; and by mteb itself where that is installed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import toy

import rocketqa_paddle as rocketqa
from rocketqa_paddle.mteb import MTEBReranker, MTEBRetriever
from rocketqa_paddle.networks import forward

PASSAGES = [*toy.collection().passages.values()][:5]
QUERIES = ["where is a red dog", "look for some white whale", "swims far"]


@pytest.fixture(scope="module")
def retriever(best: Path) -> MTEBRetriever:
    return MTEBRetriever(rocketqa.load_model(best / "retriever"), "toy/retriever")


@pytest.fixture(scope="module")
def reranker(best: Path) -> MTEBReranker:
    return MTEBReranker(rocketqa.load_model(best / "reranker"), "toy/reranker")


def corpus(size: int = 2) -> list[dict[str, list[str]]]:
    """Batches of passages as mteb's data loader makes them."""
    rows = [PASSAGES[start : start + size] for start in range(0, len(PASSAGES), size)]
    return [
        {
            "id": [p.id for p in row],
            "title": [p.title for p in row],
            "text": [f"{p.title} {p.text}".strip() for p in row],
            "body": [p.text for p in row],
        }
        for row in rows
    ]


def queries(texts: list[str] = QUERIES) -> list[dict[str, list[str]]]:
    return [{"id": [text], "text": [text], "query": [text]} for text in texts]


def context(**kind: str) -> dict[str, object]:
    """What mteb passes on besides the inputs."""
    return {"task_metadata": None, "hf_split": "test", "hf_subset": "default", "batch_size": 2, **kind}


def test_queries_and_titled_passages_have_their_towers(retriever: MTEBRetriever) -> None:
    model = retriever.model
    passages = retriever.encode(corpus(), **context(prompt_type="document"))
    expected = model.encode_para([p.text for p in PASSAGES], title=[p.title for p in PASSAGES])
    assert passages.dtype == np.float32 and any(p.title for p in PASSAGES)
    np.testing.assert_allclose(passages, expected, atol=1e-5)
    untitled = model.encode_para([p.text for p in PASSAGES])
    assert np.abs(passages - untitled).max() > 1e-2
    encoded = retriever.encode(queries(), **context(prompt_type="query"))
    np.testing.assert_allclose(encoded, model.encode_query(QUERIES), atol=1e-5)
    scores = retriever.similarity(encoded, passages)
    np.testing.assert_allclose(scores, encoded @ passages.T, rtol=1e-4)
    np.testing.assert_allclose(retriever.similarity(encoded[0], passages), scores[:1], rtol=1e-4)
    pairwise = retriever.similarity_pairwise(encoded, passages[:3])
    np.testing.assert_allclose(pairwise, np.diag(scores), rtol=1e-4)


def test_tasks_without_queries_and_older_calls(retriever: MTEBRetriever) -> None:
    plain = retriever.model.encode_para(QUERIES)
    np.testing.assert_allclose(retriever.encode([{"text": QUERIES}], **context()), plain, atol=1e-5)
    np.testing.assert_allclose(retriever.encode(QUERIES, prompt_name="passage"), plain, atol=1e-5)
    older = [{"title": p.title, "text": p.text} for p in PASSAGES]
    titled = retriever.encode(corpus(), prompt_type="document")
    np.testing.assert_allclose(retriever.encode(older, prompt_type="document"), titled, atol=1e-5)


def test_a_reranker_scores_pairs(reranker: MTEBReranker) -> None:
    texts, titles = [p.text for p in PASSAGES], [p.title for p in PASSAGES]
    asked = [QUERIES[place % 3] for place in range(len(PASSAGES))]
    expected = forward.score_pairs(reranker.model.checkpoint, asked, titles, texts)
    given = reranker.predict(inputs1=queries(asked), inputs2=corpus(), **context())
    np.testing.assert_allclose(given, expected, atol=1e-5)
    assert reranker.predict([], []).shape == (0,)


def test_what_cannot_be_read_is_refused(retriever: MTEBRetriever, reranker: MTEBReranker) -> None:
    with pytest.raises(ValueError, match="an input with image, but without text"):
        retriever.encode([{"image": [None]}], **context())
    with pytest.raises(ValueError, match="prompt_type='code', expected 'query', 'document'"):
        retriever.encode(QUERIES, prompt_type="code")
    with pytest.raises(ValueError, match="2 queries and 5 passages"):
        reranker.predict(queries(QUERIES[:2]), corpus())
    with pytest.raises(ValueError, match="give MTEBReranker a re-ranker"):
        MTEBRetriever(reranker.model)
    with pytest.raises(ValueError, match="give MTEBRetriever a retriever"):
        MTEBReranker(retriever.model)


def test_mteb_is_imported_only_for_its_metadata(
    retriever: MTEBRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mteb.models", None)
    monkeypatch.setitem(sys.modules, "mteb", None)
    assert retriever.encode(QUERIES, prompt_type="query").shape == (3, 16)
    with pytest.raises(ImportError):
        retriever.mteb_model_meta  # noqa: B018


def test_mteb_evaluates_a_made_task(
    retriever: MTEBRetriever, reranker: MTEBReranker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    mteb = pytest.importorskip("mteb")
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
    from mteb.abstasks.task_metadata import TaskMetadata

    made = toy.collection()
    split = made.splits["test"]
    rows = [{"id": p.id, "title": p.title, "text": p.text} for p in made.passages.values()]

    class Animals(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="Animals",
            description="Where the animals of the toy collection are.",
            dataset={"path": "none/none", "revision": "0"},
            type="Retrieval",
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="mrr_at_10",
        )

        def load_data(self, **unused: object) -> None:
            asked = [{"id": query.id, "text": query.text} for query in split.queries.values()]
            data = RetrievalSplitData(
                corpus=Dataset.from_list(rows),
                queries=Dataset.from_list(asked),
                relevant_docs=split.qrels,
                top_ranked=None,
            )
            self.dataset, self.data_loaded = {"default": {"test": data}}, True

    def mrr(model: object, task: AbsTaskRetrieval) -> float:
        done = mteb.evaluate(model, task, cache=None, prediction_folder=tmp_path, co2_tracker=False)
        assert done.model_name == model.name and done.model_revision == model.model.checkpoint.digest()
        return done.task_results[0].scores["test"][0]["mrr_at_10"]

    def expected(scores: np.ndarray) -> float:
        places = [[*made.passages].index(next(iter(row))) for row in split.qrels.values()]
        rank = [1 + int((row > row[place]).sum()) for row, place in zip(scores, places, strict=True)]
        return float(np.mean([1 / r if r <= 10 else 0 for r in rank]))

    texts, titles = [row["text"] for row in rows], [row["title"] for row in rows]
    asked = [query.text for query in split.queries.values()]
    vectors = retriever.model.encode_para(texts, title=titles)
    first = expected(retriever.model.encode_query(asked) @ vectors.T)
    assert mrr(retriever, Animals()) == pytest.approx(first, abs=1e-4)
    pairs = [(query, title, text) for query in asked for title, text in zip(titles, texts, strict=True)]
    scores = forward.score_pairs(reranker.model.checkpoint, *zip(*pairs, strict=True))
    second = expected(scores.reshape(len(asked), -1))
    task = Animals()
    task.convert_to_reranking(tmp_path, top_k=len(rows))
    assert mrr(reranker, task) == pytest.approx(second, abs=1e-4)
