"""Tell where the time of this package's training steps goes.

    python examples/benchmarks/shares.py train|lists|joint

The steps are those of `duel.py`. Matrix products are Paddle's; `fused` are the loops between them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import time
from collections import Counter
from pathlib import Path

import ours
from duel import MODEL, PEER, ROOT, make_job
from paddle import profiler

from rocketqa_paddle.networks import fused

_ROW = re.compile(r"^(Global_\w+|\w+ dygraph)\s+\d+\s+([\d.]+) /", re.MULTILINE)


def main() -> None:
    """Profile some rounds of steps and print the shares."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("task", choices=("train", "lists", "joint"))
    job = make_job(parser.parse_args().task, 2, "torch", ROOT / "data" / "pydocs")
    job["models"] = str(PEER / "work")
    Path(job["models"]).mkdir(parents=True, exist_ok=True)
    ours.write_models(MODEL, Path(job["models"]))
    steps, spent = ours.training(job), Counter()
    steps()
    steps()  # compiled, and the memory is there
    run = fused._run

    def timed(loop: str, *values: object) -> None:
        begun = time.perf_counter()
        run(loop, *values)
        spent[f"fused {loop}"] += time.perf_counter() - begun

    fused._run = timed
    begun = time.perf_counter()
    steps()
    whole = time.perf_counter() - begun
    fused._run = run

    target, told = profiler.ProfilerTarget.CPU, io.StringIO()
    watch = profiler.Profiler(targets=[target], on_trace_ready=lambda _: None)  # no folder of traces
    watch.start()
    begun = time.perf_counter()
    steps()
    watched = time.perf_counter() - begun
    watch.stop()
    with contextlib.redirect_stdout(told):
        watch.summary(sorted_by=profiler.SortedKeys.CPUTotal, time_unit="ms")
    for name, milliseconds in _ROW.findall(told.getvalue()):
        if name in ("matmul dygraph", "Global_MatmulGradNode", "adamw_ dygraph", "Global_ConcatGradNode"):
            spent[name] += float(milliseconds) / 1e3 * whole / watched
    count = job["steps_a_round"]
    for name, seconds in spent.most_common():
        print(f"{1e3 * seconds / count:8.1f} ms  {seconds / whole:6.1%}  {name}")
    print(f"{1e3 * whole / count:8.1f} ms  100.0%  a step")


if __name__ == "__main__":
    main()
