"""A walk through a system: the first computes nothing, the second makes what the run folder does not have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rocketqa_paddle.data.dataset import Corpus, QuerySet
from rocketqa_paddle.runs.initials import Initials
from rocketqa_paddle.runs.ledger import Ledger
from rocketqa_paddle.runs.plan import Plan
from rocketqa_paddle.runs.selection import Selection
from rocketqa_paddle.settings import RunSettings
from rocketqa_paddle.training.log import MetricsLog


@dataclass
class Walk:
    """What every step of a walk needs. The first walk is dry.

    `evaluated` has dev and tests by name; `row` is a folder inside of the run folder, for a system that
    shares it with others.
    """

    settings: RunSettings
    corpus: Corpus
    evaluated: Mapping[str, QuerySet]
    initials: Initials
    ledger: Ledger
    plan: Plan
    selection: Selection
    dry: bool
    row: str = ""

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.ledger.folder

    @property
    def place(self) -> Path:
        """Where the reports and `best/` of the system go."""
        return self.folder / self.row

    @cached_property
    def log(self) -> MetricsLog:
        """Losses and measures of the system."""
        return MetricsLog(self.place / "metrics.jsonl")

    def step(self, name: str) -> str:
        """The full name of a step."""
        return f"{self.row}/{name}" if self.row else name
