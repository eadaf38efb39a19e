"""The command `rocketqa mine`: training groups made from files, without a run of a system."""

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from rocketqa_paddle.data.groups import GroupLayout, check_group_file, check_texts, write_groups
from rocketqa_paddle.data.places import shown
from rocketqa_paddle.data.qrels import load_qrels
from rocketqa_paddle.data.runs import read_run
from rocketqa_paddle.data.texts import load_queries
from rocketqa_paddle.records import Passages, Qrels, Queries, Query, Run, positives
from rocketqa_paddle.runtime.device import select_device
from rocketqa_paddle.settings import at_least, check_thresholds

if TYPE_CHECKING:  # these import Paddle, or NumPy
    from rocketqa_paddle.data.candidates import Candidates
    from rocketqa_paddle.data.store import Store

Policy = Literal["random", "hard", "denoised", "pseudo"]
JUDGED: tuple[Policy, ...] = ("denoised", "pseudo")
"""The policies that need the candidates' scores."""


def mine(
    queries: str,
    passages: str,
    policy: Policy | None = None,
    qrels: str | None = None,
    run: str | None = None,
    output: str | None = None,
    titles: str | None = None,
    reranker: str | None = None,
    scored: int = 50,
    negatives: int = 4,
    choose: Literal["hardest", "random"] = "random",
    skip: int = 0,
    negative_below: float = 0.1,
    positive_above: float = 0.9,
    drop_false_negatives: bool = True,
    calibrate: bool = False,
    report: bool = False,
    format: GroupLayout = "list",
    seed: int = 1,
    batch_size: int = 64,
    use_cuda: bool = False,
) -> None:
    """Make training data: choose negatives, and positives for queries without labels.

    Args:
        queries: file of `id TAB text` lines, or BEIR's queries.jsonl
        passages: file of `id TAB text` lines (para.txt), or BEIR's corpus.jsonl
        policy: negatives drawn from the whole corpus (random), from a run as it is (hard), or from its
            candidates that a re-ranker rejects (denoised); with pseudo, it also chooses the positive
        qrels: labelled positives: `qid pid`, or four TREC columns
        run: candidates (TREC, or `qid pid rank score`); without --reranker, a run of `rocketqa rerank`
        output: file of training groups to write
        titles: file of `id TAB title` lines (para.title.txt)
        reranker: scores the candidates: folder, toolkit's JSON or published name
        scored: with --reranker, how many of a query's best candidates are scored; deeper ones are taken
            where these hold too few negatives
        negatives: negatives a query
        choose: which rejected candidates: the first in the run's order, or random ones (denoised, pseudo)
        skip: leave out this many of the best candidates (hard)
        negative_below: a candidate is a negative if its probability is below this
        positive_above: the best candidate is a pseudo positive if its probability is above this
        drop_false_negatives: leave out passages with the title and text of a positive, and the query itself
            where it is a passage; false compares ids alone, as the released code does
        calibrate: fit probabilities to the labelled positives; for a re-ranker that was trained on lists
        report: show how the re-ranker's probabilities are distributed, and suggest thresholds
        format: of the output: 4 columns a passage, 6 columns a negative, or Tevatron's JSON lines
        seed: seed of the random choices
        batch_size: rows scored together
        use_cuda: compute on a GPU
    """
    wrong = {
        "mine needs --policy random|hard|denoised|pseudo, or --report, or both": not policy and not report,
        "--policy needs --output, the file to write, and --output a --policy": bool(policy) != bool(output),
        "--qrels is missing: the labelled positives": not qrels and (policy != "pseudo" or report),
        "--run is missing: candidates, as `rocketqa search` writes them": not run
        and (policy != "random" or report),
        f"--skip {skip} is for --policy hard alone": skip > 0 and policy != "hard",
        "--choose hardest is for --policy denoised and pseudo": choose == "hardest" and policy not in JUDGED,
    }
    if problem := next(filter(wrong.get, wrong), None):
        raise ValueError(problem)
    at_least(1, negatives=negatives, scored=scored, batch_size=batch_size)
    at_least(0, skip=skip)
    check_thresholds(negative_below, positive_above)
    if output:
        check_group_file(output, format)
    labels = load_qrels(qrels) if qrels else {}
    texts = load_queries(queries)
    from rocketqa_paddle.data.corpus import temporary

    corpus = temporary(passages, titles, empty := set()).by_id
    hits = {id: found for id, found in (read_run(run) if run else {}).items() if id in texts}
    if empty:  # nothing is learnt from them
        print(f"the {len(empty)} passages without title and text are left out")
        hits = {id: [hit for hit in found if hit.passage_id not in empty] for id, found in hits.items()}
    _check_passages(passages, corpus, labels, hits)
    if output:
        check_texts(output, format, {queries: texts.values(), passages: corpus.values()})
    chosen = _choose_queries(policy, texts, labels, hits) if policy else []

    from rocketqa_paddle.mining.calibration import check_scores, describe_scores, without_false_negatives
    from rocketqa_paddle.mining.miner import Miner
    from rocketqa_paddle.mining.thresholds import ScoreReport

    count, drop = negatives if policy else 0, {"drop_false_negatives": drop_false_negatives}
    miner = Miner(corpus, labels, count, seed, **drop)
    scores: Run = {}
    if report or policy in JUDGED:
        select_device(use_cuda)
        candidates = _best(hits, scored, corpus) if reranker else hits
        scores = _score(reranker, candidates, labels, corpus, texts, batch_size) if reranker else hits
        judged = without_false_negatives(scores, texts, labels, corpus) if drop_false_negatives else scores
        if calibrate:
            miner.calibration = _calibrate(judged, labels, seed)
        if policy in JUDGED:
            print(check_scores(judged, labels, miner.calibration, negative_below))
        if report:
            print(ScoreReport(judged, labels, miner.calibration, found=candidates))
    if policy:
        thresholds = {"below": negative_below, "deeper": hits, "hardest": choose == "hardest"}
        make = {
            "random": partial(miner.undenoised, candidates={}, easy=negatives),
            "hard": partial(miner.undenoised, candidates=hits, skip=skip),
            "denoised": partial(miner.denoised, scored=scores, **thresholds),
            "pseudo": partial(miner.pseudo, scored=scores, above=positive_above, **thresholds),
        }
        groups = list(make[policy](chosen))
        print(f"{policy}: {miner.report}")
        if not groups:
            raise ValueError(f"{policy}: no training data. {describe_scores(scores, miner.calibration)}")
        write_groups(output, groups, format)
        print(f"{len(groups)} groups of {len(groups[0].passages)} passages in {output}")


