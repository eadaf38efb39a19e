"""`rocketqa train`: mistakes in its settings, told before any work."""

from __future__ import annotations

import shutil

import pytest
from command_line import run, train

from rocketqa_paddle.commands import cli
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
        ("joint.chunks", 0, "chunks=0, expected at least 1"),
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


def test_a_judgement_of_an_unknown_passage(fails, data, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(data, broken)
    with (broken / "qrels.dev.tsv").open("a") as file:
        file.write("dev0\tp9999\n")
    line = train(broken, tmp_path / "run")
    place = f"{broken}/qrels.dev.tsv:11"
    told = f"judged passages that are not in para.txt: 1, the first is 'p9999' ({place})"
    assert told in fails(*line)
    run(*line, "--data.on_error", "skip", "--dry-run")
    told = f"judged passages that are not in para.txt: 1 left out, such as 'p9999' ({place})"
    assert told in capsys.readouterr().out


def test_an_initial_checkpoint_that_is_not_there(fails, data, tmp_path):
    message = fails(*train(data, tmp_path / "run", **{"retriever.init": "package:no_such_package/model"}))
    assert "no_such_package is not installed" in message
    assert "tiny" in fails(*train(data, tmp_path / "run2", **{"retriever.init": "runs/typo"}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("data:\n", "data is empty, expected settings by name"),
        ("data: {data}\nretriever: tiny\n", "retriever is 'tiny', expected settings by name"),
        ("data: {data}\njoint: {optimizer: [1]}\n", "joint.optimizer is [1], expected settings by name"),
        ("data: {data}\njoint: {optimizer: {rate: 1}}\n", "joint.optimizer.rate is no setting; there are"),
        ("data: {data}\njoint: {batchsize: 3}\n", "joint.batchsize is no setting; there are batch_size"),
        ("data: {data}\nretriever: {normalize: maybe}\n", "retriever.normalize"),
        ("data: {data}\nretriever: {temperature: .nan}\n", "retriever.temperature"),
        ("data: {data}\nretriever: {query_length: true}\n", "retriever.query_length"),
        ("data: {data}\nretriever: {query_length: 2.5}\n", "retriever.query_length"),
        ("data: {data}\nsave_minutes: 1" + "0" * 400 + "\n", "int too large"),
        ("data: {data}\nsave_minutes: -1\n", "save_minutes=-1"),
        ("data: {data}\noutput: x\n", ":3: not YAML ('output' for the second time)"),
    ],
)
def test_a_mistake_in_a_config_names_the_file_and_the_setting(fails, data, tmp_path, content, message):
    config = tmp_path / "my.yaml"
    text = content.replace("{data}", f"{{folder: {data}}}")
    config.write_text(f"output: {tmp_path}/run\n{text}")
    told = fails("train", "rocketqav2", "--config", config)
    assert told.startswith(f"rocketqa: {config}")
    assert message in told


def test_a_list_of_one_needs_no_brackets(data, tmp_path):
    config = tmp_path / "my.yaml"
    sources = "joint: {groups: {sources: random}}"
    config.write_text(f"output: x\ndata: {{folder: {data}, tests: test}}\n{sources}\n")
    line = ["train", "rocketqav2", "--config", str(config)]
    settings = cli.parse(line).args[1]
    assert settings.data.tests == ["test"]
    assert settings.joint.groups.sources == ["random"]
    for flags, measures in (
        (["--evaluation.measures", "RR@10"], ["RR@10"]),
        (["--evaluation.measures=RR@10, Success@5"], ["RR@10", "Success@5"]),
        (["--evaluation.measures", "[RR@10,Success@5]"], ["RR@10", "Success@5"]),
    ):
        assert cli.parse([*line, *flags]).args[1].evaluation.measures == measures
    assert cli.parse([*line, "--data.tests", "2019,dev"]).args[1].data.tests == ["2019", "dev"]
    assert cli.parse(["evaluate", "--qrels", "q", "--run", "r", "--measures", "RR@10"]).keywords[
        "measures"
    ] == ["RR@10"]


def test_a_number_of_hundreds_of_digits(fails, data, tmp_path):
    assert "int too large" in fails(*train(data, tmp_path / "run", save_minutes="1" + "0" * 400))


def test_flags_override_the_config_before_them(data, tmp_path):
    for name, steps in {"one": 3, "two": 4}.items():
        text = f"output: x\ndata: {{folder: {data}}}\njoint: {{steps: {steps}}}\n"
        (tmp_path / name).write_text(text)
    one, two = (["--config", str(tmp_path / name)] for name in ("one", "two"))
    for flags, steps in ((one, 3), ([*one, *two], 4), ([*one, "--joint.steps", "5"], 5)):
        assert cli.parse(["train", "rocketqav2", *flags]).args[1].joint.steps == steps
    assert cli.parse(["train", "rocketqav2", "--joint.steps", "5", *one]).args[1].joint.steps == 3


def test_a_config_in_the_home_folder(data, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my.yaml").write_text(f"output: ~/run\ndata: {{folder: {data}}}\n")
    settings = cli.parse(["train", "ar2", "--config=~/my.yaml", "--retriever.init=~/model"]).args[1]
    assert (settings.output, settings.retriever.init) == (f"{tmp_path}/run", f"{tmp_path}/model")
