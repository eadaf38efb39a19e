"""What README and docs/ show works: Python runs, commands parse and run, links lead somewhere."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import command_line
import pytest
import toy

from rocketqa_paddle import presets
from rocketqa_paddle.checkpoints.formats import reference
from rocketqa_paddle.commands import cli
from rocketqa_paddle.data.candidates import gathered, write_hits
from rocketqa_paddle.records import Hit

README = toy.ROOT / "README.md"
PAGES = [README, *sorted((toy.ROOT / "docs").glob("*.md"))]
OTHERS = [toy.ROOT / "CONTRIBUTING.md", toy.ROOT / "CHANGELOG.md", toy.ROOT / "checkpoints" / "README.md"]
TEXTS = {path: path.read_text(encoding="utf-8") for path in [*PAGES, *OTHERS]}
TEXT = "\n".join(TEXTS[path] for path in PAGES)


def fences(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def shell_lines(text: str) -> list[list[str]]:
    """The words of every command in the bash fences, without prompts and comments."""
    lines = []
    for block in fences(text, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words:
                lines.append(words)
    return lines


def prose(text: str) -> str:
    """The text without its fences."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def code_spans(text: str) -> list[str]:
    """What stands between backticks in the prose."""
    return re.findall(r"`([^`\n]+)`", prose(text))


def name(path: Path) -> str:
    return str(path.relative_to(toy.ROOT))


SPANS = code_spans(TEXT)
SHELL = {path: shell_lines(TEXTS[path]) for path in PAGES}
SCRIPTS = {
    "examples/train_joint.sh": "rocketqav2",
    "examples/train_rocketqa.sh": "rocketqa",
    "examples/train_pair.sh": "pair",
    "examples/train_ar2.sh": "ar2",
}


LONG = ("train", "compare", "demo", "serve")
"""Commands that take a while, or go on until they are stopped."""


def commands() -> Iterator[tuple[str, ...]]:
    """Every command of every page, once."""
    yield from dict.fromkeys(tuple(words) for path in PAGES for words in SHELL[path])


def runnable(path: Path) -> list[list[str]]:
    """The commands of a page that finish in no time; test_examples.py trains, tests/serve/ serves."""
    return [words for words in SHELL[path] if words[0] == "rocketqa" and words[1] not in LONG]


def split_redirection(words: Sequence[str]) -> tuple[Sequence[str], str]:
    """A command, and the file that its output goes to."""
    return (words[:-2], words[-1]) if ">" in words else (words, "")


def rocketqa_arguments(words: Sequence[str]) -> Sequence[str] | None:
    """What follows `rocketqa`, also where the script or fleetrun calls it; None for another program."""
    words, _ = split_redirection(words)
    if words[0] == "rocketqa":
        return words[1:]
    if "rocketqa)" in words:  # fleetrun ... $(which rocketqa) ...
        return words[words.index("rocketqa)") + 1 :]
    if words[:3] == ("python", "-m", "rocketqa_paddle"):
        return words[3:]
    for place, word in enumerate(words):
        if word in SCRIPTS and len(words) > place + 1:
            return ("train", SCRIPTS[word], *words[place + 1 :])
    return None


