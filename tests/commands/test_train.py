"""`rocketqa train`: mistakes in its settings, told before any work."""

from __future__ import annotations

import shutil

import pytest
from command_line import train

from rocketqa_paddle.networks import forward


def test_an_unknown_key_in_a_config(fails, data, tmp_path):
    config = tmp_path / "my.yaml"
    config.write_text(f"output: {tmp_path}/run\ndata: {{folder: {data}}}\njoint: {{batchsize: 3}}\n")
    assert "batchsize" in fails("train", "rocketqav2", "--config", config)
    assert "--joint.batchsize" in fails(*train(data, tmp_path / "run"), "--joint.batchsize", 3)
    assert not (tmp_path / "run").exists()


def test_a_config_of_another_type(fails, data, tmp_path):
    message = fails(*train(data, tmp_path / "run", **{"joint.rounds": "two"}))
    assert "joint.rounds" in message
    assert "two" in message
    message = fails(*train(data, tmp_path / "run", **{"retriever.pooling": "max"}))
    assert "cls" in message
    assert "mean" in message


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("joint.batch_size", 0, "batch_size=0, expected at least 1"),
        ("joint.chunks", 3, "batch_size=2 cannot be split into chunks=3"),
        ("joint.steps", 0, "steps"),
        ("warmup_retriever.steps", -1, "steps"),
        ("warmup_retriever.queries", -2, "queries"),
        ("joint.queries", 0, "queries"),
        ("joint.rounds", -1, "rounds"),
        ("joint.groups.skip", -3, "skip"),
        ("joint.groups.sources", "[]", "sources"),
        ("warmup_reranker.easy_negatives", 9, "easy"),
        ("warmup_reranker.negatives", 0, "negatives"),
        ("joint.optimizer.learning_rate", -1, "learning_rate"),
        ("joint.optimizer.warmup_ratio", 1.5, "warmup_ratio"),
        ("joint.optimizer.max_grad_norm", 0, "max_grad_norm"),
        ("retriever.dropout", 1.5, "dropout"),
        ("retriever.temperature", 0, "temperature"),
        ("encode_batch", 0, "encode_batch"),
        ("evaluation.measures", "[]", "measures"),
        ("evaluation.depth", 0, "depth"),
        ("data.max_dev_queries", 0, "max_dev_queries"),
    ],
)
def test_settings_that_make_no_sense(fails, data, tmp_path, monkeypatch, flag, value, message):
    """Told before any work, naming the setting."""

    def refuse(*_, **__):
        raise AssertionError("work began before the mistake was told")

    monkeypatch.setattr(forward, "_infer", refuse)
    assert message in fails(*train(data, tmp_path / "run", **{flag: value}))


def test_a_missing_data_folder(fails, tmp_path):
    message = fails(*train(tmp_path / "none", tmp_path / "run"))
    assert message.startswith(f"rocketqa: {tmp_path}/none: expected a collection")


def test_a_judgement_of_an_unknown_passage(fails, data, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(data, broken)
    with (broken / "qrels.dev.tsv").open("a") as file:
        file.write("dev0\tp9999\n")
    message = fails(*train(broken, tmp_path / "run"))
    assert message.startswith(f"rocketqa: {broken}/qrels.dev.tsv:11: passage id 'p9999' is not in")


def test_an_initial_checkpoint_that_is_not_there(fails, data, tmp_path):
    message = fails(*train(data, tmp_path / "run", **{"retriever.init": "package:no_such_package/model"}))
    assert "no_such_package is not installed" in message
    assert "tiny" in fails(*train(data, tmp_path / "run2", **{"retriever.init": "runs/typo"}))
