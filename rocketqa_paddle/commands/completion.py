"""The command `rocketqa completion`: what a shell needs to complete commands, flags and values."""

import importlib.util
from typing import Literal

from rocketqa_paddle.commands.flags import Parser


def completion(parser: Parser, shell: Literal["bash", "zsh"]) -> None:
    """Print a script that lets your shell complete commands, flags and their values.

    `eval "$(rocketqa completion bash)"` in ~/.bashrc loads it, and the same with zsh in ~/.zshrc.

    Args:
        parser: of all commands, with the flags of each
        shell: whose script to print

    Raises:
        ImportError: the package shtab is not installed.
    """
    if importlib.util.find_spec("shtab") is None:
        raise ImportError("completion needs the package shtab: pip install 'rocketqa_paddle[completion]'")
    print(parser.get_completion_script(f"shtab-{shell}"))
