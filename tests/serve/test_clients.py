"""Clients that others wrote, and the examples of docs/serving.md, against a server on this machine.

What comes back is compared with the same models in this process. The tests of clients that the extra
`clients` does not bring are skipped where their packages are missing.
"""

from __future__ import annotations

import asyncio
import base64
import re
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import toy
from scipy.special import expit

import rocketqa_paddle as rocketqa
from rocketqa_paddle.networks import forward
from rocketqa_paddle.serve import server
from rocketqa_paddle.serve.app import make_app
from rocketqa_paddle.serve.limits import Limits
from rocketqa_paddle.serve.models import Models
from rocketqa_paddle.serve.service import Service
from rocketqa_paddle.toolkit import CrossModel, DualModel

pytest.importorskip("uvicorn", reason="needs the extra serve")

QUERIES = ["where is a red dog", "look for some white whale"]
TEXTS = [passage.text for passage in toy.collection().passages.values()][:6]
TITLED = [p for p in toy.collection().passages.values() if p.title][:4]
KEY, NO_KEY, WRONG_MODEL = "a-good-key", "no valid key", "is not served here"


@dataclass(frozen=True)
class Served:
    """The addresses of two servers of the same models, and the models themselves."""

    url: str
    locked: str
    """Needs the key `KEY`."""
    dual: DualModel
    cross: CrossModel

    def vectors(self, texts: Sequence[str], side: str = "passage") -> np.ndarray:
        encode = self.dual.encode_query if side == "query" else self.dual.encode_para
        return encode(texts)

    def probabilities(self, query: str, texts: Sequence[str], titles: Sequence[str] = ()) -> np.ndarray:
        queries, titles = [query] * len(texts), titles or [""] * len(texts)
        return expit(forward.score_pairs(self.cross.checkpoint, queries, titles, texts))

    def ranking(self, query: str, texts: Sequence[str]) -> list[tuple[int, float]]:
        scores = self.probabilities(query, texts)
        return [(int(place), pytest.approx(scores[place], abs=1e-5)) for place in np.argsort(-scores)]


@pytest.fixture(scope="module")
def served(best: Path) -> Iterator[Served]:
    models = Models.open(best, name="toy")
    service = Service(models, Limits())
    dual = rocketqa.load_model(best / "retriever", batch_size=32)
    cross = rocketqa.load_model(best / "reranker", batch_size=32)
    with running(service) as url, running(service, [KEY.encode()]) as locked:
        yield Served(url, locked, dual, cross)
    service.close()


@contextmanager
def running(service: Service, keys: Sequence[bytes] = ()) -> Iterator[str]:
    """A server in a thread of this process."""
    with server.bind("127.0.0.1", 0) as bound:
        config = server.uvicorn.Config(make_app(service, keys), log_level="warning", access_log=False)
        serving = server.uvicorn.Server(config)
        thread = threading.Thread(target=serving.run, kwargs={"sockets": [bound]})
        thread.start()
        while not serving.started and thread.is_alive():
            time.sleep(0.01)
        yield server.address_of(bound)
        serving.should_exit = True
        thread.join()


def same(given: object, expected: np.ndarray) -> None:
    np.testing.assert_allclose(np.asarray(given, np.float32), expected, atol=1e-5)


def test_the_towers_and_the_rankings_tell_mistakes_apart(served: Served) -> None:
    assert np.abs(served.vectors(QUERIES) - served.vectors(QUERIES, "query")).max() > 1e-2
    places = [place for place, _ in served.ranking(QUERIES[0], TEXTS)]
    assert places != sorted(places)
    plain = served.probabilities(QUERIES[0], [p.text for p in TITLED])
    titled = served.probabilities(QUERIES[0], [p.text for p in TITLED], [p.title for p in TITLED])
    assert np.abs(titled - plain).min() > 1e-3


# OpenAI -------------------------------------------------------------------------------------------


def test_openai(served: Served) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["toy-query", "toy-passage", "toy-reranker"]
    assert client.models.retrieve("toy-query").id == "toy-query"
    for side, texts in (("query", QUERIES), ("passage", TEXTS)):
        expected = served.vectors(texts, side)
        for form in ({}, {"encoding_format": "float"}):  # without one, the client asks for base64
            answer = client.embeddings.create(model=f"toy-{side}", input=texts, **form)
            same([row.embedding for row in answer.data], expected)
        coded = client.embeddings.create(model=f"toy-{side}", input=texts[0], encoding_format="base64")
        same(np.frombuffer(base64.b64decode(coded.data[0].embedding), "<f4"), expected[0])
        short = client.embeddings.create(model=f"toy-{side}", input=texts[0], dimensions=3)
        same(short.data[0].embedding, expected[0, :3])
        assert answer.usage.prompt_tokens == answer.usage.total_tokens > 3 * len(texts)


