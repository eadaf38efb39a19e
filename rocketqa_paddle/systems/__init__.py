"""The registry: one record a published system. A new paper is one folder and one record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from rocketqa_paddle.settings import RunSettings
from rocketqa_paddle.systems.ar2.settings import AR2Settings
from rocketqa_paddle.systems.pair.settings import PairSettings
from rocketqa_paddle.systems.rocketqa.settings import RocketQASettings
from rocketqa_paddle.systems.rocketqav2.settings import RocketQAv2Settings

if TYPE_CHECKING:
    from rocketqa_paddle.runs.run import Run


@dataclass(frozen=True)
class System:
    """A published system.

    Args:
        name: on the command line.
        title: in reports and tables.
        description: one sentence on what it does.
        settings: everything that it reads.
        train: the whole system as a function of a run and its settings; see `docs/extending.md`.
    """

    name: str
    title: str
    description: str
    settings: type[RunSettings]
    train: Callable[[Run, Any], None]

    def having(self, settings: RunSettings) -> Callable[[Run], None]:
        """The system with its settings, as a function of a run alone."""
        return lambda run: self.train(run, settings)


def _system(name: str, title: str, description: str, settings: type[RunSettings]) -> System:
    """A system of a folder beside this file, whose `run.py` is imported, and Paddle with it, to train."""

    def train(run: Run, settings: Any) -> None:
        import_module(f"{__name__}.{name}.run").train(run, settings)

    return System(name, title, description, settings, train)


_ROCKETQA = "Cross-batch negatives, denoised hard negatives, data augmentation."
_PAIR = "Passage-centric similarity, pre-trained on pseudo labels."
_ROCKETQAV2 = "Retriever and re-ranker trained jointly by dynamic listwise distillation."
_AR2 = "Retriever and re-ranker trained as adversaries, in turns."
SYSTEMS: dict[str, System] = {
    "rocketqa": _system("rocketqa", "RocketQA", _ROCKETQA, RocketQASettings),
    "pair": _system("pair", "PAIR", _PAIR, PairSettings),
    "rocketqav2": _system("rocketqav2", "RocketQAv2", _ROCKETQAV2, RocketQAv2Settings),
    "ar2": _system("ar2", "AR2", _AR2, AR2Settings),
}
"""Every system, by its name on the command line."""
