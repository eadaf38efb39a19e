"""A made MS MARCO-style collection, networks of its size, and settings that train on it in seconds.

60 passages tell where one of 60 animals is (a colour and a name). The splits: `train` asks for the first 40,
`dev` for passages 0 to 9 and `test` for 10 to 19 in other words, `unlabelled` for passages 40 to 49.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from reference import Sizes

from rocketqa_paddle import checkpoints
from rocketqa_paddle.data import formats
from rocketqa_paddle.networks.encoders import Checkpoint, CrossEncoder, DualEncoder
from rocketqa_paddle.networks.ernie import ErnieConfig
from rocketqa_paddle.networks.tokenization import SPECIAL_TOKENS, Tokenizer
from rocketqa_paddle.records import Collection, Passage, Query, Split
from rocketqa_paddle.search.retrieval import CorpusIndex
from rocketqa_paddle.settings import (
    DataSettings,
    EvaluationSettings,
    GroupSettings,
    JointSettings,
    OptimizerSettings,
    RerankerSettings,
    RerankerWarmupSettings,
    RetrieverSettings,
    RocketQAv2Settings,
    WarmupSettings,
)

ROOT = Path(__file__).parents[1]
COLOURS = ("red", "blue", "green", "white", "black", "brown")
ANIMALS = ("dog", "cat", "horse", "mouse", "whale", "tiger", "eagle", "snake", "otter", "zebra")
PLACES = ("lives near a river", "sleeps under the tree", "runs over dry fields", "waits at home", "swims far")
FRAMES = {
    "train": ("where is the {} {} ?", range(40)),
    "dev": ("where is a {} {}", range(10)),
    "test": ("where is a {} {}", range(10, 20)),
    "unlabelled": ("look for some {} {}", range(40, 50)),
}
PAIRS = [(COLOURS[(i + i // 30) % 6], ANIMALS[i % 10]) for i in range(60)]
assert len(set(PAIRS)) == 60


def collection() -> Collection:
    """The corpus, and every split with its judgements but for `unlabelled`."""
    passages = {
        f"p{i}": Passage(f"p{i}", animal if i % 2 else "", f"the {colour} {animal} {PLACES[i % 5]} .")
        for i, (colour, animal) in enumerate(PAIRS)
    }
    splits = {}
    for name, (frame, rows) in FRAMES.items():
        queries = {f"{name}{i}": Query(f"{name}{i}", frame.format(*PAIRS[i])) for i in rows}
        splits[name] = Split(queries, {f"{name}{i}": {f"p{i}": 1} for i in rows if name != "unlabelled"})
    return Collection(passages, splits)


def write(folder: Path) -> Path:
    """The collection as a folder."""
    formats.write_collection(folder, collection())
    return folder


def tokenizer(folder: Path) -> Tokenizer:
    """Of the collection's words; writes its vocabulary into `folder`."""
    made = collection()
    texts = [passage.text for passage in made.passages.values()]
    texts += [query.text for split in made.splits.values() for query in split.queries.values()]
    folder.mkdir(parents=True, exist_ok=True)
    words = sorted({word for text in texts for word in text.split()})
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, *words]) + "\n", encoding="utf-8")
    return Tokenizer(folder / "vocab.txt")


def config(tokens: int) -> ErnieConfig:
    """Of a network that computes in a millisecond; weights large enough that no two scores are alike."""
    return ErnieConfig(
        vocab_size=tokens,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        ffn_size=64,
        max_positions=64,
        sent_types=2,
        initializer_range=0.3,
    )


def ernie_config(sizes: Sizes, **changes: Any) -> ErnieConfig:
    """The sizes of the oracle, as the package calls them."""
    named = {
        "vocab_size": sizes.vocab,
        "hidden_size": sizes.hidden,
        "num_layers": sizes.layers,
        "num_heads": sizes.heads,
        "ffn_size": sizes.ffn,
        "max_positions": sizes.positions,
        "sent_types": sizes.sentence_types,
        "task_types": sizes.task_types,
        "activation": sizes.activation,
        "layer_norm_eps": sizes.epsilon,
    }
    return ErnieConfig(**(named | changes))


