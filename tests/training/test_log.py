"""`metrics.jsonl`: what lines hold, which are removed, and what a crash leaves."""

from __future__ import annotations

import json
import math

import pytest

from rocketqa_paddle.training.log import MetricsLog


@pytest.fixture
def log(tmp_path):
    return MetricsLog(tmp_path / "metrics.jsonl")


def test_lines_come_back_with_their_time(log):
    assert log.read() == []
    log.write(stage="one", step=1, loss=0.5)
    log.write(stage="π", **{"dev/RR@10": 0.25})
    first, second = log.read()
    assert first.pop("time") > 1e9
    assert first == {"stage": "one", "step": 1, "loss": 0.5}
    assert (second["stage"], second["dev/RR@10"]) == ("π", 0.25)


def test_nan_and_infinity_are_written_as_null(log):
    log.write(stage="one", loss=math.nan, norm=math.inf, step=1)
    [line] = log.path.read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail) == log.read()[0]
    assert (log.read()[0]["loss"], log.read()[0]["norm"]) == (None, None)


def test_a_whole_line_without_a_line_end_is_kept(log):
    log.write(stage="one")
    log.path.write_bytes(log.path.read_bytes().strip())
    log.write(stage="two")
    assert [line["stage"] for line in log.read()] == ["one", "two"]


def test_half_a_line_that_a_crash_left_is_not_read_and_the_next_line_replaces_it(log):
    log.write(stage="one", step=1)
    with log.path.open("a") as file:
        file.write('{"time": 1.0, "stage": "o')
    assert [line["step"] for line in log.read()] == [1]
    log.write(stage="one", step=2)
    assert [line["step"] for line in log.read()] == [1, 2]


def test_a_broken_line_is_an_error_that_names_the_file(log):
    good = '{"time": 1.5, "stage": "one", "step": 1, "loss": null}'
    for line, problem in {
        "broken": "not JSON",
        "{}": "'time' is missing",
        "[]": r"is \[\], expected an object",
        "5": "is 5, expected an object",
        '{"time": 1, "stage": 5}': "stage is 5, expected a text",
        '{"time": 1, "stage": " "}': "a line without its stage",
        '{"time": 1, "stage": "one", "loss": 1}': "a line without its stage or step",
        '{"time": 1, "stage": "one", "step": 1, "loss": "x"}': "loss is 'x', expected a finite",
        '{"time": 1, "stage": "one", "dev/x": {}}': "dev/x is {}, expected a finite number or null",
    }.items():
        log.path.write_text(f"{good}\n{line}\n{good}\n")
        for use in (log.read, lambda: log.rewind("one", 5), lambda: log.forget("one", ["loss"])):
            with pytest.raises(ValueError, match=rf"metrics\.jsonl:2.*{problem}.*: remove this line"):
                use()


def test_rewinding_removes_the_later_steps_of_one_training(log):
    for name, step in (("one", 1), ("two", 1), ("one", 2), ("one", 3), ("two", 3)):
        log.write(stage=name, step=step)
    log.write(stage="one", **{"dev/RR@10": 0.5})
    log.rewind("one", 2)
    kept = [(line["stage"], line.get("step")) for line in log.read()]
    assert kept == [("one", 1), ("two", 1), ("one", 2), ("two", 3), ("one", None)]


def test_rewinding_leaves_the_lines_of_another_training_of_the_same_name(log):
    one, other = (MetricsLog(log.path, output=name) for name in "ab")
    for which in (one, other):
        which.write(stage="train", step=5)
    one.rewind("train", 0)
    assert [line["output"] for line in log.read()] == ["b"]


def test_forgetting_removes_the_lines_with_some_keys(log):
    log.write(stage="one", step=1, loss=2.0)
    log.write(stage="one", **{"dev/a": 0.5})
    log.write(stage="two", **{"dev/a": 0.5})
    log.forget("one", ["dev/a", "dev/b"])
    assert [(line["stage"], line.get("step")) for line in log.read()] == [("one", 1), ("two", None)]
