"""The scripts that users of a checkout run, as they run them."""

from __future__ import annotations

import json
import os
import sys

import pytest
import toy
import yaml

from rocketqa_paddle import checkpoints
from rocketqa_paddle.search.index import VectorIndex

TRAINED_BY = {
    "train_joint": "rocketqav2",
    "train_rocketqa": "rocketqa",
    "train_pair": "pair",
    "train_ar2": "ar2",
}
"""The system that a script trains."""
SCRIPTS = {name: toy.ROOT / "examples" / f"{name}.sh" for name in TRAINED_BY}
SCRIPT = SCRIPTS["train_joint"]


def write_config(path, output, data) -> None:
    """`toy.FLAGS` as a YAML file, with relative paths as a user has them."""
    nested: dict = {"output": str(output), "data": {"folder": str(data), "tests": ["test"]}}
    for key, value in toy.FLAGS.items():
        *sections, name = key.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    path.write_text(yaml.safe_dump(nested), encoding="utf-8")


def check_run(folder, rounds: int) -> None:
    for step in ["warm-up", *(f"round-{number:03d}" for number in range(1, rounds + 1))]:
        assert checkpoints.is_checkpoint(folder / step / "retriever")
        assert checkpoints.is_checkpoint(folder / step / "reranker")
    text = (folder / "report.md").read_text()
    for row in ("initial checkpoint", "retriever, warmed up", "retriever, round-001", "re-ranker, warmed up"):
        assert f"| {row} " in text
    index = VectorIndex.load(
        folder / "best" / "index", checkpoints.load(folder / "best" / "retriever").digest()
    )
    assert len(index) == 60
    assert (folder / "curves.png").stat().st_size > 1000
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [(row["stage"], row["step"]) for row in rows if "loss" in row]
    assert len(steps) == len(set(steps)) == 2 * (2 + rounds)  # the first and the last of each training


def test_the_script_from_another_folder(data, tmp_path):
    """A config with relative paths, and flags that override it; a second call finds the work done."""
    (tmp_path / "here").symlink_to(data)
    write_config(tmp_path / "my.yaml", "runs/mine", "here")
    command = (SCRIPT, "--config", "my.yaml", "--joint.rounds", "2", "--joint.steps", "2")
    done = toy.run(*command, cwd=tmp_path, PYTHON=sys.executable)
    assert done.returncode == 0, done.stderr[-3000:]
    check_run(tmp_path / "runs" / "mine", rounds=2)
    saved = yaml.safe_load((tmp_path / "runs" / "mine" / "config.yaml").read_text())
    assert (saved["joint"]["rounds"], saved["joint"]["steps"], saved["data"]["folder"]) == (2, 2, "here")
    report = (tmp_path / "runs/mine/report.md").read_text()
    assert report.strip() in done.stdout
    for word in ("Traceback", "Warning", "ccache", "OMP_NUM_THREADS"):
        assert word not in done.stderr

    again = toy.run(*command, cwd=tmp_path, PYTHON=sys.executable)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "round-002: finished before" in again.stdout
    assert (tmp_path / "runs/mine/report.md").read_text() == report


def test_the_script_passes_a_mistake_on(tmp_path):
    done = toy.run(
        SCRIPT, *toy.flags(**{"data.folder": "none", "output": "out"}), cwd=tmp_path, PYTHON=sys.executable
    )
    assert done.returncode == 2
    assert done.stderr.strip().startswith("rocketqa: none: expected a collection")


def test_the_script_on_two_processes(data, tmp_path):
    write_config(tmp_path / "my.yaml", "mine", data)
    done = toy.run(
        *(toy.FLEETRUN, "--nproc_per_node", "2", "--log_dir", tmp_path / "log"),
        *(SCRIPT, "--config", "my.yaml"),
        cwd=tmp_path,
        PYTHON=sys.executable,
    )
    logs = [path.read_text() for path in sorted((tmp_path / "log").glob("workerlog.*"))]
    assert done.returncode == 0, "\n".join(log[-3000:] for log in logs)
    check_run(tmp_path / "mine", rounds=1)
    assert len(logs) == 2
    assert (tmp_path / "mine" / "report.md").read_text().strip() in logs[0]
    assert "| system" not in logs[1]  # told once


@pytest.mark.parametrize("name", SCRIPTS)
def test_without_arguments_a_script_is_the_demo(tmp_path, name):
    """With a `python` that writes down what it is asked to run, and where."""
    python = tmp_path / "python"
    python.write_text(f'#!/usr/bin/env bash\necho "$PWD" "$@" > {tmp_path}/call\n')
    python.chmod(0o755)
    done = toy.run(SCRIPTS[name], cwd=tmp_path, PYTHON=str(python))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "call").read_text() == f"{toy.ROOT} -m rocketqa_paddle demo {TRAINED_BY[name]}\n"


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=list(SCRIPTS))
def test_the_scripts_are_executable_and_sound(script):
    assert os.access(script, os.X_OK)
    for path in (script, script.with_name("train.sh")):
        done = toy.run("bash", "-n", path, cwd=toy.ROOT)
        assert done.returncode == 0, done.stderr


def test_the_builder_of_the_demos_data(tmp_path):
    done = toy.run(
        sys.executable, toy.ROOT / "examples" / "build_pydocs.py", "--max-passages", "0", cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (1, "error: max_passages=0, expected at least 1\n")
