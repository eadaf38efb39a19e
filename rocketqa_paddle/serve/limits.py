"""The bounds of what the service takes."""

from dataclasses import dataclass

from rocketqa_paddle.settings import Settings, at_least


@dataclass(frozen=True)
class Limits(Settings):
    """The bounds, under the names of text-embeddings-inference where it has them."""

    max_concurrent_requests: int = 512
    """Requests that may wait or be answered at once; more are refused with 429."""
    max_batch_tokens: int | None = None
    """Tokens that are computed together; when empty, as many as suit a CPU or a GPU."""
    max_client_batch_size: int = 2048
    """Texts of one request."""
    max_search_results: int = 20_000
    """Queries of one search times the passages that are found or re-ranked for each."""
    payload_limit: int = 2_000_000
    """Bytes of a request."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, **vars(self))
