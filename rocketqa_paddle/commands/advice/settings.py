"""The file of settings as a whole."""

from pathlib import Path
from typing import Any

from rocketqa_paddle.commands.advice import choices
from rocketqa_paddle.commands.advice.look import Look, look_at
from rocketqa_paddle.commands.advice.machine import Machine
from rocketqa_paddle.commands.advice.trainings import TRAININGS
from rocketqa_paddle.commands.advice.written import written
from rocketqa_paddle.systems import System

_LEARN_FROM_UNLABELLED = ("rocketqa", "pair")
_FEW = 200  # labelled queries


def settings_for(system: System, folder: str, output: str | None, machine: Machine) -> str:
    """Look at the data in a folder, and return settings for them as a YAML file with comments.

    Raises:
        FileNotFoundError: the folder lacks what training needs.
        FormatError: a file breaks its format.
    """
    one_tower = system.name == "pair"  # it compares passages with passages
    look = look_at(folder, machine, one_tower)
    run = output or f"runs/{Path(folder).resolve().name}"
    pseudo = system.name in _LEARN_FROM_UNLABELLED
    data = choices.data(look, pseudo)
    if look.splits.unlabelled and system.name == "rocketqav2":
        data["unlabelled"] = look.splits.unlabelled
    tree: dict[str, Any] = {
        "output": run,
        **choices.run(look),
        "data": data,
        "retriever": choices.retriever(look, one_tower),
        "reranker": choices.reranker(look),
        **TRAININGS.get(system.name, lambda look: {})(look),
        "evaluation": choices.evaluation(look),
    }
    return written(_head(system, look, pseudo), tree)


def _head(system: System, look: Look, pseudo: bool) -> str:
    dev = look.evaluated[look.splits.dev]
    counts = f"{look.passages:,} passages, {look.labelled:,} labelled training queries, {dev:,} dev queries"
    told = [
        f"{system.title} on {look.folder}, by `rocketqa new` after a look at the data and at {look.machine}.",
        f"There are {counts}"
        + (f" and {look.unlabelled:,} unlabelled queries." if look.splits.unlabelled else "."),
    ]
    if pseudo and not look.splits.unlabelled:
        told.append(
            f"{system.title} learns from unlabelled queries, too: NAME.query.txt, and unlabelled: NAME."
        )
    if look.labelled < _FEW:
        told.append("So few labelled queries adapt a trained encoder by very little: see docs/small-data.md.")
    told.append(f"`rocketqa train {system.name} --config FILE --dry-run` tells what it takes.")
    if look.machine.gpus > 1:
        gpus = ",".join(map(str, range(look.machine.gpus)))
        told.append(f"fleetrun --gpus {gpus} $(which rocketqa) train {system.name} --config FILE")
    return "\n".join(told)
