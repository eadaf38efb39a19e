"""The models of a system, measured on dev, and which of them are the best."""

from rocketqa_paddle import checkpoints
from rocketqa_paddle.evaluation import metrics
from rocketqa_paddle.evaluation.tables import Values, table
from rocketqa_paddle.records import Model
from rocketqa_paddle.runs.artefacts import ModelHandle, StoredRun, TrainedModel
from rocketqa_paddle.runs.best import Best
from rocketqa_paddle.runs.searches import Searches
from rocketqa_paddle.runtime import distributed
from rocketqa_paddle.runtime.distributed import say
from rocketqa_paddle.runtime.storage import fingerprint, write_text
from rocketqa_paddle.search.retrieval import CorpusIndex


class Measured:
    """The models of a walk by their kind, in the order in which they were measured.

    The best retriever so far is always in `best/`, with its index.
    """

    def __init__(self, walk: Searches) -> None:
        self.walk, self.best = walk, Best(walk.folder, walk.place / "best")
        self.models: dict[Model, list[TrainedModel]] = {kind: [] for kind in Model}
        self._measures: dict[ModelHandle, dict[str, float]] = {}

    def add(self, model: ModelHandle, run: StoredRun, index: CorpusIndex | None = None) -> None:
        """Measure a model by its run on dev, and write that into `steps.md`.

        Args:
            model: the model; an initial checkpoint is never among the best.
            run: what it found for dev, or how it ordered that.
            index: a retriever's index, if the corpus was just encoded.
        """
        if not self.walk.dry:
            self._measure(model, run)
        if isinstance(model, TrainedModel):
            others = self.models[model.kind]
            if index and all(self.value(model) > self.value(other) for other in others):
                self._keep_best(model, index)
            others.append(model)
        if not self.walk.dry and distributed.is_main():
            self._write_table()

    def _measure(self, model: ModelHandle, run: StoredRun) -> None:
        """Measure a run once, note it in the ledger, the log and the model's card, and tell it."""
        walk, names = self.walk, self.walk.settings.evaluation.measures
        judged = fingerprint([walk.dev.fingerprint, " ".join(names)])
        if not walk.ledger.keeps(run) or walk.ledger.record(run).get("judged") != judged:
            means = {name: float(values.mean()) for name, values in walk.measure(run).items()}
            told = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
            logged = {f"dev/{model.kind.value}/{name}": value for name, value in means.items()}
            walk.log.forget(model.step, logged.keys())
            walk.log.write(stage=model.step, **logged)
            say(f"{model.step}: {model.kind.title} on dev: {told}")
            if isinstance(model, TrainedModel) and distributed.is_main():
                checkpoints.set_in_card(walk.folder / model.place, f"On {walk.dev.name}:", f"{told}.")
            walk.ledger.note(run, judged=judged, measures=means)
        self._measures[model] = walk.ledger.record(run)["measures"]

    def means(self, model: ModelHandle) -> Values:
        """The means of every measure, as a table takes them."""
        return {name: metrics.single(mean) for name, mean in self._measures[model].items()}

    def value(self, model: ModelHandle) -> float:
        """The measure that chooses."""
        return self._measures[model][self.walk.settings.evaluation.measures[0]]

    def best_of(self, kind: Model) -> TrainedModel:
        """The model that measures best; of equal ones the first, and in a dry walk the first of all."""
        return self.models[kind][0] if self.walk.dry else max(self.models[kind], key=self.value)

    def _write_table(self) -> None:
        """Write the measures of every model so far, in the order of the steps."""
        walk, order = self.walk, list(self.walk.plan.steps)
        models = sorted(
            self._measures, key=lambda model: (order.index(model.step), model.kind is Model.RERANKER)
        )
        rows = {f"{model.kind.title}, {model.title}": self.means(model) for model in models}
        title = f"**{walk.dev.name}** after every step, {len(walk.dev)} queries"
        walk.place.mkdir(parents=True, exist_ok=True)
        write_text(walk.place / "steps.md", table(title, rows, walk.settings.evaluation.measures) + "\n")

    def choose(self, system: str) -> dict[Model, TrainedModel]:
        """Make `best/` whole, from the best models."""
        best = {kind: self.best_of(kind) for kind in Model}
        for model in best.values() if not self.walk.dry else ():
            say(f"best {model.kind.title} on dev: {model.step}")
            if distributed.any_rank(not self.best.has(model)):
                encode = self.walk.encode_corpus
                index = encode(model, "best: encode the corpus") if model.kind is Model.RETRIEVER else None
                self._keep_best(model, index, f"{system} ")
        return best

    def _keep_best(self, model: TrainedModel, index: CorpusIndex | None, system: str = "") -> None:
        measure = self.walk.settings.evaluation.measures[0]
        why = f"{system}step {model.step}, by {measure} on {self.walk.dev.name}."
        self.best.keep(model, why, index, self.walk.ledger.record(model)["digest"])