def _check_passages(file: str, corpus: Passages, labels: Qrels, hits: Run) -> None:
    """Refuse judgements and hits that name passages which are not in the corpus."""
    named = {id for judged in labels.values() for id in judged}
    named |= {hit.passage_id for found in hits.values() for hit in found}
    if unknown := named - corpus.keys():
        raise ValueError(
            f"{file}: {len(unknown)} passages of the judgements or the run are not there, for example "
            f"{shown(min(unknown))}"
        )


def _choose_queries(policy: Policy, queries: Queries, labels: Qrels, hits: Run) -> list[Query]:
    """Choose the labelled queries, or for pseudo those without labels, and print how many are left out.

    A query with the text of a labelled one counts as labelled for pseudo, whatever its id.
    """
    labelled = [query for id, query in queries.items() if positives(labels, id)]
    chosen, others = labelled, "have no label"
    if policy == "pseudo":
        keys = {query.key for query in labelled}
        chosen, others = [query for query in queries.values() if query.key not in keys], "are labelled"
    if left_out := len(queries) - len(chosen):
        print(f"{left_out} of {len(queries)} queries {others}: left out")
    if not chosen:
        raise ValueError(
            "every query is labelled, but pseudo labels are for those that are not"
            if policy == "pseudo"
            else "no query has a label: do --queries and --qrels belong together?"
        )
    missing = sum(query.id not in hits for query in chosen) if policy != "random" else 0
    if missing == len(chosen):
        raise ValueError(
            f"the run has hits for none of {missing} queries: do --queries and --run belong together?"
        )
    if missing:
        print(f"the run has no hits for {missing} of {len(chosen)} queries")
    return chosen


def _best(hits: Run, count: int, corpus: "Store") -> "Candidates":
    """Return the `count` best hits of every query as candidates, and print where there are fewer."""
    from rocketqa_paddle.data.candidates import gathered

    if short := sum(len(found) < count for found in hits.values()):
        print(f"the run has fewer than {count} hits for {short} of {len(hits)} queries")
    return gathered(hits, corpus).first(count)


def _score(
    reranker: str, candidates: "Candidates", labels: Qrels, corpus: "Store", queries: Queries, batch_size: int
) -> Run:
    """Score the candidates and the labelled positives by the re-ranker."""
    from rocketqa_paddle.checkpoints import convert
    from rocketqa_paddle.networks.encoders import CROSS
    from rocketqa_paddle.search import retrieval

    model = convert.read(reranker, kind=CROSS)
    wanted, options = candidates.with_positives(labels, corpus.row_of), {"batch_size": batch_size}
    return retrieval.rerank(model, wanted, corpus, queries, wanted.depth, progress="score", **options)


def _calibrate(scores: Run, labels: Qrels, seed: int) -> Any:
    """Fit probabilities to the labelled positives, unless they score below other candidates."""
    from rocketqa_paddle.mining.calibration import calibrate

    if not labels.keys() & scores.keys():
        raise ValueError("--calibrate needs labelled queries among those of --queries and --run")
    fitted = calibrate(scores, labels, seed)
    if fitted.slope <= 0:
        raise ValueError("the re-ranker scores other candidates above labelled positives: train it longer")
    return fitted