def dual(tokens: Tokenizer, **network: Any) -> Checkpoint:
    """A retriever with random weights."""
    return Checkpoint(DualEncoder(config(len(tokens)), **network), tokens, {"query": 12, "passage": 20})


def cross(tokens: Tokenizer, **network: Any) -> Checkpoint:
    """A re-ranker with random weights."""
    return Checkpoint(CrossEncoder(config(len(tokens)), **network), tokens, {"pair": 28})


def write_best(folder: Path) -> Path:
    """What a run leaves in `best/`, with random weights: retriever, re-ranker and index."""
    tokens = tokenizer(folder.parent / f"{folder.name}-vocabulary")
    retriever = dual(tokens, pooling="mean")
    checkpoints.save(retriever, folder / "retriever", "A toy.")
    checkpoints.save(cross(tokens, dropout=0.0), folder / "reranker", "A toy.")
    index = CorpusIndex(retriever, collection().passages, progress="")
    index.save(folder / "index", checkpoints.load(folder / "retriever").digest())
    return folder


def settings(output: Path, folder: Path, **changes: Any) -> RocketQAv2Settings:
    """Of a run that goes through every stage in a second or two. `changes` replace whole sections."""
    fast = OptimizerSettings(learning_rate=1e-3)
    sections: dict[str, Any] = {
        "data": DataSettings(folder=str(folder), tests=["test"]),
        "retriever": RetrieverSettings(start="tiny", pooling="mean", query_length=12, passage_length=20),
        "reranker": RerankerSettings(start="tiny", length=28),
        "warmup_retriever": WarmupSettings(batch_size=8, steps=4, optimizer=fast),
        "warmup_reranker": RerankerWarmupSettings(batch_size=4, steps=4, negatives=3, optimizer=fast),
        "joint": JointSettings(
            rounds=2,
            batch_size=4,
            steps=4,
            queries=20,
            optimizer=fast,
            groups=GroupSettings(negatives=3, depth=20, negative_below=0.5),
        ),
        "evaluation": EvaluationSettings(depth=20, rerank_depth=10, measures=["RR@10", "Success@5"]),
    }
    return RocketQAv2Settings(output=str(output), **(sections | changes))


def check_files(folder: Path, trained: dict[str, list[str]], others: set[str], ignored: str = r"$") -> None:
    """A finished run has left its own files, those of its stages' models and of `best/`, and `others`.

    It has left nothing else, but for word lists and what is `ignored` (a pattern).
    """
    own = [
        ".lock",
        "best/stages.json",
        "config.yaml",
        "metrics.jsonl",
        "report.md",
        "stages.md",
        "curves.png",
    ]
    parts = ("config.json", "model.safetensors", "vocab.txt", "README.md")
    models = {**trained, "best": ["retriever", "reranker"]}
    expected = {*own, *others, *(f"{stage}/stage.json" for stage in trained)}
    expected |= {
        f"{place}/{name}/{part}" for place, names in models.items() for name in names for part in parts
    }
    expected |= {f"best/index/{part}" for part in ("index.faiss", "ids.txt", "meta.json", "passages.jsonl")}
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert expected - found == set()
    assert [name for name in found - expected if not re.match(rf"vocabulary/|{ignored}", name)] == []


FLAGS = {
    "retriever.start": "tiny",
    "retriever.pooling": "mean",
    "retriever.query_length": 12,
    "retriever.passage_length": 20,
    "reranker.start": "tiny",
    "reranker.length": 28,
    "warmup_retriever.steps": 3,
    "warmup_reranker.steps": 3,
    "joint.steps": 3,
    "joint.batch_size": 2,
    "joint.groups.negatives": 3,
    "joint.groups.depth": 10,
    "joint.groups.negative_below": 0.5,
    "evaluation.depth": 10,
    "evaluation.rerank_depth": 5,
}
"""Settings of a run through every stage that is as short as can be, as the command line writes them."""


def flags(**settings: Any) -> list[str]:
    """`--key value` of `FLAGS` and more."""
    return [word for key, value in (FLAGS | settings).items() for word in (f"--{key}", str(value))]


def run(
    *words: str | Path, cwd: Path, timeout: float = 100, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, with this package importable from any folder."""
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    return subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


FLEETRUN = Path(sys.executable).with_name("fleetrun")