@cache
def parsed(arguments: tuple[str, ...]) -> Callable[[], None]:
    return cli.parse(list(arguments))


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """A folder where the demo seems to have run, with random weights."""
    folder = tmp_path_factory.mktemp("demo")
    for best in sorted(set(re.findall(r"(?:runs|checkpoints)/[\w-]+/best", "".join(TEXTS.values())))):
        toy.write_best(folder / best)
    run = folder / "runs" / "pydocs"
    shutil.copytree(run / "best" / "reranker", run / "round-001" / "reranker")
    (run / "config.yaml").write_text("output: runs/pydocs\ndata: {folder: data/pydocs}\nevaluation: {}\n")
    shutil.copytree(run / "best" / "index", run / "corpus")
    hits = gathered({"q1": [Hit("q1", "p1", 1, 0.5)]}).hits
    write_hits(run / "warm-up" / "hits.train.round-001.npy", ["q1"], 1, [hits])
    for collection in ("pydocs", "xquad-zh"):
        toy.write(folder / "data" / collection)
    asked = [{"id": "q1", "question": "谁 发明了电话？"}]
    squad = {"data": [{"paragraphs": [{"context": "贝尔发明了\n电话。", "qas": asked}]}]}
    (folder / "xquad.zh.json").write_text(json.dumps(squad), encoding="utf-8")
    tokens = toy.tokenizer(folder / "vocabulary")
    reference.write(toy.dual(tokens), folder / "de_models")
    lines = (
        "red dog\t-\tthe red dog .\t-\tthe blue cat .\t0\n",
        "blue cat\t\tthe blue cat .\t\tthe red dog .\t0\n",
    )
    (folder / "dual.train.tsv").write_text("".join(lines))
    (folder / "new.txt").write_text("new-1\tthe red dog\n")
    (folder / "gone.txt").write_text("new-1\n")
    asked = (folder / "data" / "pydocs" / "test.query.txt").read_text().splitlines()
    (folder / "test.qa.csv").write_text("".join(f"{line.split(chr(9))[1]}\t['dog']\n" for line in asked))
    if importlib.util.find_spec("milvus_lite"):
        files = {
            "checkpoint": run / "best" / "retriever",
            "passages": folder / "data" / "pydocs" / "para.txt",
        }
        cli.main(["index", *command_line.words(engine="milvus", uri=folder / "pydocs.db", **files)])
    return folder


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_every_fence_has_a_language_that_a_test_reads(path):
    opening = [line for line in TEXTS[path].splitlines() if line.startswith("```")][::2]
    assert set(opening) <= {"```bash", "```python", "```text"}
    assert path not in OTHERS or "```bash" not in opening, "no test reads the commands of this file"


def test_the_pages_show_what_these_tests_look_for():
    assert fences(TEXTS[README], "python"), "no Python in the README"
    assert [path for path in PAGES if path != README and fences(TEXTS[path], "python")]
    assert [path for path in PAGES if runnable(path)], "no command"


def needed(path: Path) -> None:
    """Skip a page whose extra is not installed."""
    if path.name == "milvus.md":
        pytest.importorskip("milvus_lite", reason="needs the extra milvus")


PYTHON = [path for path in TEXTS if fences(TEXTS[path], "python") and path.name != "serving.md"]
"""The pages with examples; those of clients need a server, see tests/serve/test_clients.py."""


@pytest.mark.parametrize("path", PYTHON, ids=name)
def test_python_runs(path, demo, monkeypatch):
    """Block after block in one namespace, as a reader would paste them."""
    needed(path)
    monkeypatch.chdir(demo)
    namespace: dict = {}
    for number, block in enumerate(fences(TEXTS[path], "python"), 1):
        exec(compile(block, f"{path.name}, Python block {number}", "exec"), namespace)
        check_shapes(block, namespace)


def check_shapes(block: str, namespace: dict) -> None:
    """`name = ...  # [1, 384]`: the array has as many dimensions, and as many rows."""
    for name, shape in re.findall(r"^(\w+) = .*# \[([\d, ]+)\]$", block, flags=re.MULTILINE):
        expected = [int(size) for size in shape.split(",")]
        assert namespace[name].ndim == len(expected), name
        assert namespace[name].shape[0] == expected[0], name


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_parse(words, monkeypatch, tmp_path_factory):
    """From the root, where a reader is. What is neither ours, make, pip nor fleetrun is an error here."""
    monkeypatch.chdir(toy.ROOT)
    arguments = rocketqa_arguments(words)
    if words[0] == "python":
        subprocess.run([sys.executable, *words[1:], "--help"], check=True, stdout=subprocess.DEVNULL)
        return
    if arguments is None:
        assert words[0] in {"make", "pip", "git", "cd", "tensorboard", *SCRIPTS}, (
            f"no test knows {words[0]!r}"
        )
        if words[0] == "make":
            targets = re.findall(r"^([\w-]+):", (toy.ROOT / "Makefile").read_text(), flags=re.MULTILINE)
            assert set(words[1:]) <= set(targets)
        return
    if files := {"FILE", "my.yaml"} & {*arguments}:
        placeholder = tmp_path_factory.mktemp("config") / "FILE.yaml"
        placeholder.write_text("output: out\ndata: {folder: data}\n")
        arguments = tuple(str(placeholder) if word in files else word for word in arguments)
    assert callable(parsed(arguments))
    for word in words:
        if word.startswith(("examples/", "checkpoints/")):
            assert (toy.ROOT / word).exists(), word


