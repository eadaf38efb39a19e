"""`Service`: the models, the queue before them, and the bound on requests that wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from starlette.requests import Request

from rocketqa_paddle.networks.tokenization import Packed
from rocketqa_paddle.records import Result
from rocketqa_paddle.runtime import device
from rocketqa_paddle.search.engine import SearchEngine, check_request, results_of
from rocketqa_paddle.search.fusion import Fusion
from rocketqa_paddle.serve.batching import Batcher, Closed, Computed
from rocketqa_paddle.serve.errors import Refused
from rocketqa_paddle.serve.inputs import CUT, Input, Pair, Side, Truncation, pack_inputs, pack_pairs
from rocketqa_paddle.serve.limits import Limits
from rocketqa_paddle.serve.metrics import Metrics
from rocketqa_paddle.serve.models import Compute, Find, Models

GPU_TOKENS, CPU_TOKENS = 16384, 2048
"""Tokens of a batch, unless the limits say otherwise."""
T = TypeVar("T")
Method = Literal["single", "batch"]
TOKENIZERS = 4
"""Requests that are tokenised at once."""
_AT_ONCE = 4000  # characters that are tokenised without a thread, which would take longer to start


class Outputs(NamedTuple):
    """What a network gives for some texts."""

    values: np.ndarray
    """Vectors `[rows, hidden]`, or logits `[rows]`."""
    tokens: int
    """Tokens that were computed, special ones included."""


class Gone(Exception):
    """The client has gone, and nobody waits for the answer."""


class Service:
    """Answers requests with the models of a folder.

    Args:
        models: what is served.
        limits: the bounds of what is answered.
        precision: arithmetic of the networks.
    """

    def __init__(self, models: Models, limits: Limits, precision: str = "fp32") -> None:
        self.models, self.limits, self.metrics = models, limits, Metrics()
        usual = GPU_TOKENS if "gpu" in models.place else CPU_TOKENS
        self.max_batch_tokens = limits.max_batch_tokens or usual
        self._precision = precision
        self.dtype = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[precision]
        self._answering = 0
        engine, model = models.engine, models.retriever or models.reranker
        self.digest = engine.digest if engine else model.digest()
        self._compute = {
            kind: Compute(model, kind, self.max_batch_tokens)
            for model in (models.retriever, models.reranker)
            if model
            for kind in model.lengths
        }
        self._batcher = Batcher(self.metrics, self._ready)
        # Its threads stay taken until they end, also by requests whose clients have gone.
        self._threads = ThreadPoolExecutor(TOKENIZERS, thread_name_prefix="rocketqa texts")

    @contextmanager
    def _ready(self) -> Iterator[None]:
        """The context in which the networks compute."""
        with ExitStack() as stack:
            stack.enter_context(device.using(self.models.place))
            stack.enter_context(device.arithmetic(self._precision))
            for operation in self._compute.values():
                stack.enter_context(operation.ready())
            yield

    # Requests --------------------------------------------------------------------------------------

    async def answer(self, request: Request, method: Method, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do the work of a request, unless too many are being answered or its client goes.

        Raises:
            Refused: the request is refused, or too many others wait.
            Gone: the client has gone.
        """
        self.metrics.count("te_request_count", method)
        if self._answering >= self.limits.max_concurrent_requests:
            message = f"{self._answering} requests are waiting, which is all that may: try later"
            raise Refused("Overloaded", message)
        self._answering += 1
        began = time.perf_counter()
        try:
            answer = await _while_connected(request, work())
        except Closed:
            message = "nothing is computed any more: start the service again"
            raise Refused("Unhealthy", message) from None
        except (ValueError, MemoryError, OSError) as error:  # of a model or an index
            raise Refused("Backend", str(error)[:500], reason="inference") from error
        finally:
            self._answering -= 1
        self.metrics.count("te_request_success", method)
        self.metrics.took("te_request_duration", time.perf_counter() - began)
        return answer

    def is_healthy(self) -> bool:
        """Whether the thread that computes is alive."""
        return self._batcher.is_alive()

    def warm_up(self) -> None:
        """Compute something with every network, so that the first request does not wait for compilations."""
        for kind, operation in self._compute.items():
            model = operation.checkpoint
            pair = [("a", "", "a")]
            packed = pack_pairs(model, pair) if kind == "pair" else pack_inputs(model, kind, ["a"])
            self._batcher.submit(operation, packed).result()

    def close(self) -> None:
        """Finish what is in the queue and end."""
        self._threads.shutdown(cancel_futures=True)
        self._batcher.close()

    # What models do ----------------------------------------------------------------------------------

    async def encode(self, side: Side, inputs: Sequence[Input], how: Truncation = CUT) -> Outputs:
        """Encode queries or passages as vectors `[inputs, hidden]`.

        Raises:
            Refused: there is no retriever, or an input is none.
        """
        if not self.models.retriever:
            raise Refused("Backend", "a re-ranker is served here, which encodes nothing", reason="model_type")
        self._bound(inputs)
        packed = await self._packed(pack_inputs, self.models.retriever, side, inputs, how, size=_size(inputs))
        self.metrics.count("te_embed_count", by=len(inputs))
        outputs = await self._run(side, packed)
        self.metrics.count("te_embed_success", by=len(inputs))
        return outputs

    async def score(self, pairs: Sequence[Pair], how: Truncation = CUT) -> Outputs:
        """Score pairs by the re-ranker: logits `[pairs]`.

        Raises:
            Refused: there is no re-ranker, or a pair is too long and may not be cut.
        """
        if not self.models.reranker:
            raise Refused("Backend", "a retriever is served here, and no re-ranker", reason="model_type")
        self._bound(pairs)
        size = sum(len(text) for pair in pairs for text in pair)
        packed = await self._packed(pack_pairs, self.models.reranker, pairs, how, size=size)
        self.metrics.count("te_predict_count", by=len(pairs))
        outputs = await self._run("pair", packed)
        self.metrics.count("te_predict_success", by=len(pairs))
        return outputs

    async def search(
        self,
        queries: Sequence[str],
        k: int,
        depth: int | None = None,
        fuse: Fusion | None = None,
        weight: float | None = None,
    ) -> list[list[Result]]:
        """Search as `SearchEngine.search` does.

        Raises:
            Refused: there is no index, or an argument is wrong.
        """
        engine = self.engine
        try:
            texts = check_request(queries, k, depth, fuse, weight)
            depth = engine.depth_of(depth)
        except ValueError as error:
            raise Refused("Validation", str(error)) from None
        if (asked := len(texts) * max(k, depth)) > (most := self.limits.max_search_results):
            message = f"{len(texts)} queries times {max(k, depth)} passages are {asked}, at most {most}"
            raise Refused("Validation", message, status=413, reason="batch_size")
        vectors = (await self.encode("query", texts)).values
        find = Find(engine, max(k, depth), fuse, weight)
        rows = list(zip(texts, vectors, strict=True))
        found = (await asyncio.wrap_future(self._batcher.submit(find, rows))).results
        scores = np.zeros(0, np.float32)
        if pairs := [pair for one in found for pair in one.pairs(depth)]:
            packed = await self._in_thread(pack_pairs, engine.reranker, pairs)
            scores = (await self._run("pair", packed)).values
        return results_of(found, k, depth, scores)

    @property
    def engine(self) -> SearchEngine:
        """The search engine.

        Raises:
            Refused: none is served.
        """
        if not self.models.engine:
            raise Refused("Backend", "a model is served here without an index to search", reason="model_type")
        return self.models.engine

    def _bound(self, rows: Sequence[Any]) -> None:
        most = self.limits.max_client_batch_size
        if not rows:
            raise Refused("Empty", "no inputs: give at least one", reason="validation")
        if len(rows) > most:
            message = f"{len(rows)} inputs in one request, at most {most}: send several requests"
            raise Refused("Validation", message, status=413, reason="batch_size")

    async def apart(self, texts: Sequence[str], work: Callable[[], T]) -> T:
        """Do some work on the texts of a request in a thread."""
        self._bound(texts)
        return await self._in_thread(work)

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """Wait for a thread that has time, and do some work in it."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    async def _packed(self, pack: Callable[..., list[Packed]], *arguments: Any, size: int) -> list[Packed]:
        """Pack texts of so many characters, many of them in a thread."""
        began = time.perf_counter()
        packed = pack(*arguments) if size <= _AT_ONCE else await self._in_thread(pack, *arguments)
        self.metrics.took("te_request_tokenization_duration", time.perf_counter() - began)
        return packed

    async def _run(self, kind: str, packed: list[Packed]) -> Outputs:
        done: Computed[np.ndarray] = await asyncio.wrap_future(
            self._batcher.submit(self._compute[kind], packed)
        )
        self.metrics.took("te_request_queue_duration", done.waited)
        self.metrics.took("te_request_inference_duration", done.computed)
        return Outputs(np.stack(done.results), sum(len(row.token_ids) for row in packed))


def _size(inputs: Sequence[Input]) -> int:
    return sum(map(len, inputs))


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await some work, and cancel it when the client goes."""
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Gone
        return working.result()
    finally:
        working.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
