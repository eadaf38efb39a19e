"""Tell how much memory a training step takes, in chunks and without.

    python examples/benchmarks/memory.py

A step is RocketQAv2's: one list of passages through a retriever and a re-ranker of 6 layers and 256 hidden
units, whose weights are random. Every figure is by how much the peak of a process of its own grows in two
steps: gradients, moments of AdamW and activations.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from rocketqa_paddle.runtime.device import import_paddle, tune_cpu

tune_cpu()
import_paddle()

from rocketqa_paddle.networks.encoders import Checkpoint, CrossEncoder, DualEncoder  # noqa: E402
from rocketqa_paddle.networks.ernie import ErnieConfig  # noqa: E402
from rocketqa_paddle.networks.tokenization import SPECIAL_TOKENS, Tokenizer  # noqa: E402
from rocketqa_paddle.records import Group, Passage, Query  # noqa: E402
from rocketqa_paddle.settings import TrainingSettings  # noqa: E402
from rocketqa_paddle.systems.rocketqav2.run import distillation  # noqa: E402
from rocketqa_paddle.training.log import MetricsLog  # noqa: E402
from rocketqa_paddle.training.trainer import Trainer  # noqa: E402

SIZES = {"hidden_size": 256, "num_layers": 6, "num_heads": 4, "ffn_size": 1024}
WORDS = 8000
LISTS, CHUNK = (8, 32, 128), 8  # passages of a list, and of a chunk


def main() -> None:
    """Measure every length of a list and print a table; with `--passages`, take the steps in this process."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--passages", type=int)
    parser.add_argument("--chunks", type=int, default=1)
    given = parser.parse_args()
    if given.passages:
        take_steps(given.passages, given.chunks)
        return
    print(f"| passages | whole | chunks of {CHUNK} |\n|---|---|---|")
    for passages in LISTS:
        whole, chunked = (peak(passages, chunks) for chunks in (1, passages // CHUNK))
        print(f"| {passages} | {whole:,} MB | {chunked:,} MB |", flush=True)


def peak(passages: int, chunks: int) -> int:
    """The peak of a process of its own that takes steps, less what it had before them, in MB."""
    command = [sys.executable, __file__, "--passages", str(passages), "--chunks", str(chunks)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    before, after = map(int, done.stdout.splitlines()[-1].split())
    return after - before


def take_steps(passages: int, chunks: int) -> None:
    """Take two steps with a list of passages, and print this process's peak before and after, in MB."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vocabulary = [*SPECIAL_TOKENS, *(f"word{i}" for i in range(WORDS))]
        (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
        tokens, sizes = Tokenizer(folder / "vocab.txt"), ErnieConfig(vocab_size=len(vocabulary), **SIZES)
        retriever = Checkpoint(DualEncoder(sizes, dropout=0.1), tokens, {"query": 32, "passage": 128})
        reranker = Checkpoint(CrossEncoder(sizes, dropout=0.1), tokens, {"pair": 160})
        trainer = Trainer(
            "memory",
            {"retriever": retriever.network, "reranker": reranker.network},
            [random_list(passages)],
            distillation(retriever, reranker),
            TrainingSettings(batch_size=1, steps=2, chunks=chunks),
            folder=folder / "last",
            log=MetricsLog(folder / "metrics.jsonl"),
        )
        before = peak_of_this_process()
        trainer.fit()
        print(before, peak_of_this_process())


def peak_of_this_process() -> int:
    """The most memory that this process has had so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def random_list(passages: int) -> Group:
    """A query and passages of random words, which fill the lengths."""
    words = random.Random(1)

    def text(length: int) -> str:
        return " ".join(f"word{words.randrange(WORDS)}" for _ in range(length))

    made = tuple(Passage(str(i), "", text(128)) for i in range(passages))
    return Group(Query("0", text(32)), made, (1, *[0] * (passages - 1)))


if __name__ == "__main__":
    main()