@pytest.mark.parametrize("path", filter(runnable, PAGES), ids=name)
def test_commands_run(path, demo, monkeypatch, capsys):
    """On the seeming demo, in the order of the page, for later ones read what the earlier wrote."""
    needed(path)
    monkeypatch.chdir(demo)
    for words in runnable(path):
        command, file = split_redirection(words)
        cli.main(command[1:])
        told = capsys.readouterr().out
        assert told.strip(), words
        if file:
            Path(file).write_text(told)


# Names and links -----------------------------------------------------------------------------------


def headings(path: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", prose(path.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_links_lead_somewhere(path):
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", TEXTS[path]):
        target, _, anchor = link.partition("#")
        page = path.parent / target if target else path
        assert page.exists(), link
        assert not anchor or anchor in headings(page), link


def test_the_readme_links_to_every_page():
    assert {name(path) for path in PAGES[1:]} <= set(re.findall(r"\]\(([^)#]+)", TEXTS[README]))


def test_files_exist_and_every_preset_is_named():
    for path in re.findall(r"`((?:examples|checkpoints|tests|rocketqa_paddle)/[\w./-]*)`", TEXT):
        assert (toy.ROOT / path).exists(), path
    kinds = "|".join({name.partition("-")[0] for name in presets.names()})
    named = {span for span in SPANS if re.fullmatch(rf"(?:{kinds})-[a-z]+", span)}
    assert named | set(re.findall(r"--config ([\w-]+-[a-z]+)", TEXT)) == {*presets.names()}


def test_the_commands_they_speak_of_exist():
    spoken = {word for span in SPANS for word in re.findall(r"^rocketqa (\w+)", span)}
    assert "train" in spoken
    assert spoken - {"COMMAND"} <= {*LONG, *cli.COMMANDS}


def test_the_flags_they_speak_of_exist(capsys):
    for words in [
        *(["train", system] for system in SCRIPTS.values()),
        ["compare"],
        ["demo"],
        *([name] for name in cli.COMMANDS),
    ]:
        with pytest.raises(SystemExit):
            cli.parse([*words, "--help"])
    text = capsys.readouterr().out
    spoken = {flag for span in SPANS for flag in re.findall(r"(?<!\S)--[a-z0-9_-]+(?:\.[\w.]+)?", span)}
    assert len(spoken) > 20
    for flag in spoken:
        assert re.search(rf"{re.escape(flag)}(?![\w.-])", text), flag


def test_nothing_is_left_to_fill_in():
    assert not re.findall(r"\b(?:TODO|FIXME|XXX|[A-Z]+_(?:OUTPUT|TABLE|MEASURE))\b", TEXT)


def test_the_extras_it_names_are_those_of_setup_py():
    setup = (toy.ROOT / "setup.py").read_text(encoding="utf-8")
    extras = set(re.findall(r'^    "([\w-]+)": ', setup, flags=re.MULTILINE))
    table = TEXT[TEXT.index("| extra |") :].split("\n\n")[0]
    named = {name for row in table.splitlines()[2:] for name in re.findall(r"`([\w-]+)`", row.split("|")[1])}
    assert named == extras