def test_openai_without_waiting(served: Served) -> None:
    openai = pytest.importorskip("openai")

    async def ask() -> list[list[float]]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
            asked = (client.embeddings.create(model="toy-passage", input=text) for text in TEXTS)
            return [answer.data[0].embedding for answer in await asyncio.gather(*asked)]

    same(asyncio.run(ask()), served.vectors(TEXTS))


def test_openai_raises_its_own_errors(served: Served) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.NotFoundError, match="choose from toy-query and toy-passage") as told:
        client.embeddings.create(model="text-embedding-3-small", input="a")
    assert told.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError, match=WRONG_MODEL):
        client.models.retrieve("gpt")
    with pytest.raises(openai.NotFoundError, match="Not Found") as told:
        client.chat.completions.create(model="toy-query", messages=[])
    assert told.value.type == "not_found_error"
    with pytest.raises(openai.BadRequestError, match="input 1 is empty"):
        client.embeddings.create(model="toy-query", input=["a", ""])
    with pytest.raises(openai.BadRequestError, match="dimensions=17, but the model has 16"):
        client.embeddings.create(model="toy-query", input="a", dimensions=17)
    locked = openai.OpenAI(base_url=f"{served.locked}/v1", api_key="wrong", max_retries=0)
    for ask in (locked.models.list, lambda: locked.embeddings.create(model="toy-query", input="a")):
        with pytest.raises(openai.AuthenticationError, match=NO_KEY):
            ask()
    assert openai.OpenAI(base_url=f"{served.locked}/v1", api_key=KEY).models.list().data


# Cohere -------------------------------------------------------------------------------------------


def ranks(answer: object) -> list[tuple[int, float]]:
    return [(result.index, result.relevance_score) for result in answer.results]


@pytest.mark.parametrize("version", ["Client", "ClientV2"])
def test_cohere(served: Served, version: str) -> None:
    cohere = pytest.importorskip("cohere")
    client = getattr(cohere, version)(api_key="none", base_url=served.url)
    answer = client.rerank(model="toy-reranker", query=QUERIES[0], documents=TEXTS)
    assert ranks(answer) == served.ranking(QUERIES[0], TEXTS)
    two = client.rerank(model="toy-reranker", query=QUERIES[0], documents=TEXTS, top_n=2)
    assert ranks(two) == served.ranking(QUERIES[0], TEXTS)[:2]
    with pytest.raises(cohere.BadRequestError, match="the query is empty"):
        client.rerank(model="toy-reranker", query="", documents=TEXTS)
    locked = getattr(cohere, version)(api_key="wrong", base_url=served.locked)
    with pytest.raises(cohere.UnauthorizedError, match=NO_KEY):
        locked.rerank(model="toy-reranker", query=QUERIES[0], documents=TEXTS)
    open = getattr(cohere, version)(api_key=KEY, base_url=served.locked)
    assert ranks(open.rerank(model="toy-reranker", query=QUERIES[0], documents=TEXTS)) == ranks(answer)


def test_cohere_with_titles(served: Served) -> None:
    cohere = pytest.importorskip("cohere")
    documents = [{"title": passage.title, "text": passage.text} for passage in TITLED]
    answer = cohere.Client(api_key="none", base_url=served.url).rerank(
        model="toy-reranker", query=QUERIES[0], documents=documents, return_documents=True
    )
    expected = served.probabilities(QUERIES[0], [p.text for p in TITLED], [p.title for p in TITLED])
    assert [(r.index, r.document.title, r.document.text) for r in answer.results] == [
        (place, TITLED[place].title, TITLED[place].text) for place in np.argsort(-expected)
    ]
    same([result.relevance_score for result in answer.results], np.sort(expected)[::-1])


def test_cohere_without_waiting(served: Served) -> None:
    cohere = pytest.importorskip("cohere")

    async def ask() -> list[list[tuple[int, float]]]:
        async with cohere.AsyncClientV2(api_key="none", base_url=served.url) as client:
            asked = (client.rerank(model="any", query=query, documents=TEXTS) for query in QUERIES)
            return [ranks(answer) for answer in await asyncio.gather(*asked)]

    assert asyncio.run(ask()) == [served.ranking(query, TEXTS) for query in QUERIES]


# Hugging Face -------------------------------------------------------------------------------------


def test_hugging_face(served: Served) -> None:
    hub = pytest.importorskip("huggingface_hub")
    client = hub.InferenceClient(base_url=served.url)
    same(client.feature_extraction(TEXTS), served.vectors(TEXTS))
    same(client.feature_extraction(QUERIES[0], prompt_name="query"), served.vectors(QUERIES[:1], "query"))
    expected = served.vectors(TEXTS)
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    same(client.feature_extraction(TEXTS, normalize=True), expected)
    (query,) = served.vectors(QUERIES[:1], "query")
    cosines = expected @ query / np.linalg.norm(query)
    same(client.sentence_similarity(QUERIES[0], other_sentences=TEXTS), cosines)


