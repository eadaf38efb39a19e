"""What every test shares: Paddle set up once, seeds, and a small made collection.

`vocab` is a WordPiece vocabulary file that covers the toy corpus, `tokenizer` reads it, `tiny_config` is an
encoder of that size. `collection` holds 30 passages on 10 topics and one query a topic, which shares words
with the topic's three passages; the first passage of a topic answers it. Topics 0 to 6 are the split `train`,
7 to 9 `dev`.
"""

from __future__ import annotations

import os
import random
import string
from pathlib import Path

from rocketqa_paddle.runtime.device import import_paddle, tune_cpu

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny networks gain nothing from more
os.environ.setdefault("NUMBA_NUM_THREADS", "2")  # but the loops have to be right with several
tune_cpu()
import_paddle()

import numpy as np  # noqa: E402
import paddle  # noqa: E402
import pytest  # noqa: E402
import ranks  # noqa: E402
import toy  # noqa: E402
from hypothesis import settings  # noqa: E402

from rocketqa_paddle.networks.ernie import ErnieConfig  # noqa: E402
from rocketqa_paddle.networks.tokenization import SPECIAL_TOKENS, Tokenizer  # noqa: E402
from rocketqa_paddle.records import Collection, Passage, Query, Split  # noqa: E402

settings.register_profile("suite", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("suite")

TOPICS = {
    "paris": ("capital of france", "city on the river seine", "the louvre museum shows old art"),
    "python": ("language with clear code", "snake without venom", "list and dictionary types"),
    "coffee": ("drink from roasted beans", "espresso needs high pressure", "grows near the equator"),
    "moon": ("satellite of the earth", "first landing in 1969", "tides follow its pull"),
    "violin": ("instrument with four strings", "bow made of horse hair", "concerto by sibelius"),
    "bread": ("dough rises with yeast", "baked in a hot oven", "rye and wheat flour"),
    "whale": ("largest animal of the sea", "sings under water", "breathes air at the surface"),
    "chess": ("game with kings and pawns", "castling protects the king", "world title match of 1972"),
    "honey": ("sweet food made by bees", "keeps for many years", "wax comb in the hive"),
    "glass": ("melted sand cools slowly", "windows let light through", "blown at the furnace"),
}


def _passages() -> list[Passage]:
    return [
        Passage(f"p{3 * i + j}", topic if j != 1 else "", f"{topic} {fact} .")
        for i, (topic, facts) in enumerate(TOPICS.items())
        for j, fact in enumerate(facts)
    ]


def _split(topics: range) -> Split:
    names = list(TOPICS)
    queries = {f"q{i}": Query(f"q{i}", f"what {names[i]} {TOPICS[names[i]][0]} ?") for i in topics}
    return Split(queries, {f"q{i}": {f"p{3 * i}": 1} for i in topics})


def vocabulary() -> list[str]:
    """Special tokens, single characters and their continuations, and the words of the toy corpus."""
    texts = [p.text for p in _passages()] + ["what is the a"]
    words = sorted({word for text in texts for word in text.split() if len(word) > 1})
    characters = string.ascii_lowercase + string.digits
    pieces = [*characters, *(f"##{c}" for c in characters), "##ing", "##er", *string.punctuation, *"检索稠密"]
    return [*SPECIAL_TOKENS, *pieces, *words]


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(1)
    np.random.seed(1)
    paddle.seed(1)


@pytest.fixture(scope="session")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocab.txt of some 200 tokens, one a line."""
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("".join(f"{token}\n" for token in vocabulary()), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tokenizer(vocab: Path) -> Tokenizer:
    """Reads `vocab`."""
    return Tokenizer(vocab)


@pytest.fixture(scope="session")
def tiny_config(tokenizer: Tokenizer) -> ErnieConfig:
    """The size of `vocab`, 2 layers of 32 units, 64 positions, 2 sentence types."""
    return ErnieConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        ffn_size=64,
        max_positions=64,
        sent_types=2,
    )


@pytest.fixture(scope="session")
def passages() -> list[Passage]:
    """The 30 passages of `collection`, in order."""
    return _passages()


@pytest.fixture(scope="session")
def collection(passages: list[Passage]) -> Collection:
    """The toy corpus with the splits `train` (7 queries) and `dev` (3 queries)."""
    by_id = {passage.id: passage for passage in passages}
    return Collection(by_id, {"train": _split(range(7)), "dev": _split(range(7, 10))})


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `distributed_worker.py` filled in two processes, one on each of two nodes."""
    folder = tmp_path_factory.mktemp("two")
    done = ranks.launch_nodes(folder, "distributed_worker.py", folder)
    assert [node.returncode for node in done] == [0, 0], "\n".join(node.stdout[-3000:] for node in done)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The collection of `toy` as a folder, one a module."""
    return toy.write(tmp_path_factory.mktemp("data") / "toy")


@pytest.fixture(scope="session")
def best(tmp_path_factory) -> Path:
    """The `best` folder of a run on the collection of `toy`. A test that changes it must copy it."""
    paddle.seed(1)
    return toy.write_best(tmp_path_factory.mktemp("run") / "best")
