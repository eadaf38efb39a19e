"""PAIR: passage-centric similarity beside the query-centric one, in two stages of training on pseudo labels.

Ren et al., Findings of ACL 2021. A retriever and a re-ranker, trained as RocketQA's first ones, are the
teachers: they choose positives and negatives for labelled and unlabelled queries. Stage 1 pre-trains one
encoder on them with both similarities; stage 2 fine-tunes it on labelled and pseudo-labelled data with the
query-centric one alone.
"""

from __future__ import annotations

from rocketqa_paddle.runs.report import report_steps
from rocketqa_paddle.runs.run import Run
from rocketqa_paddle.systems.pair.settings import PairSettings
from rocketqa_paddle.systems.rocketqa.run import (
    denoised,
    judged_by,
    pseudo_labelled,
    train_first_reranker,
    train_first_retriever,
)


def train(run: Run, s: PairSettings) -> None:
    """Train the teachers, then the two stages of the paper."""
    run.measure_initial()
    retriever = train_first_retriever(run, "teacher_retriever", "teacher", s.teacher_retriever)
    found = run.search(retriever, run.labelled, s.denoising.depth)
    reranker = train_first_reranker(run, "teacher_reranker", "teacher", retriever, found, s.teacher_reranker)
    judge = judged_by(run, reranker, found, s.teacher_reranker, s.denoising)

    labelled = denoised(run, reranker, found, judge, s.denoising)
    pseudo = pseudo_labelled(run, reranker, found, judge, s.denoising)
    if run.unlabelled:
        found = run.search(retriever, run.unlabelled, s.denoising.depth)
        unlabelled = pseudo_labelled(run, reranker, found, judge, s.denoising)
        pseudo, labelled = pseudo + unlabelled, labelled + unlabelled

    initial, title = run.initial_retriever(), "stage 1 (pre-training)"
    stage1 = run.train_retriever(
        "pretraining", title, initial, pseudo, s.pretraining, alpha=s.pretraining.alpha
    )
    run.train_retriever("finetuning", "stage 2 (fine-tuning)", stage1, labelled, s.finetuning)
    report_steps(run, "PAIR", first=retriever, reranker=reranker)