def test_hugging_face_raises_its_own_errors(served: Served) -> None:
    hub = pytest.importorskip("huggingface_hub")
    with pytest.raises(hub.errors.HfHubHTTPError, match="prompt_name 'document2', expected 'query'") as told:
        hub.InferenceClient(base_url=served.url).feature_extraction("a", prompt_name="document2")
    assert told.value.response.status_code == 422
    with pytest.raises(hub.errors.HfHubHTTPError, match=NO_KEY) as told:
        hub.InferenceClient(base_url=served.locked, api_key="wrong").feature_extraction("a")
    assert told.value.response.status_code == 401
    same(
        hub.InferenceClient(base_url=served.locked, api_key=KEY).feature_extraction("a"),
        served.vectors(["a"]),
    )


def test_hugging_face_without_waiting(served: Served) -> None:
    hub = pytest.importorskip("huggingface_hub")

    async def ask() -> list[np.ndarray]:
        client = hub.AsyncInferenceClient(base_url=served.url)
        return await asyncio.gather(*(client.feature_extraction(text) for text in TEXTS))

    same(np.concatenate(asyncio.run(ask())), served.vectors(TEXTS))


# LangChain ----------------------------------------------------------------------------------------


def langchain_embeddings(served: Served, side: str, url: str = "", key: str = "none") -> object:
    langchain = pytest.importorskip("langchain_openai")
    return langchain.OpenAIEmbeddings(
        base_url=f"{url or served.url}/v1",
        api_key=key,
        model=f"toy-{side}",
        check_embedding_ctx_length=False,
        max_retries=0,
    )


def test_langchain(served: Served) -> None:
    queries, passages = langchain_embeddings(served, "query"), langchain_embeddings(served, "passage")
    same(queries.embed_query(QUERIES[0]), served.vectors(QUERIES[:1], "query")[0])
    same(passages.embed_documents(TEXTS), served.vectors(TEXTS))
    same(asyncio.run(passages.aembed_documents(TEXTS)), served.vectors(TEXTS))


def test_langchain_passes_errors_on(served: Served) -> None:
    openai = pytest.importorskip("openai")
    with pytest.raises(openai.NotFoundError, match=WRONG_MODEL):
        langchain_embeddings(served, "other").embed_query("a")
    with pytest.raises(openai.AuthenticationError, match=NO_KEY):
        langchain_embeddings(served, "query", served.locked, "wrong").embed_query("a")


# LlamaIndex, Haystack, LiteLLM: their packages are large, so `make test` does without them -------------


def test_llama_index(served: Served) -> None:
    tei = pytest.importorskip("llama_index.embeddings.text_embeddings_inference")
    passages = tei.TextEmbeddingsInference(model_name="toy", base_url=served.locked, auth_token=KEY)
    same(passages.get_text_embedding_batch(TEXTS), served.vectors(TEXTS))
    same(asyncio.run(passages.aget_text_embedding(TEXTS[0])), served.vectors(TEXTS[:1])[0])


def test_llama_index_with_both_towers(served: Served) -> None:
    pytest.importorskip("llama_index.embeddings.openai_like")
    from llama_index.core import VectorStoreIndex
    from llama_index.core.schema import TextNode
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding

    queries, passages = (
        OpenAILikeEmbedding(model_name=f"toy-{side}", api_base=f"{served.url}/v1", api_key="none")
        for side in ("query", "passage")
    )
    index = VectorStoreIndex([TextNode(text=text) for text in TEXTS], embed_model=passages)
    found = index.as_retriever(embed_model=queries, similarity_top_k=3).retrieve(QUERIES[0])
    vectors, (query,) = served.vectors(TEXTS), served.vectors(QUERIES[:1], "query")
    cosines = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    assert [node.text for node in found] == [TEXTS[place] for place in np.argsort(-cosines)[:3]]
    same([node.score for node in found], np.sort(cosines)[::-1][:3])


@pytest.mark.parametrize("module", ["tei_rerank", "jinaai_rerank"])
def test_llama_index_rerank(served: Served, module: str) -> None:
    rerank = pytest.importorskip(f"llama_index.postprocessor.{module}")
    from llama_index.core.schema import NodeWithScore, TextNode

    if module == "tei_rerank":
        reranker = rerank.TextEmbeddingInference(base_url=served.locked, top_n=3, auth_token=f"Bearer {KEY}")
    else:
        reranker = rerank.JinaRerank(base_url=f"{served.locked}/v1", top_n=3, api_key=KEY)
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in TEXTS]
    found = reranker.postprocess_nodes(nodes, query_str=QUERIES[0])
    assert [(TEXTS.index(node.text), node.score) for node in found] == served.ranking(QUERIES[0], TEXTS)[:3]


