"""A walk through a system: the first computes nothing, the second makes what the run folder does not have."""

from pathlib import Path
from tempfile import TemporaryDirectory

from rocketqa_paddle.data import dataset
from rocketqa_paddle.evaluation import metrics
from rocketqa_paddle.runs.folder import CORPUS, VOCABULARY
from rocketqa_paddle.runs.initials import Initials
from rocketqa_paddle.runs.ledger import Ledger
from rocketqa_paddle.runs.plan import Plan
from rocketqa_paddle.runs.selection import ALL, Selection
from rocketqa_paddle.runtime import distributed
from rocketqa_paddle.settings import RunSettings
from rocketqa_paddle.training import events
from rocketqa_paddle.training.log import LOG, MetricsLog

FEWEST_DEV = 30
"""Queries of dev that can tell a weak model from chance."""


class Walk:
    """What every step of a walk needs: settings, data, what the run folder has, and the plan.

    A `dry` walk comes first. The corpus is read into `corpus/` of the run folder, or where the settings say;
    with `dry_run`, nothing is written there. `row` is a folder inside of the run folder, for a system that
    shares it with others.

    Raises:
        ValueError: the data do not hold together, or a measure is unknown.
    """

    def __init__(self, settings: RunSettings, dry_run: bool = False) -> None:
        self.settings, self.folder, self.row = settings, Path(settings.output), ""
        measures, depth = metrics.parse_measures(settings.evaluation.measures), settings.evaluation.depth
        data = dataset.load(settings.data, self._corpus_folder(dry_run))
        self.corpus, self.labelled, self.unlabelled = data.corpus, data.labelled, data.unlabelled
        self.evaluated, self.dev = data.evaluated, data.evaluated[settings.data.dev]
        if clash := [name for name in self.evaluated if name.startswith("train.")]:
            raise ValueError(
                f"a split must not be called {clash[0]!r}, as a set of training queries: rename it"
            )
        self.tests = [self.evaluated[name] for name in settings.data.tests or [settings.data.dev]]
        deeper = [m for m in measures if (m.params.get("cutoff") or 0) > depth]
        told = f"is measured on {depth} passages a query, for evaluation.depth is {depth}"
        self.notes = [*data.notes, *(f"{measure} {told}" for measure in deeper)]
        if settings.data.train in settings.data.tests:
            self.notes.append(
                f"data.tests has {settings.data.train}, whose queries the models are trained on"
            )
        if (dev := len(self.dev)) < FEWEST_DEV:
            told = "too few to tell a model that has learned nothing from one that has learned little"
            self.notes.append(f"{settings.data.dev} has {dev} queries: {told}")
        self.initials = Initials(settings, self.corpus, self.folder / VOCABULARY / self.corpus.fingerprint)
        self.begin(ALL, dry=True)

    def _corpus_folder(self, dry_run: bool) -> Path:
        """The folder of the corpus; a temporary one if nothing is to be written and it is not there yet."""
        folder = Path(self.settings.data.store or self.folder / CORPUS)
        if not dry_run or distributed.any_rank(folder.is_dir()):
            return folder
        self._temporary = TemporaryDirectory(prefix="rocketqa-")
        return Path(distributed.gather(self._temporary.name)[0]) / CORPUS

    def begin(self, selection: Selection, *, dry: bool) -> None:
        """Begin a walk. The second one makes what the first has noted in the plan."""
        self.selection, self.dry = selection, dry
        if dry:
            self.ledger = Ledger(self.folder)
            self.plan = Plan(self.ledger)

    @property
    def place(self) -> Path:
        """Where the reports and `best/` of the system go."""
        return self.folder / self.row

    def open_log(self) -> None:
        """Open the log of losses and measures of the system, and the event files that the settings ask for.

        Raises:
            ValueError: the folder of the event files holds something that we did not write.
        """
        self.log, viewer = MetricsLog(self.place / LOG), self.settings.log
        if viewer == "none":
            return
        folder = self.place / viewer
        if self.dry:
            events.CONTENTS.check(folder)
        else:
            self.log.mirror(events.EventFiles(folder, viewer))

    def step(self, name: str) -> str:
        """The full name of a step."""
        return f"{self.row}/{name}" if self.row else name

    def owns(self, step: str) -> bool:
        """Whether a step, by its full name, belongs to this system and to no other."""
        return step.startswith(self.step(""))
