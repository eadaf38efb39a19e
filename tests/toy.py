"""A made MS MARCO-style collection, networks of its size, and flags of a run that trains on it in seconds.

60 passages tell where one of 60 animals is (a colour and a name). The splits: `train` asks for the first 40,
`dev` for passages 0 to 9 and `test` for 10 to 19 in other words, `unlabelled` for passages 40 to 49.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from reference import Sizes
from sentencepiece import SentencePieceTrainer

from rocketqa_paddle import checkpoints
from rocketqa_paddle.networks.encoders import Checkpoint, CrossEncoder, DualEncoder
from rocketqa_paddle.networks.ernie import ErnieConfig
from rocketqa_paddle.networks.tokenization import SPECIAL_TOKENS, Tokenizer
from rocketqa_paddle.records import Collection, Passage, Query, Split
from rocketqa_paddle.search.retrieval import CorpusIndex

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


def write(folder: Path, made: Collection | None = None) -> Path:
    """A collection as a folder; judgements that are not all 1 take TREC's four columns."""
    made = made or collection()
    passages = made.passages.values()
    files = {"para.txt": [(p.id, p.text) for p in passages]}
    files["para.title.txt"] = [(p.id, p.title) for p in passages]
    for name, split in made.splits.items():
        files[f"{name}.query.txt"] = [(query.id, query.text) for query in split.queries.values()]
        judged = [(q, "0", p, str(grade)) for q, row in split.qrels.items() for p, grade in row.items()]
        pairs = [(query, passage) for query, _, passage, grade in judged if grade == "1"]
        if judged:
            files[f"qrels.{name}.tsv"] = pairs if len(pairs) == len(judged) else judged
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        text = "".join("\t".join(row) + "\n" for row in rows)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def tokenizer(folder: Path) -> Tokenizer:
    """Make a tokenizer of the collection's words, and write its vocabulary into `folder`."""
    made = collection()
    texts = [passage.text for passage in made.passages.values()]
    texts += [query.text for split in made.splits.values() for query in split.queries.values()]
    folder.mkdir(parents=True, exist_ok=True)
    words = sorted({word for text in texts for word in text.split()})
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, *words]) + "\n", encoding="utf-8")
    return Tokenizer(folder / "vocab.txt")


def sentence_pieces(folder: Path, texts: list[str], vocab_size: int, **pieces: Any) -> Path:
    """Train a SentencePiece model on texts and write `spm.model`; `pieces` goes to the trainer."""
    with (folder / "spm.model").open("wb") as file:
        SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=file,
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            minloglevel=2,
            **pieces,
        )
    return folder / "spm.model"


PADDED = {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1, "pad_piece": "[PAD]", "unk_piece": "[UNK]"}
"""Settings of `sentence_pieces` that give the special tokens the names and ids of ERNIE."""


def config(tokens: int) -> ErnieConfig:
    """Sizes of a network that computes in a millisecond; its large weights make no two scores alike."""
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


FLAGS = {
    "retriever.init": "tiny",
    "retriever.pooling": "mean",
    "retriever.query_length": 12,
    "retriever.passage_length": 20,
    "reranker.init": "tiny",
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
"""Settings of a run through every step that is as short as can be, as the command line writes them."""


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