def test_haystack(served: Served) -> None:
    """Haystack 2 has the components itself, Haystack 3 in the package huggingface-api-haystack."""
    pytest.importorskip("haystack")
    try:
        from haystack.components.embedders import HuggingFaceAPIDocumentEmbedder as DocumentEmbedder
        from haystack.components.embedders import HuggingFaceAPITextEmbedder as TextEmbedder
        from haystack.components.rankers import HuggingFaceTEIRanker as Ranker
    except ImportError:
        pytest.importorskip("haystack_integrations.components.rankers.huggingface_api")
        from haystack_integrations.components.embedders.huggingface_api import (
            HuggingFaceAPIDocumentEmbedder as DocumentEmbedder,
        )
        from haystack_integrations.components.embedders.huggingface_api import (
            HuggingFaceAPITextEmbedder as TextEmbedder,
        )
        from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker as Ranker
    from haystack import Document
    from haystack.utils import Secret

    documents = [Document(content=text) for text in TEXTS]
    where = {"api_type": "text_embeddings_inference", "api_params": {"url": served.locked}}
    key = Secret.from_token(KEY)
    done = DocumentEmbedder(**where, token=key, normalize=None, truncate=None, progress_bar=False).run(
        documents
    )
    same([document.embedding for document in done["documents"]], served.vectors(TEXTS))
    one = TextEmbedder(**where, token=key, normalize=None, truncate=None).run(TEXTS[0])
    same(one["embedding"], served.vectors(TEXTS[:1])[0])
    found = Ranker(url=served.locked, top_k=3, token=key).run(query=QUERIES[0], documents=documents)
    given = [(TEXTS.index(document.content), document.score) for document in found["documents"]]
    assert given == served.ranking(QUERIES[0], TEXTS)[:3]


def test_litellm(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or it looks for one in the network
    litellm = pytest.importorskip("litellm")
    answer = litellm.embedding(
        model="openai/toy-passage", input=TEXTS, api_base=f"{served.url}/v1", api_key="none"
    )
    same([row["embedding"] for row in answer.data], served.vectors(TEXTS))
    for provider in ("cohere", "jina_ai", "infinity", "huggingface", "hosted_vllm"):
        answer = litellm.rerank(
            model=f"{provider}/toy-reranker",
            query=QUERIES[0],
            documents=TEXTS,
            api_base=served.locked,
            api_key=KEY,
            return_documents=False,  # `infinity` expects them in another shape
        )
        given = [(result["index"], result["relevance_score"]) for result in answer.results]
        assert given == served.ranking(QUERIES[0], TEXTS), provider
    with pytest.raises(litellm.NotFoundError, match=WRONG_MODEL):
        litellm.embedding(model="openai/gpt", input=TEXTS, api_base=f"{served.url}/v1", api_key="none")
    with pytest.raises(litellm.AuthenticationError, match=NO_KEY):
        litellm.rerank(model="cohere/a", query="a", documents=TEXTS, api_base=served.locked, api_key="wrong")


# The documentation --------------------------------------------------------------------------------

PAGE = (toy.ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"^### ([^\n]+)$(?:(?!^###? ).)*?^```python\n(.*?)^```$", PAGE, re.M | re.S))


@pytest.mark.parametrize("client", EXAMPLES)
def test_every_example_of_the_documentation_runs(served: Served, client: str) -> None:
    """It leaves vectors of the texts, or their ranking, under the same names as the others."""
    for package in re.findall(r"^(?:from|import) ([\w.]+)", EXAMPLES[client], re.M):
        pytest.importorskip(package, reason=f"needs {package}")
    code = EXAMPLES[client].replace("http://127.0.0.1:8080", served.url).replace("pydocs", "toy")
    there: dict = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        exec(compile(code, f"the example of {client}", "exec"), there)
    question, texts = there["question"], there.get("texts", [])
    checked = {"query_vector", "passage_vectors", "order", "found"} & there.keys()
    assert checked, "nothing to compare"
    if "query_vector" in there:
        same(there["query_vector"], served.vectors([question], "query")[0])
    if "passage_vectors" in there:
        same(there["passage_vectors"], served.vectors(texts))
    if "order" in there:
        assert there["order"] == [place for place, _ in served.ranking(question, texts)]
    if "found" in there:
        assert len(there["found"]) == 5 and {p.text for p in toy.collection().passages.values()} >= {
            document.page_content for document in there["found"]
        }


def test_the_documentation_has_an_example_of_every_client() -> None:
    assert {"OpenAI", "Cohere", "Hugging Face", "LangChain"} <= EXAMPLES.keys()
