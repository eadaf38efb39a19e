"""The models of a system, measured on dev, and which of them are the best."""

from rocketqa_paddle import checkpoints
from rocketqa_paddle.evaluation import metrics
from rocketqa_paddle.evaluation.tables import Values, table
from rocketqa_paddle.records import Model
from rocketqa_paddle.runs.artefacts import ModelHandle, StoredRun, TrainedModel
from rocketqa_paddle.runs.best import Best
from rocketqa_paddle.runs.collapse import CollapseCheck
from rocketqa_paddle.runs.searches import Searches
from rocketqa_paddle.runtime import distributed
from rocketqa_paddle.runtime.distributed import say
from rocketqa_paddle.runtime.storage import fingerprint, write_text
from rocketqa_paddle.search.retrieval import CorpusIndex


class Measured:
    """The models of a walk by their kind, in the order in which they were measured.

    The best retriever so far, which may be the initial checkpoint, is always in `best/` with its index.
    `notes` tells what `best/` has and why.
    """

    def __init__(self, walk: Searches) -> None:
        self.walk, self.best = walk, Best(walk.folder, walk.place / "best", walk.settings)
        self.models: dict[Model, list[TrainedModel]] = {kind: [] for kind in Model}
        self.initial: list[ModelHandle] = []
        self.notes: list[str] = []
        self._measures: dict[ModelHandle, dict[str, float]] = {}
        self._collapse = CollapseCheck(walk)

    def add(self, model: ModelHandle, run: StoredRun, index: CorpusIndex | None = None) -> None:
        """Measure a model by its run on dev, and write that into `steps.md`.

        Args:
            model: the model.
            run: what it found for dev, or how it ordered that.
            index: a retriever's index, if the corpus was just encoded.
        """
        if not self.walk.dry:
            self._measure(model, run)
        (self.models[model.kind] if isinstance(model, TrainedModel) else self.initial).append(model)
        if index and self.best_retriever() is model:
            self._keep_best(model, index)
        if not self.walk.dry and distributed.is_main():
            self._write_table()
        if not self.walk.dry:
            self._collapse.check(model, run)

    def _measure(self, model: ModelHandle, run: StoredRun) -> None:
        """Measure a run once, note it in the ledger, the log and the model's card, and tell it."""
        walk, names = self.walk, self.walk.settings.evaluation.measures
        judged = fingerprint([walk.dev.fingerprint, " ".join(names)])
        record = walk.ledger.record(run) if walk.ledger.keeps(run) else {}
        if record.get("judged") != judged or not record.get("measures", {}).keys() >= {*names}:
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

    def best_retriever(self) -> ModelHandle:
        """The retriever that measures best: the initial checkpoint only if no trained one is as good."""
        models = [*self.models[Model.RETRIEVER], *self.initial]
        return models[0] if self.walk.dry else max(models, key=self.value)

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

    def choose(self, system: str) -> dict[Model, ModelHandle]:
        """Make `best/` whole: the best retriever on dev, and the best re-ranker if it surely helps a search.

        The re-ranker is judged on dev as well, at the depth that a search then uses. A gain that may be
        chance is not worth what re-ranking costs, so it has to be significant.
        """
        retriever, reranker = self.best_retriever(), self.best_of(Model.RERANKER)
        if not self.walk.dry:
            say(f"best retriever on dev: {retriever.step}")
            if distributed.any_rank(not self.best.has(retriever)):
                index = self.walk.encode_corpus(retriever, "best: encode the corpus")
                self._keep_best(retriever, index, f"{system} ")
            say(f"best re-ranker on dev: {reranker.step}")
            self._decide_on(reranker, over=retriever, system=system)
        return {Model.RETRIEVER: retriever, Model.RERANKER: reranker}

    def _decide_on(self, reranker: TrainedModel, over: ModelHandle, system: str) -> None:
        """Take a re-ranker into `best/` if a search is significantly better with it than without."""
        walk, s = self.walk, self.walk.settings.evaluation
        found = walk.search(over, walk.dev, s.depth)
        alone, reranked = (walk.measure(run)[s.measures[0]] for run in (found, walk.rerank(reranker, found)))
        difference = metrics.compare(reranked, alone)
        figures = (
            f"on {walk.dev.name}, {s.measures[0]} is {reranked.mean():.3f} when it orders the "
            f"{s.rerank_depth} best passages of the retriever of {over.step}, and {alone.mean():.3f} "
            f"without it (p = {difference.p_value:.2g})"
        )
        if better := difference.difference > 0 and difference.significant:
            self.notes = [f"best/ has the re-ranker of {reranker.step}: {figures}."]
            if distributed.any_rank(not self.best.has(reranker)):
                self._keep_best(reranker, None, f"{system} ")
        else:
            self.notes = [f"best/ leaves out the re-ranker of {reranker.step}: {figures}."]
            self.best.discard_others([over])
        self.best.rerank_to(s.rerank_depth if better else 0)
        say(self.notes[0])

    def _keep_best(self, model: ModelHandle, index: CorpusIndex | None, system: str = "") -> None:
        measure = self.walk.settings.evaluation.measures[0]
        why = f"{system}step {model.step}, by {measure} on {self.walk.dev.name}."
        trained = isinstance(model, TrainedModel)
        known = self.walk.ledger.record(model)["digest"] if trained else index and index.digest
        digest = known or model.value().digest()
        self.best.keep(model, why, digest, index)
