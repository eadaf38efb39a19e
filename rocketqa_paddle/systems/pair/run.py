"""PAIR: passage-centric similarity beside the query-centric one, in two stages of training on pseudo labels.

Ren et al., Findings of ACL 2021. A retriever and a re-ranker, trained as RocketQA's first ones, are the
teachers: they choose positives and negatives for labelled and unlabelled queries. Stage 1 pre-trains one
encoder on them with both similarities; stage 2 fine-tunes it on labelled and pseudo-labelled data with the
query-centric one alone.
"""

from rocketqa_paddle.runs.report import report_steps
from rocketqa_paddle.runs.run import Run
from rocketqa_paddle.systems.pair.settings import PairSettings
from rocketqa_paddle.systems.rocketqa.run import Judge, train_first_reranker, train_first_retriever


def train(run: Run, s: PairSettings) -> None:
    """Train the teachers, then the two stages of the paper."""
    run.measure_initial()
    retriever = train_first_retriever(run, "teacher_retriever", "teacher", s.teacher_retriever)
    found = run.search(retriever, run.labelled, s.denoising.depth)
    teacher = s.teacher_reranker
    reranker = train_first_reranker(run, "teacher_reranker", "teacher", found, teacher, over=retriever)
    judge = Judge(run, reranker, found, s.denoising, lists=teacher.loss == "list")

    labelled, pseudo = judge.denoised(found), judge.pseudo_labelled(found)
    if run.unlabelled:
        unlabelled = judge.pseudo_labelled(run.search(retriever, run.unlabelled, s.denoising.depth))
        pseudo, labelled = pseudo + unlabelled, labelled + unlabelled

    stage1, title = s.pretraining, "stage 1 (pre-training)"
    model = run.initial_retriever()
    model = run.train_retriever("pretraining", title, model, pseudo, stage1, alpha=stage1.alpha)
    run.train_retriever("finetuning", "stage 2 (fine-tuning)", model, labelled, s.finetuning)
    report_steps(run, "PAIR", first=retriever, reranker=reranker)
