"""RocketQAv2: retriever and re-ranker trained jointly by dynamic listwise distillation.

Ren et al., EMNLP 2021. Warm up each model; then, in rounds: retrieve with the current retriever,
build hybrid groups, take joint steps, evaluate on dev, save; the best models on dev are the result.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from paddle import Tensor

from rocketqa_paddle import contrastive, distributed, formats, losses, report, retrieval
from rocketqa_paddle.checkpoints import Checkpoint
from rocketqa_paddle.config import RocketQAv2Settings
from rocketqa_paddle.mining import Calibration, Miner
from rocketqa_paddle.pipeline import Pipeline, with_positives
from rocketqa_paddle.records import Group, Query, Run, Split
from rocketqa_paddle.report import Row
from rocketqa_paddle.scoring import reranker_scores, retriever_scores
from rocketqa_paddle.trainer import Loss

START, WARMUP = "start", "warm-up"
_CALIBRATION_SCORES = 100_000  # more would not change the fit


def train(settings: RocketQAv2Settings) -> None:
    """Run the whole system in `settings.output`, or go on where it was stopped."""
    JointRun(settings).train()


class JointRun(Pipeline):
    """One run of RocketQAv2."""

    settings: RocketQAv2Settings

    def __init__(self, settings: RocketQAv2Settings) -> None:
        super().__init__(settings)
        self.rounds = [f"round-{number:03d}" for number in range(1, settings.joint.rounds + 1)]
        self._plan_queries()
        negatives = max(settings.warmup_reranker.negatives, settings.joint.groups.negatives)
        if negatives >= len(self.passages):
            raise ValueError(
                f"{negatives} negatives a group, but the corpus has only {len(self.passages)} passages"
            )
        if lists := settings.joint.groups.file:
            formats.read_training_groups(lists)  # raises now, not after hours, if it cannot be read

    def _plan_queries(self) -> None:
        """Deal out the training queries: each use takes the next ones, from the start again at the end."""
        s, dealt = self.settings, 0
        self.queries: dict[str, Mapping[str, Query]] = {}
        uses = {"retriever": s.warmup_retriever.queries, "reranker": s.warmup_reranker.queries}
        for use, count in {**uses, **dict.fromkeys(self.rounds, s.joint.queries)}.items():
            self.queries[use] = self.draw_queries(dealt, count)
            dealt += len(self.queries[use])

    def train(self) -> None:
        """Every stage in turn, then the report."""
        retriever, reranker = self.start_retriever(), self.start_reranker()
        if self.settings.evaluation.start:
            self.search(START, retriever, {}, depth=0, keep_best=False)
        retriever = self.warm_up_retriever(retriever)
        self._search(WARMUP, retriever, following=["reranker", *self.rounds[:1]])
        reranker = self.warm_up_reranker(reranker)
        self.rerank_dev(WARMUP, reranker, candidates=WARMUP)
        for before, stage, after in zip(
            [WARMUP, *self.rounds], self.rounds, [*self.rounds[1:], None], strict=False
        ):
            retriever, reranker = self.train_round(before, stage, retriever, reranker)
            self._search(stage, retriever, following=[after] if after else [])
            self.rerank_dev(stage, reranker, candidates=WARMUP)
        best = self.save_best()
        self.report(best)

    def _search(self, stage: str, retriever: Checkpoint, following: Sequence[str]) -> None:
        """Search for the evaluation and for the training that follows."""
        groups, unlabelled = self.settings.joint.groups, self.settings.data.unlabelled
        mined = [use for use in following if use not in self.rounds or not groups.file]
        more = {f"train.{use}": self.queries[use] for use in mined}
        if "pseudo" in groups.sources and set(mined) & set(self.rounds):
            more["unlabelled"] = self.collection.splits[unlabelled].queries
        self.search(stage, retriever, more, groups.depth)

    # Stages -------------------------------------------------------------------------------------

    def warm_up_retriever(self, retriever: Checkpoint) -> Checkpoint:
        """In-batch training on labelled positives."""

        def groups() -> list[Group]:
            miner = Miner(self.passages, self.train_split.qrels, 0, self.settings.seed)
            return list(miner.undenoised(self.queries["retriever"].values(), {}))

        return self._warm_up("retriever", retriever, groups, contrastive.in_batch(retriever))

    def warm_up_reranker(self, reranker: Checkpoint) -> Checkpoint:
        """Listwise training on the warmed-up retriever's candidates."""

        def groups() -> list[Group]:
            miner = Miner(
                self.passages,
                self.train_split.qrels,
                self.settings.warmup_reranker.negatives,
                self.settings.seed,
            )
            candidates = self.hits(WARMUP, "train.reranker")
            easy = self.settings.warmup_reranker.easy_negatives
            return list(miner.undenoised(self.queries["reranker"].values(), candidates, easy=easy))

        def loss(batch: Sequence[Group]) -> dict[str, Tensor]:
            return {"loss": losses.listwise_cross_entropy(reranker_scores(reranker, batch))}

        return self._warm_up("reranker", reranker, groups, loss)

    def _warm_up(
        self, name: str, model: Checkpoint, groups: Callable[[], list[Group]], loss: Loss
    ) -> Checkpoint:
        if not self.queries[name]:
            self.say(f"{WARMUP}: the {name} starts as it is")
            self.save(model, self.folder / WARMUP / name, "Start weights, not trained.")
            return model
        settings = getattr(self.settings, f"warmup_{name}")
        return self.trained(WARMUP, {name: model}, groups, loss, settings)[name]

    def train_round(
        self, before: str, stage: str, retriever: Checkpoint, reranker: Checkpoint
    ) -> tuple[Checkpoint, Checkpoint]:
        """Build groups from the candidates that the stage before left, and train both models on them."""
        settings = self.settings.joint

        def loss(batch: Sequence[Group]) -> dict[str, Tensor]:
            return losses.joint_distillation(
                retriever_scores(retriever, batch),
                reranker_scores(reranker, batch),
                **vars(settings.distillation),
            )

        models = self.trained(
            stage,
            {"retriever": retriever, "reranker": reranker},
            lambda: self.hybrid_groups(before, stage, reranker),
            loss,
            settings,
            rates={"retriever": settings.retriever_rate},
        )
        return models["retriever"], models["reranker"]

    def hybrid_groups(self, before: str, stage: str, reranker: Checkpoint) -> list[Group]:
        """Undenoised, denoised and pseudo-labelled groups, as the settings ask (section 3.3)."""
        s, queries = self.settings.joint.groups, self.queries[stage]
        if s.file:
            return self._read_groups(s.file, s.file_list_size or s.negatives + 1, s.negatives + 1)
        candidates = self.hits(before, f"train.{stage}")
        miner = Miner(
            self.passages, self.train_split.qrels, s.negatives, self.settings.seed + self.rounds.index(stage)
        )
        groups: list[Group] = []
        if {"denoised", "pseudo"} & set(s.sources):
            scored = self._score_candidates(stage, "train", reranker, candidates, queries, self.train_split)
            miner.calibration = self._calibrate(scored)
        trusted = miner.calibration.slope > 0
        if not trusted:
            self.say(
                f"{stage}: the re-ranker scores other candidates above labelled positives: nothing denoised"
            )
        if "random" in s.sources or not trusted:
            groups += miner.undenoised(queries.values(), candidates, skip=s.skip)
        if "denoised" in s.sources and trusted:
            groups += miner.denoised(queries.values(), scored, below=s.negative_below)
        if "pseudo" in s.sources and trusted:
            groups += self._pseudo_groups(before, stage, miner, reranker)
        self.say(f"{stage}: {miner.report}")
        return groups

    def _read_groups(self, path: str, list_size: int, size: int) -> list[Group]:
        """The lists of a file, cut to `size` passages."""
        groups, short = [], 0
        for group in formats.read_training_groups(path, list_size=list_size):
            if len(group.passages) < size:
                short += 1
            else:
                groups.append(replace(group, passages=group.passages[:size], labels=group.labels[:size]))
        self.say(f"{path}: {len(groups)} lists of {size} passages; {short} shorter ones left out")
        return groups

    def _pseudo_groups(self, before: str, stage: str, miner: Miner, reranker: Checkpoint) -> list[Group]:
        s, split = self.settings.joint.groups, self.collection.splits[self.settings.data.unlabelled]
        candidates = self.hits(before, "unlabelled")
        scored = self._score_candidates(stage, "unlabelled", reranker, candidates, split.queries, split)
        unlabelled = miner.for_queries_of(split)
        return list(
            unlabelled.pseudo(split.queries.values(), scored, below=s.negative_below, above=s.positive_above)
        )

    def _score_candidates(
        self,
        stage: str,
        name: str,
        reranker: Checkpoint,
        candidates: Run,
        queries: Mapping[str, Query],
        split: Split,
    ) -> Run:
        """The current re-ranker's scores of all candidates and labelled positives."""
        path = self.folder / stage / f"scored.{name}.tsv"
        if limit := self.settings.joint.groups.scored:
            candidates = _thin_out(candidates, limit, self.settings.seed)
        run = with_positives(candidates, split, queries)
        depth = max(map(len, run.values()))
        return self.rerank(path, reranker, run, queries, depth, f"{stage}: score candidates")

    def _calibrate(self, scored: Run) -> Calibration:
        """Fit the re-ranker's probabilities to the labelled positives and the other candidates."""
        labels = self.train_split.qrels
        scores = [
            (hit.score, labels[hit.query_id].get(hit.passage_id, 0) > 0)
            for hits in scored.values()
            for hit in hits
        ]
        if len(scores) > _CALIBRATION_SCORES:
            scores = random.Random(self.settings.seed).sample(scores, _CALIBRATION_SCORES)
        return Calibration.fit(
            [score for score, positive in scores if positive],
            [score for score, positive in scores if not positive],
        )

    # Results ------------------------------------------------------------------------------------

    def save_best(self) -> dict[str, str]:
        """Complete `best/`, where the search kept the retriever; returns each model's best stage on dev."""
        stages = [WARMUP, *self.rounds]
        best = {
            "retriever": self.best_stage(stages, lambda stage: self.hits_path(stage, self.settings.data.dev)),
            "reranker": self.best_stage(stages, lambda stage: self.folder / stage / "reranked.dev.tsv"),
        }
        for name, stage in best.items():
            self.say(f"best {name} on dev: {stage}")
        reranker = self.load(self.folder / best["reranker"] / "reranker", "reranker")
        card = f"RocketQAv2, {best['reranker']}, chosen by {self.measure} on dev."
        self.save(reranker, self.folder / "best" / "reranker", card)
        if distributed.is_main():
            shutil.rmtree(self.folder / "last", ignore_errors=True)
        return best

    def report(self, best: Mapping[str, str]) -> None:
        """Measure every stage on the tests; write `report.md` and `curves.png`, and print the tables."""
        tables = [
            self._report_split(split, best) for split in self.settings.data.tests or [self.settings.data.dev]
        ]
        text = "\n\n".join(tables)
        if distributed.is_main():
            (self.folder / "report.md").write_text(text + "\n", encoding="utf-8")
            try:
                report.plot_curves(self.log.read(), self.folder / "curves.png")
            except ImportError:
                self.say("curves.png is left out: it needs matplotlib (pip install matplotlib)")
        self.say(f"\n{text}\n")

    def _report_split(self, name: str, best: Mapping[str, str]) -> str:
        split, s = self.split(name), self.settings.evaluation
        stages = {
            **({"start weights": START} if s.start else {}),
            **{_title("retriever", stage): stage for stage in [WARMUP, *self.rounds]},
        }
        rows = {title: Row(title, self.hits(stage, name)) for title, stage in stages.items()}
        if s.bm25:
            rows = {"BM25": Row("BM25", retrieval.bm25(self.passages, split.queries, s.depth)), **rows}
        for stage in dict.fromkeys([WARMUP, best["reranker"], *self.rounds[-1:]]):
            title = _title("re-ranker", stage)
            rows[title] = Row(title, self._rerank_test(name, stage, best))
        title = f"**{name}**: {len(split.queries)} queries over {len(self.passages)} passages"
        lines = [report.table(title, list(rows.values()), split.qrels, s.measures)]
        lines.append(
            f"The re-rankers order the {s.rerank_depth} best of the retriever of {best['retriever']}."
        )
        for model in ("retriever", "re-ranker"):
            stage = best[model.replace("-", "")]
            if stage == WARMUP:
                lines.append(f"No round gave a better {model} on dev than the warm-up.")
            for trained in self.rounds[-1:] if stage == WARMUP else [stage]:
                ours, baseline = rows[_title(model, trained)], rows[_title(model, WARMUP)]
                lines.append(report.significance(ours, baseline, split.qrels, self.measure))
        return "\n\n".join(lines)

    def _rerank_test(self, name: str, stage: str, best: Mapping[str, str]) -> Run:
        path = self.folder / "best" / f"{stage}.reranked.{name}.tsv"
        if path.is_file():
            return formats.read_run(path)
        reranker = self.load(self.folder / stage / "reranker", "reranker")
        depth, queries = self.settings.evaluation.rerank_depth, self.split(name).queries
        return self.rerank(
            path, reranker, self.hits(best["retriever"], name), queries, depth, f"re-rank {name}"
        )


def _title(model: str, stage: str) -> str:
    return f"{model}, {'warmed up' if stage == WARMUP else stage}"


def _thin_out(run: Run, limit: int, seed: int) -> Run:
    """At most `limit` hits of every query, drawn at random, in their order."""
    draw = random.Random(seed)
    return {
        query_id: hits
        if len(hits) <= limit
        else [hits[i] for i in sorted(draw.sample(range(len(hits)), limit))]
        for query_id, hits in run.items()
    }
