"""Event files say what `metrics.jsonl` says, whatever was removed from that."""

from __future__ import annotations

import dataclasses
import itertools
import struct
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import running
import yaml
from kills import killed_at

from rocketqa_paddle import settings
from rocketqa_paddle.runs.folder import HEAD
from rocketqa_paddle.training import trainer
from rocketqa_paddle.training.events import EventFiles
from rocketqa_paddle.training.log import MetricsLog

Curves = dict[str, list[tuple[int, float]]]


def read_tensorboard(folder: Path) -> Curves:
    """The points of all curves, from records of a length, its checksum, an event and its checksum."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    [file] = folder.glob("events.out.tfevents.*")
    content, curves = file.read_bytes(), defaultdict(list)
    while content:
        (size,) = struct.unpack("<Q", content[:8])
        event = event_pb2.Event.FromString(content[12 : 12 + size])
        for value in event.summary.value:
            curves[value.tag].append((event.step, value.simple_value))
        content = content[16 + size :]
    return dict(curves)


def read_visualdl(folder: Path) -> Curves:
    visualdl = pytest.importorskip("visualdl")
    reader = visualdl.LogReader(file_path=str(folder / "vdlrecords.log"))
    points = {tag: reader.get_data("scalar", tag) for tag in reader.get_tags().get("scalar", [])}
    return {tag: [(point.id, point.value) for point in found] for tag, found in points.items()}


READERS = {"tensorboard": read_tensorboard, "visualdl": read_visualdl}


@pytest.fixture(params=READERS)
def viewer(request):
    pytest.importorskip({"tensorboard": "tensorboardX"}.get(request.param, request.param))
    return request.param


def expected(log: MetricsLog) -> Curves:
    """The curves that a log has."""
    curves, taken = defaultdict(list), {}
    for line in log.read():
        stage, step = line.pop("stage"), line.pop("step", None)
        taken |= {stage: step} if step else {}
        for name, value in line.items():
            if name != "time" and value is not None:
                tag = f"{stage}/{name}" if step else name
                curves[tag].append((step or sum(taken.values()), value))
    return dict(curves)


def check(log: MetricsLog, viewer: str, folder: Path) -> Curves:
    found, curves = READERS[viewer](folder), expected(log)
    assert found.keys() == curves.keys()
    for tag, points in curves.items():
        assert [step for step, _ in found[tag]] == [step for step, _ in points], tag
        np.testing.assert_allclose([v for _, v in found[tag]], [v for _, v in points], rtol=1e-6)
    return found


def test_lines_are_in_the_file_at_once_and_removed_ones_are_not(tmp_path, viewer):
    log, folder = MetricsLog(tmp_path / "metrics.jsonl"), tmp_path / viewer
    log.write(stage="warm-up retriever", step=1, loss=2.0, learning_rate=1e-5)
    log.mirror(EventFiles(folder, viewer))
    log.write(stage="warm-up retriever", step=9, loss=1.0, learning_rate=0.0)
    log.write(stage="warm-up", **{"dev/retriever/RR@10": 0.25})
    log.write(stage="round-001 both", step=4, loss=float("nan"), masked=3)
    log.write(stage="round-001", **{"dev/retriever/RR@10": 0.5})
    found = check(log, viewer, folder)
    assert found["warm-up retriever/loss"] == [(1, 2.0), (9, 1.0)]
    assert found["dev/retriever/RR@10"] == [(9, 0.25), (13, 0.5)]
    assert "round-001 both/loss" not in found
    log.rewind("round-001 both", 0)
    log.forget("round-001", ["dev/retriever/RR@10"])
    log.write(stage="round-001 both", step=2, loss=0.75)
    found = check(log, viewer, folder)
    assert found["round-001 both/loss"] == [(2, 0.75)]
    assert found["dev/retriever/RR@10"] == [(9, 0.25)]


def test_files_of_the_users_are_refused(tmp_path, viewer):
    folder = tmp_path / viewer
    folder.mkdir()
    (folder / "events.out.tfevents.mine").write_text("mine")
    with pytest.raises(ValueError, match="is no folder of event files that this project wrote"):
        MetricsLog(tmp_path / "metrics.jsonl").mirror(EventFiles(folder, viewer))
    assert (folder / "events.out.tfevents.mine").read_text() == "mine"


def test_a_run_that_is_stopped_and_goes_on_has_one_curve(data, tmp_path, viewer):
    run, log = tmp_path / "run", MetricsLog(tmp_path / "run" / "metrics.jsonl")
    chosen = running.rocketqav2(run, data, log=viewer)
    kill = running.kill_after(trainer.Trainer, "_take_step", 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "_LOG_SECONDS", 0.0)  # a line a step
        with pytest.raises(kill(patch)):
            running.train(chosen)
    before = check(log, viewer, run / viewer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "_LOG_SECONDS", 0.0)
        running.train(chosen)
    found = check(log, viewer, run / viewer)
    assert before.keys() < found.keys()
    [joint] = [tag for tag in before if tag.startswith("round-001") and tag.endswith("/loss")]
    assert [step for step, _ in found[joint]] == [1, 2, 3, 4]
    assert len(before[joint]) < 4


def test_a_death_at_any_moment_leaves_a_folder_that_is_made_anew(tmp_path):
    pytest.importorskip("tensorboardX")
    log, folder = MetricsLog(tmp_path / "metrics.jsonl"), tmp_path / "tensorboard"
    log.write(stage="one", step=1, loss=0.5)

    def go_on() -> None:
        MetricsLog(log.path).mirror(EventFiles(folder, "tensorboard"))

    for change in itertools.count():
        died = killed_at(change, go_on)
        go_on()
        assert read_tensorboard(folder) == {"one/loss": [(1, 0.5)]}
        assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "tensorboard"}
        if not died:
            break
    assert change > 3


def test_a_folder_in_the_place_of_the_event_files_is_told_before_any_work(data, tmp_path):
    pytest.importorskip("tensorboardX")
    chosen = running.rocketqav2(tmp_path / "run", data, log="tensorboard")
    place = tmp_path / "run" / "tensorboard" / "notes.txt"
    place.parent.mkdir(parents=True)
    place.write_text("mine")
    config = yaml.safe_dump(dataclasses.asdict(chosen))
    (tmp_path / "run" / "config.yaml").write_text(f"{HEAD}\n{config}")
    with pytest.MonkeyPatch.context() as patch:
        running.forbid(patch, running.NETWORKS)
        with pytest.raises(ValueError, match=r"notes\.txt, which would be lost"):
            running.train(chosen)
    assert place.read_text() == "mine"


def test_a_package_that_is_missing_is_told_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(settings.importlib.util, "find_spec", lambda name: None)
    for viewer, package in {"tensorboard": "tensorboardX", "visualdl": "visualdl"}.items():
        told = f"log={viewer} needs the package {package}: pip install {package}"
        with pytest.raises(ValueError, match=told):
            running.rocketqav2(tmp_path / "run", tmp_path, log=viewer)
