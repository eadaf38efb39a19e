"""What the service counts, for Prometheus, under the names of text-embeddings-inference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import UnknownMetricFamily
from prometheus_client.registry import Collector

_SECONDS = tuple(1e-5 * 1.5**n for n in range(1, 36))
_POWERS = tuple(float(2**n) for n in range(21))
_COUNTS = {
    "te_request_count": ("method", "Requests, of one text or of a list"),
    "te_request_success": ("method", "Requests that were answered"),
    "te_request_failure": ("err", "Requests that were refused or failed, by reason"),
    "te_embed_count": ("", "Texts to encode"),
    "te_embed_success": ("", "Texts that were encoded"),
    "te_predict_count": ("", "Pairs to score"),
    "te_predict_success": ("", "Pairs that were scored"),
}
_DURATIONS = {
    "te_request_duration": "Seconds from the parsed request to its answer",
    "te_request_tokenization_duration": "Seconds of tokenising",
    "te_request_queue_duration": "Seconds of waiting for the first batch",
    "te_request_inference_duration": "Seconds of the batches with rows of the request",
}


class _Counts(Collector):
    """Counters whose names do not end in `_total`, which the client library would add."""

    def __init__(self) -> None:
        self.values: dict[str, Counter[str]] = {
            name: Counter({} if label else {"": 0}) for name, (label, _) in _COUNTS.items()
        }

    def collect(self) -> Iterator[UnknownMetricFamily]:
        """Yield the counters as they are now."""
        for name, (label, told) in _COUNTS.items():
            family = UnknownMetricFamily(name, told, labels=[label] if label else [])
            for value, count in sorted(self.values[name].items()):
                family.add_metric([value] if label else [], count)
            yield family


class Metrics:
    """The metrics of one service."""

    def __init__(self) -> None:
        disable_created_metrics()
        self._registry, self._counts = CollectorRegistry(), _Counts()
        self._registry.register(self._counts)
        here = {"registry": self._registry}
        self.queue_size = Gauge("te_queue_size", "Jobs that wait for a batch", **here)
        self._rows = Histogram("te_batch_next_size", "Rows of a batch", buckets=_POWERS[:13], **here)
        self._tokens = Histogram("te_batch_next_tokens", "Tokens of a batch", buckets=_POWERS, **here)
        self._durations = {
            name: Histogram(name, told, buckets=_SECONDS, **here) for name, told in _DURATIONS.items()
        }

    def count(self, name: str, label: str = "", by: int = 1) -> None:
        """Add to a counter. A label is the method or the reason of a request."""
        self._counts.values[name][label] += by

    def failed(self, reason: str) -> None:
        """Count a request that was refused or failed."""
        self.count("te_request_failure", reason)

    def batch(self, rows: int, tokens: int, waiting: int) -> None:
        """Note a batch, and how many jobs wait behind it."""
        self._rows.observe(rows)
        self._tokens.observe(tokens)
        self.queue_size.set(waiting)

    def took(self, name: str, seconds: float) -> None:
        """Note a duration, such as `te_request_duration`."""
        self._durations[name].observe(seconds)

    def exposition(self) -> bytes:
        """The metrics in the text format of Prometheus."""
        return generate_latest(self._registry)
