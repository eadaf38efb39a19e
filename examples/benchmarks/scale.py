"""Time and memory of a large corpus: made passages, a tiny network, one process.

    python examples/benchmarks/scale.py index|resume|open|mine|runs|kinds [--passages 1000000]

`index` compares `rocketqa index` with tokenising and encoding alone; `resume` kills it halfway and gives the
command again; `open` opens the index and searches once; `mine` draws negatives for 100,000 queries with 200
candidates each; `runs` reads a TREC file of 7,000 x 1,000 hits; `kinds` compares indexes of faiss by recall,
time and size. Memory is anonymous: what a process has of its own, without mapped files.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from rocketqa_paddle.runtime.device import tune_cpu

WORDS = 40
ROCKETQA = [sys.executable, "-m", "rocketqa_paddle"]


class Watched:
    """A process whose anonymous memory is looked at while it runs."""

    def __init__(self, command: list[str], stop_when: Callable[[], bool] = lambda: False) -> None:
        begun, self.peak = time.perf_counter(), 0.0
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        while self.process.poll() is None:
            self.peak = max(self.peak, anonymous(self.process.pid))
            if stop_when():
                self.process.kill()
            time.sleep(0.05)
        self.seconds = time.perf_counter() - begun
        self.output = self.process.stdout.read()


def anonymous(pid: int | str = "self") -> float:
    """The anonymous memory of a process in MB."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    rows = [line.split() for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(rows[0][1]) / 1000 if rows else 0.0


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Give a list whose only item is the peak of this process's anonymous memory, in MB, in the end."""
    peak, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            peak[0] = max(peak[0], anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def make_data(folder: Path, passages: int) -> Path:
    """Write a corpus of made passages, and a retriever with random weights."""
    path = folder / f"para.{passages}.txt"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(0)
        syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
        vocabulary = np.array(["".join(rng.choice(syllables, rng.integers(1, 4))) for _ in range(20_000)])
        with open(path, "w", encoding="utf-8") as file:
            for row in range(passages):
                words = vocabulary[(20_000 * rng.random(WORDS) ** 3).astype(int)]
                file.write(f"{row}\t{' '.join(words)}\n")
    if not (folder / "retriever").is_dir():
        import paddle

        from rocketqa_paddle import checkpoints
        from rocketqa_paddle.checkpoints import initial

        paddle.seed(0)
        with open(path, encoding="utf-8") as file:
            texts = (line.split("\t")[1] for line, _ in zip(file, range(20_000), strict=False))
            weights = initial.read("tiny", texts, folder)
        made = initial.retriever(weights, 32, 64, pooling="mean", normalize=True)
        checkpoints.save(made, folder / "retriever")
    return path


def index_command(folder: Path, passages: Path, *options: str) -> list[str]:
    """The command that indexes a corpus."""
    flags = ["--checkpoint", folder / "retriever", "--passages", passages, "--output", folder / "index"]
    return [*ROCKETQA, "index", *map(str, flags), *options]


def index(folder: Path, passages: int) -> None:
    """`rocketqa index` beside tokenising and encoding alone."""
    path = make_data(folder, passages)
    alone = Watched([sys.executable, __file__, "alone", "--passages", str(passages), "--folder", str(folder)])
    print(alone.output.strip(), flush=True)
    whole = Watched(index_command(folder, path))
    print(f"index: {whole.seconds:.0f} s, at most {whole.peak:.0f} MB of anonymous memory; {whole.output}")


def alone(folder: Path, passages: int) -> None:
    """Tokenise and encode, and keep nothing."""
    from rocketqa_paddle import checkpoints
    from rocketqa_paddle.networks import forward
    from rocketqa_paddle.records import Passage

    model, begun = checkpoints.load(folder / "retriever"), time.perf_counter()
    with open(make_data(folder, passages), encoding="utf-8") as file:
        rows = (Passage("", "", line.rstrip("\n").split("\t")[1]) for line in file)
        parts = iter(lambda: list(islice(rows, 16384)), [])
        for _ in forward.encode_parts(model, parts, passages):
            pass
    print(f"tokenising and encoding alone: {time.perf_counter() - begun:.0f} s")


def resume(folder: Path, passages: int) -> None:
    """Kill the indexing when half of the vectors are there, and go on."""
    path, shards = make_data(folder, passages), folder / ".index.rocketqa-work" / "vectors"
    half = -(-passages // 16384) // 2
    first = Watched(index_command(folder, path), lambda: len([*shards.glob("*.sum")]) >= half)
    print(f"killed after {first.seconds:.0f} s with {half} shards")
    second = Watched(index_command(folder, path))
    print(f"the rest: {second.seconds:.0f} s; {second.output}")


def open_index(folder: Path, passages: int) -> None:
    """Open the index and answer one query, in a process of its own."""
    code = (
        "import time, paddle\n"
        "from rocketqa_paddle import SearchEngine\n"
        f"folder, begun = {str(folder)!r}, time.perf_counter()\n"
        "engine = SearchEngine.open(folder + '/retriever', folder + '/index')\n"
        "opened = time.perf_counter()\n"
        "found = engine.search(['some words'], 5)\n"
        "print(f'opened in {opened - begun:.2f} s, one query {time.perf_counter() - opened:.2f} s')\n"
        "begun = time.perf_counter()\n"
        "engine.search(['other words'], 5)\n"
        "print(f'another query {time.perf_counter() - begun:.2f} s')\n"
    )
    bare = Watched([sys.executable, "-c", "import rocketqa_paddle, paddle; rocketqa_paddle.SearchEngine"])
    done = Watched([sys.executable, "-c", code])
    print(done.output.strip())
    print(f"anonymous memory: {done.peak:.0f} MB, of which Paddle itself {bare.peak:.0f} MB")


def mine(folder: Path, passages: int) -> None:
    """Draw negatives for 100,000 queries among 200 candidates each, as a round of a run does."""
    from rocketqa_paddle.data.candidates import HIT, Candidates, write_hits
    from rocketqa_paddle.data.dataset import Corpus, QuerySet
    from rocketqa_paddle.data.store import Store
    from rocketqa_paddle.mining import miner
    from rocketqa_paddle.records import Query

    corpus, rng, count = Corpus(Store(folder / "index"), "made"), np.random.default_rng(0), 100_000
    queries = {str(n): Query(str(n), f"query {n}") for n in range(count)}
    relevant = QuerySet("train", queries, {id: {str(int(id) * 7 % len(corpus)): 1} for id in queries})

    def blocks() -> Iterator[np.ndarray]:
        for _ in range(0, count, 1000):
            hits = np.empty((1000, 200), HIT)
            hits["row"] = rng.integers(0, len(corpus), hits.shape)
            hits["score"] = -np.sort(-rng.random(hits.shape))
            yield hits

    write_hits(folder / "hits.npy", queries, 200, blocks())
    before = anonymous()
    with peak_memory() as peak:
        begun = time.perf_counter()
        found = Candidates.load(folder / "hits.npy", corpus.ids)
        policy = miner.Miner.undenoised
        groups, told = miner.mine(policy, relevant, corpus, 7, 1, None, True, {"candidates": found})
        seconds = time.perf_counter() - begun
        begun = time.perf_counter()
        texts = sum(len(p.text) for group in random.Random(0).sample(groups, 1000) for p in group.passages)
        reading = (time.perf_counter() - begun) / 1000
    print(f"{told[0]} in {seconds:.0f} s, at most {peak[0]:.0f} MB ({before:.0f} MB before)")
    print(f"a group is read in {1e3 * reading:.2f} ms ({texts / 8000:.0f} characters a passage)")


def runs(folder: Path, passages: int) -> None:
    """Read a run of 7,000 queries with 1,000 hits each."""
    from rocketqa_paddle.data.runs import read_run

    path, draw = folder / "trec.run", random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        for query in range(7000):
            ids = draw.sample(range(passages), 1000)
            file.writelines(f"q{query} Q0 {id} {n} {99 - n / 1000:.4f} made\n" for n, id in enumerate(ids, 1))
    with peak_memory() as peak:
        begun = time.perf_counter()
        found = read_run(path)
        seconds = time.perf_counter() - begun
    print(f"{sum(map(len, found.values()))} hits read in {seconds:.0f} s, at most {peak[0]:.0f} MB")


KINDS = {
    "Flat": "",
    "SQfp16": "",
    "IVF4096,Flat": "nprobe=64",
    "IVF4096,PQ48": "nprobe=64",
    "OPQ48,IVF4096,PQ48": "nprobe=64",
    "HNSW32": "efSearch=128",
}


def kinds(folder: Path, passages: int) -> None:
    """Indexes of faiss on vectors of 384 dimensions that lie in clusters, as those of texts do."""
    import faiss

    from rocketqa_paddle.search.index import VectorIndex
    from rocketqa_paddle.search.vectors import Vectors
    from rocketqa_paddle.settings import IndexSettings

    rng, hidden = np.random.default_rng(0), 384
    centres = rng.standard_normal((passages // 100, hidden)).astype(np.float32)

    def near(count: int) -> np.ndarray:
        rows = centres[rng.integers(0, len(centres), count)]
        rows = rows + 0.8 * rng.standard_normal((count, hidden)).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    vectors = Vectors([near(min(100_000, passages - n)) for n in range(0, passages, 100_000)])
    queries, exact = near(1000), None
    print("| index | parameters | candidates | recall@10 | a query | built in | bytes a vector |")
    print("|---|---|---|---|---|---|---|")
    for factory, parameters in KINDS.items():
        begun = time.perf_counter()
        made = VectorIndex(vectors, range(passages), settings=IndexSettings(factory, parameters))
        built, size = time.perf_counter() - begun, 4 * hidden
        if made._approximate:
            with tempfile.NamedTemporaryFile(dir=folder) as file:
                faiss.write_index(made._approximate, file.name)
                size = Path(file.name).stat().st_size / passages
        for candidates in (None, 100) if "PQ" in factory else (None,):
            made.settings = replace(made.settings, candidates=candidates)
            rows = made.search(queries, 10)[1]
            exact = rows if exact is None else exact
            recall = np.mean([np.isin(*pair).mean() for pair in zip(exact, rows, strict=True)])
            begun = time.perf_counter()
            for query in queries[:100]:
                made.search(query[None], 10)
            taken = 10 * (time.perf_counter() - begun)
            row = f"| `{factory}` | {parameters} | {candidates or ''} | {recall:.3f} | {taken:.1f} ms | "
            print(f"{row}{built:.0f} s | {size:.0f} |", flush=True)


TASKS = {
    "index": index,
    "alone": alone,
    "resume": resume,
    "open": open_index,
    "mine": mine,
    "runs": runs,
    "kinds": kinds,
}


def main() -> None:
    """Run one of the tasks."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path(".benchmarks/scale"))
    given = parser.parse_args()
    tune_cpu()  # as the command does
    TASKS[given.task](given.folder, given.passages)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    main()
