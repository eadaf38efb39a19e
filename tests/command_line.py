"""Command lines in this process, as a user types them."""

from __future__ import annotations

import toy

from rocketqa_paddle.commands import cli

COLLECTION = toy.collection()


def run(*words) -> None:
    """Run a command."""
    cli.main([str(word) for word in words])


def words(**flags) -> list[str]:
    """Return `--name value` for every flag."""
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def train(data, output, **flags) -> list[str]:
    """Return the command line of a very short run of RocketQAv2."""
    return ["train", "rocketqav2", *toy.flags(**{"data.folder": data, "output": output} | flags)]
