"""The script and the configs that users run, as they run them."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys

import pytest
import toy
import yaml

from rocketqa_paddle import checkpoints
from rocketqa_paddle.commands import cli
from rocketqa_paddle.commands.comparison.settings import row_settings
from rocketqa_paddle.search.index import VectorIndex
from rocketqa_paddle.systems import SYSTEMS

TRAINED_BY = {
    "train_joint": "rocketqav2",
    "train_rocketqa": "rocketqa",
    "train_pair": "pair",
    "train_ar2": "ar2",
}
"""The system that a script trains."""
SCRIPTS = {name: toy.ROOT / "examples" / f"{name}.sh" for name in TRAINED_BY}
SCRIPT = SCRIPTS["train_joint"]
CONFIGS = sorted((toy.ROOT / "examples" / "configs").glob("*.yaml"))


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


def stub(folder) -> os.PathLike:
    """A `python` that writes down what it is asked to run; `find_spec` fails where FOLDER/scratch is."""
    path = folder / "python"
    path.write_text(
        f'#!/usr/bin/env bash\nexec >> {folder}/calls\nprintf "%s\\x1f" "$PWD" "$@"\nprintf "\\n"\n'
        f'case "$2" in *find_spec*) [ ! -e {folder}/scratch ];; esac\n'
    )
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize("init", ["weights", "scratch"])
def test_the_demo_trains_then_searches(tmp_path, monkeypatch, rank, init, name):
    """Without running it: which commands it would run, and that the real parser takes them."""
    python = stub(tmp_path)
    (tmp_path / init).touch()
    if not (toy.ROOT / "data" / "pydocs").is_dir() and rank == "1":
        pytest.skip("rank 1 would wait for data/pydocs, which is not built")
    done = toy.run(SCRIPTS[name], cwd=tmp_path, PYTHON=str(python), PADDLE_TRAINER_ID=rank)
    assert done.returncode == 0, done.stderr
    calls = [line.split("\x1f")[:-1] for line in (tmp_path / "calls").read_text().splitlines()]
    assert {folder for folder, *_ in calls} == {str(toy.ROOT)}
    commands = [words[2:] for _, *words in calls if words[:2] == ["-m", "rocketqa_paddle"]]
    assert [words[0] for words in commands] == (["train", "search"] if rank == "0" else ["train"])
    monkeypatch.chdir(toy.ROOT)
    calls = [cli.parse(words) for words in commands]
    system, trained, _ = calls[0].args
    assert system.name == TRAINED_BY[name]
    assert ("package:" in trained.retriever.init) == (init == "weights")
    if rank == "0":
        assert calls[1].keywords["checkpoint"] == f"{trained.output}/best"
        assert len(calls[1].keywords["query"]) == 3


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_read_by_the_real_parser(path, monkeypatch):
    monkeypatch.chdir(toy.ROOT)
    name = path.stem.partition("-")[0]
    if name == "compare":
        settings = cli.parse(["compare", "--config", str(path)]).args[0]
        for row in settings.systems:  # as each will train
            row_settings(settings, row)
    else:
        system, settings, _ = cli.parse(["train", name, "--config", str(path)]).args
        assert (system.name, type(settings)) == (name, SYSTEMS[name].settings)
    check_settings(yaml.safe_load(path.read_text(encoding="utf-8")), dataclasses.asdict(settings))
    for name in re.findall(r"(?:examples|data/pydocs)[\w/.-]+\.(?:yaml|sh|py|tsv)", path.read_text()):
        assert (toy.ROOT / name).exists(), name


def check_settings(written, read) -> None:
    """Every value of the file arrived."""
    for key, value in written.items():
        if isinstance(value, dict):
            check_settings(value, read[key])
        else:
            assert read[key] == value, key


def test_there_are_configs():
    assert [path.stem for path in CONFIGS if "pydocs" in path.stem]
    assert {f"{system}-pydocs" for system in SYSTEMS} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=list(SCRIPTS))
def test_the_scripts_are_executable_and_sound(script):
    assert os.access(script, os.X_OK)
    for path in (script, script.with_name("train.sh")):
        done = toy.run("bash", "-n", path, cwd=toy.ROOT)
        assert done.returncode == 0, done.stderr
