"""`rocketqa completion`: what bash offers at the end of a line."""

from __future__ import annotations

import subprocess
import sys

import pytest
from command_line import run

pytest.importorskip("shtab", reason="needs the extra completion")

OFFER = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_shtab_rocketqa rocketqa "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
echo "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def offered(tmp_path_factory):
    """The words that bash offers for the last word of a line."""
    folder = tmp_path_factory.mktemp("completion")
    with (folder / "script").open("w") as file:
        command = [sys.executable, "-m", "rocketqa_paddle", "completion", "bash"]
        subprocess.run(command, stdout=file, check=True)
    (folder / "offer").write_text(OFFER)
    (folder / "mine.yaml").touch()

    def offer(*line: str) -> set[str]:
        command = ["bash", "offer", "./script", "rocketqa", *line]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        return {*done.stdout.split()}

    return offer


@pytest.mark.parametrize(
    "line, expected",
    [
        (["pre"], {"presets"}),
        (["train", "rocketqa"], {"rocketqa", "rocketqav2"}),
        (["train", "ar2", "--adversarial.ro"], {"--adversarial.rounds"}),
        (["train", "ar2", "--retriever.pooling", ""], {"cls", "mean"}),
        (["train", "ar2", "--config", "mi"], {"mine.yaml"}),
        (["demo", "--data-"], {"--data-only"}),
        (["new", "pa"], {"pair"}),
    ],
)
def test_bash_completes_commands_flags_and_values(offered, line, expected):
    assert expected <= offered(*line)


def test_zsh_has_a_script_as_well(capsys):
    run("completion", "zsh")
    assert capsys.readouterr().out.startswith("#compdef rocketqa\n")


def test_without_the_package_it_says_what_to_install(fails, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert "pip install 'rocketqa_paddle[completion]'" in fails("completion", "bash")
