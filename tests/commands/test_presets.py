"""Presets: found by name, listed, printed, and read by the real parser."""

from __future__ import annotations

import dataclasses

import pytest
import yaml
from command_line import run

from rocketqa_paddle import presets
from rocketqa_paddle.commands import cli
from rocketqa_paddle.commands.comparison.settings import row_settings
from rocketqa_paddle.systems import SYSTEMS


def parsed(name: str, config: str) -> tuple:
    """What the command of a preset would do."""
    words = ["compare"] if name == "compare" else ["train", name]
    return cli.parse([*words, "--config", config]).args


@pytest.mark.parametrize("preset", presets.names())
def test_every_preset_is_read_by_the_real_parser(preset, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    name = preset.partition("-")[0]
    if name == "compare":
        (settings,) = parsed(name, preset)
        for row in settings.systems:  # as each will train
            row_settings(settings, row)
    else:
        system, settings, _ = parsed(name, preset)
        assert (system.name, type(settings)) == (name, SYSTEMS[name].settings)
    check_settings(yaml.safe_load(presets.text(preset)), dataclasses.asdict(settings))


def check_settings(written, read) -> None:
    """Every value of the file arrived."""
    for key, value in written.items():
        if isinstance(value, dict):
            check_settings(value, read[key])
        else:
            assert read[key] == value, key


def test_the_list_has_a_sentence_for_each(capsys):
    run("presets")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == presets.names()
    assert {f"{system}-pydocs" for system in SYSTEMS} < {*presets.names()}
    for line in lines:
        sentence = line.split(maxsplit=1)[1]
        assert sentence[0].isupper() and sentence.endswith("."), line


def test_a_preset_is_printed_as_it_is(capsys):
    run("presets", "ar2-nq")
    assert capsys.readouterr().out == presets.find("ar2-nq").read_text()


def test_a_file_of_that_name_comes_first_and_a_folder_does_not(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ar2-nq").mkdir()
    assert parsed("ar2", "ar2-nq")[1].output == "runs/ar2-nq"
    (tmp_path / "ar2-nq").rmdir()
    (tmp_path / "ar2-nq").write_text("output: mine\ndata: {folder: here}\n")
    assert parsed("ar2", "ar2-nq")[1].output == "mine"


@pytest.mark.parametrize(
    "words, message",
    [
        (["presets", "ar2-pydoc"], "no preset 'ar2-pydoc', but there are ar2-pydocs"),
        (
            ["train", "ar2", "--config", "ar2-ng"],
            "ar2-ng: no such file, and no preset for ar2 'ar2-ng', but there are ar2-nq",
        ),
        (["train", "ar2", "--config", "pair-nq"], "no preset for ar2 'pair-nq', but there are ar2-nq"),
        (
            ["train", "ar2", "--config", "examples/configs/ar2-nq.yaml"],
            "no such file, and no preset for ar2 'ar2-nq'",
        ),
        (["compare", "--config", "mine"], "there are compare-medquad, compare-pydocs"),
        (
            ["train", "ar2", "--config", "ar2-nq", "--use_cuda", "false"],
            "preset ar2-nq (or a flag): precision=fp16 needs use_cuda=true",
        ),
    ],
)
def test_a_mistake_names_the_preset_and_what_fits(fails, words, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert message in fails(*words)
