"""The command `rocketqa serve`: an HTTP service of the models of a folder."""

from __future__ import annotations

import warnings
from contextlib import closing
from typing import Literal

from rocketqa_paddle.runtime.device import select
from rocketqa_paddle.serve.limits import Limits
from rocketqa_paddle.settings import COLLECTION


def serve(
    checkpoint: str,
    index: str | None = None,
    reranker: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8080,
    api_key_file: str | None = None,
    name: str = "",
    use_cuda: bool = False,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    uri: str | None = None,
    collection: str = COLLECTION,
    max_concurrent_requests: int = Limits.max_concurrent_requests,
    max_batch_tokens: int | None = None,
    max_client_batch_size: int = Limits.max_client_batch_size,
    payload_limit: int = Limits.payload_limit,
) -> None:
    """Serve what a folder has over HTTP: a search engine with its page, a retriever, a re-ranker.

    Args:
        checkpoint: a run's `best` folder, or a retriever or re-ranker: folder, toolkit's JSON, published name
        index: index folder; by default the one in the `best` folder
        reranker: a re-ranker; by default the one in the `best` folder
        host: address to listen at; the default is for this machine alone
        port: port to listen at; 0 takes a free one
        api_key_file: file with a key a line; clients have to send one of them (Authorization: Bearer KEY)
        name: of the models for clients; by default that of the folder
        use_cuda: compute on a GPU
        precision: arithmetic; bf16 takes less time for many texts where the processor or GPU has it, and is
            less exact; fp16 needs a GPU
        uri: where Milvus has the index: a file NAME.db, or http://HOST:19530
        collection: name of the index in Milvus
        max_concurrent_requests: requests that may wait or be answered at once; more get 429
        max_batch_tokens: tokens computed together; by default what suits the device
        max_client_batch_size: texts of one request
        payload_limit: bytes of one request
    """
    try:
        from rocketqa_paddle.serve import server
        from rocketqa_paddle.serve.app import make_app
        from rocketqa_paddle.serve.guard import read_keys
        from rocketqa_paddle.serve.models import Models
        from rocketqa_paddle.serve.service import Service
    except ImportError as error:
        raise ImportError(
            f"serve needs some packages: pip install 'rocketqa_paddle[serve]' ({error})"
        ) from None

    bounds = Limits(
        max_concurrent_requests, max_batch_tokens, max_client_batch_size, payload_limit=payload_limit
    )
    select(use_cuda, precision)  # to refuse what the machine has not
    keys = read_keys(api_key_file) if api_key_file else []
    with server.bind(host, port) as bound:
        if not (keys or server.is_loopback(host)):
            warnings.warn(f"whoever reaches {host} can use this service: see --api_key_file", stacklevel=2)
        models = Models.open(checkpoint, index, reranker, use_cuda, uri=uri, collection=collection, name=name)
        service = Service(models, bounds, precision)
        told = f"{models.name}: {models.told()} at {server.address_of(bound)}"
        with closing(service):
            service.warm_up()
            try:
                server.run(make_app(service, keys), bound, ready=lambda: print(told, flush=True))
            except KeyboardInterrupt:
                print("stopped")
