"""What the README shows works: its Python runs, its commands parse, its files exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import toy

from rocketqa_paddle.checkpoints.formats import reference
from rocketqa_paddle.commands import cli

README = toy.ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")
OTHERS = [toy.ROOT / "CONTRIBUTING.md", toy.ROOT / "checkpoints" / "README.md"]


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


PYTHON = fences(TEXT, "python")
SHELL = shell_lines(TEXT)
SCRIPTS = {
    "examples/train_joint.sh": "rocketqav2",
    "examples/train_rocketqa.sh": "rocketqa",
    "examples/train_pair.sh": "pair",
    "examples/train_ar2.sh": "ar2",
}


def rocketqa_arguments(words: list[str]) -> list[str] | None:
    """What follows `rocketqa`, also where the script or fleetrun calls it; None for another program."""
    if words[0] == "rocketqa":
        return words[1:]
    if "rocketqa)" in words:  # fleetrun ... $(which rocketqa) ...
        return words[words.index("rocketqa)") + 1 :]
    if words[:3] == ["python", "-m", "rocketqa_paddle"]:
        return words[3:]
    for place, word in enumerate(words):
        if word in SCRIPTS and len(words) > place + 1:
            return ["train", SCRIPTS[word], *words[place + 1 :]]
    return None


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """A folder where the demo seems to have run, with random weights."""
    folder = tmp_path_factory.mktemp("demo")
    texts = [TEXT, *(path.read_text(encoding="utf-8") for path in OTHERS)]
    for best in sorted(set(re.findall(r"(?:runs|checkpoints)/[\w-]+/best", "".join(texts)))):
        toy.write_best(folder / best)
    toy.write(folder / "data" / "pydocs")
    tokens = toy.tokenizer(folder / "vocabulary")
    reference.write(toy.dual(tokens), folder / "de_models")
    lines = (
        "red dog\t-\tthe red dog .\t-\tthe blue cat .\t0\n",
        "blue cat\t\tthe blue cat .\t\tthe red dog .\t0\n",
    )
    (folder / "dual.train.tsv").write_text("".join(lines))
    return folder


def test_every_fence_has_a_language_that_a_test_reads():
    opening = [line for line in TEXT.splitlines() if line.startswith("```")][::2]
    assert opening, "no code in the README"
    assert set(opening) <= {"```bash", "```python", "```yaml", "```text", "```"}
    assert PYTHON, "no Python in the README"
    assert [words for words in SHELL if words[0] == "rocketqa"], "no command in the README"


@pytest.mark.parametrize("path", [README, *OTHERS], ids=lambda path: str(path.relative_to(toy.ROOT)))
def test_python_runs(path, demo, monkeypatch):
    """Block after block in one namespace, as a reader would paste them."""
    monkeypatch.chdir(demo)
    namespace: dict = {}
    for number, block in enumerate(fences(path.read_text(encoding="utf-8"), "python"), 1):
        exec(compile(block, f"{path.name}, Python block {number}", "exec"), namespace)
        check_shapes(block, namespace)


def check_shapes(block: str, namespace: dict) -> None:
    """`name = ...  # [1, 384]`: the array has as many dimensions, and as many rows."""
    for name, shape in re.findall(r"^(\w+) = .*# \[([\d, ]+)\]$", block, flags=re.MULTILINE):
        expected = [int(size) for size in shape.split(",")]
        assert namespace[name].ndim == len(expected), name
        assert namespace[name].shape[0] == expected[0], name


@pytest.mark.parametrize("words", SHELL, ids=" ".join)
def test_commands_parse(words, monkeypatch, tmp_path):
    """From the root, where a reader is. What is neither ours, make, pip nor fleetrun is an error here."""
    monkeypatch.chdir(toy.ROOT)
    arguments = rocketqa_arguments(words)
    if arguments is None:
        assert words[0] in {"make", "pip", "git", "cd", *SCRIPTS}, f"no test knows {words[0]!r}"
        if words[0] == "make":
            targets = re.findall(r"^([\w-]+):", (toy.ROOT / "Makefile").read_text(), flags=re.MULTILINE)
            assert set(words[1:]) <= set(targets)
        return
    placeholder = tmp_path / "FILE.yaml"
    placeholder.write_text("output: out\ndata: {folder: data}\n")
    arguments = [str(placeholder) if word == "FILE" else word for word in arguments]
    assert callable(cli.parse(arguments))
    for word in words:
        if word.startswith(("examples/", "checkpoints/")):
            assert (toy.ROOT / word).exists(), word


def test_commands_run(demo, monkeypatch, capsys):
    """On the seeming demo, in the README's order, for later ones read what the earlier wrote."""
    monkeypatch.chdir(demo)
    for words in SHELL:
        if words[0] == "rocketqa" and words[1] not in ("train", "compare"):  # test_examples.py trains
            cli.main(words[1:])
            assert capsys.readouterr().out.strip(), words


def test_links_and_files_exist():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT)
    names = re.findall(r"`((?:examples|checkpoints|tests|rocketqa_paddle)/[\w./-]*)`", TEXT)
    configs = [
        f"examples/configs/{name}"
        for name in re.findall(r"`((?:rocketqav2|rocketqa|pair|ar2|compare)-[\w-]+\.yaml)`", TEXT)
    ]
    for name in [*links, *names, *configs]:
        assert (toy.ROOT / name).exists(), name
    assert {f"examples/configs/{path.name}" for path in (toy.ROOT / "examples/configs").glob("*")} == set(
        configs
    )


def test_the_commands_it_speaks_of_exist():
    spoken = set(re.findall(r"`rocketqa (\w+)", TEXT)) - {"COMMAND"}
    assert spoken <= {"train", "compare", *cli.COMMANDS}


def test_the_flags_it_speaks_of_exist(capsys):
    for words in [
        *(["train", system] for system in SCRIPTS.values()),
        ["compare"],
        *([name] for name in cli.COMMANDS),
    ]:
        with pytest.raises(SystemExit):
            cli.parse([*words, "--help"])
    text = capsys.readouterr().out
    for flag in re.findall(r"`(--[a-z0-9_-]+(?:\.[\w.]+)?)", TEXT):
        assert re.search(rf"{re.escape(flag)}(?![\w.-])", text), flag


def test_nothing_is_left_to_fill_in():
    assert not re.findall(r"\b(?:TODO|FIXME|XXX|[A-Z]+_(?:OUTPUT|TABLE|MEASURE))\b", TEXT)


def test_the_extras_it_names_are_those_of_setup_py():
    setup = (toy.ROOT / "setup.py").read_text(encoding="utf-8")
    extras = set(re.findall(r'^    "([\w-]+)": ', setup, flags=re.MULTILINE))
    table = TEXT[TEXT.index("| extra |") :].split("\n\n")[0]
    named = {name for row in table.splitlines()[2:] for name in re.findall(r"`([\w-]+)`", row.split("|")[1])}
    assert named == extras
