"""Nothing is done twice: parsing, measuring, writing, reading and hashing checkpoints, tokenising."""

from __future__ import annotations

from collections import Counter

import pytest
import running
import toy

from rocketqa_paddle import checkpoints
from rocketqa_paddle.evaluation import metrics
from rocketqa_paddle.networks import tokenization
from rocketqa_paddle.networks.encoders import Checkpoint
from rocketqa_paddle.runs import searches
from rocketqa_paddle.runs.run import Run
from rocketqa_paddle.systems import SYSTEMS


@pytest.fixture
def counts(monkeypatch) -> Counter:
    """How often each of these is called."""
    counted: Counter[str] = Counter()

    def count(owner: object, name: str, what: str, amount=lambda *args: 1) -> None:
        function = getattr(owner, name)

        def counting(*args, **options):
            counted[what] += amount(*args)
            return function(*args, **options)

        monkeypatch.setattr(owner, name, counting)

    count(searches, "write_hits", "runs written")
    count(metrics, "evaluate_queries", "runs measured")
    count(checkpoints, "save", "checkpoints written")
    count(checkpoints, "load", "checkpoints read")
    count(Checkpoint, "digest", "checkpoints hashed")
    count(tokenization.WordPieces, "ids", "texts tokenised", lambda self, texts, limit=None: len(texts))
    return counted


def test_a_run_of_two_rounds_does_nothing_twice(data, tmp_path, counts):
    settings = running.rocketqav2(tmp_path / "run", data, **running.from_scratch(data))
    system = SYSTEMS["rocketqav2"].having(settings)
    counts.clear()
    Run(settings).go(system)

    files = sorted(path.relative_to(tmp_path / "run") for path in (tmp_path / "run").rglob("*.queries.txt"))
    models = 6  # two of the warm-up and of each round
    on_dev, on_test = (
        len([f for f in files if f.match(f"reranked.*.{name}.queries.txt")]) for name in ("dev", "test")
    )
    measured = (4 + on_dev) + (4 + on_test)  # the retrievers, and what re-rankers made of their hits
    assert counts["runs written"] == len(files)
    assert counts["runs measured"] == measured
    assert counts["checkpoints written"] == models
    # The initial retriever is the first in `best/`; the model that is read is compared with its record.
    assert counts["checkpoints hashed"] == models + 2
    assert (
        counts["checkpoints read"] == 1
    )  # the warmed-up re-ranker: it was trained on, and orders test again
    texts = {p.title for p in toy.collection().passages.values()}
    texts |= {p.text for p in toy.collection().passages.values()}
    texts |= {q.text for split in toy.collection().splits.values() for q in split.queries.values()}
    assert counts["texts tokenised"] < 5 * len(texts)  # each model has its tokenizer; two count what is cut

    counts.clear()
    Run(settings).go(system)  # everything is there: only the report measures, and the choice of a re-ranker
    assert counts["runs measured"] == (4 + on_test) + 2
    assert counts["runs written"] == counts["checkpoints written"] == 0
    assert counts["checkpoints hashed"] == len(running.best_record(settings))  # the models in `best/`
