"""The command `rocketqa mine`: the data of a system's stage, made from files, without a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal

from rocketqa_paddle.data import formats
from rocketqa_paddle.records import Group, Passage, Qrels, Query, Run, Split, with_positives
from rocketqa_paddle.runtime.device import select_device
from rocketqa_paddle.settings import at_least, check_thresholds

Policy = Literal["random", "hard", "denoised", "pseudo"]


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
    calibrate: bool = False,
    report: bool = False,
    format: formats.GroupLayout = "list",
    seed: int = 1,
    batch_size: int = 64,
    use_cuda: bool = False,
) -> None:
    """Make training data: choose negatives, and positives for queries without labels.

    Args:
        queries: file of `id TAB text` lines
        passages: file of `id TAB text` lines (para.txt)
        policy: negatives drawn from the whole corpus (random), from a run as it is (hard), or from its
            candidates that a re-ranker rejects (denoised); pseudo lets it choose the positive, too
        qrels: labelled positives: `qid pid`, or four TREC columns
        run: candidates (TREC, or `qid pid rank score`); without --reranker, what `rocketqa rerank` wrote
        output: file of training groups to write
        titles: file of `id TAB title` lines (para.title.txt)
        reranker: scores the candidates: folder, toolkit's JSON or published name
        scored: with --reranker, so many of the best candidates are scored; deeper ones make up for too few
            negatives
        negatives: negatives a query
        choose: of rejected candidates, the first in the run's order or random ones (denoised, pseudo)
        skip: leave out this many of the best candidates (hard)
        negative_below: a candidate is a negative if its probability is below this
        positive_above: the best candidate is a pseudo positive if its probability is above this
        calibrate: fit probabilities to the labelled positives; for a re-ranker that was trained on lists
        report: tell how the re-ranker's probabilities lie, and suggest thresholds
        format: of the output: 4 columns a passage, 6 columns a negative, or Tevatron's JSON lines
        seed: of the random choices
        batch_size: rows scored together
        use_cuda: compute on a GPU
    """
    _check(policy, qrels, run, output, report)
    if output:
        formats.check_group_file(output, format)
    at_least(1, negatives=negatives, scored=scored, batch_size=batch_size)
    at_least(0, skip=skip)
    if skip and policy != "hard":
        raise ValueError(f"--skip {skip} is for --policy hard alone")
    check_thresholds(negative_below, positive_above)
    labels = formats.load_qrels(qrels) if qrels else {}
    hits = formats.read_run(run) if run else {}
    asked = formats.keyed(queries, "query", formats.read_queries(queries))
    corpus = formats.keyed(passages, "passage", formats.read_passages(passages, titles))
    _check_ids(labels, hits, asked, corpus, passages)

    from rocketqa_paddle.mining.miner import Miner, check_scores, describe_scores
    from rocketqa_paddle.mining.miner import calibrate as fit
    from rocketqa_paddle.mining.thresholds import ScoreReport

    chosen = _choose(policy, asked, labels, hits) if policy else []
    miner = Miner(corpus, labels, negatives if policy else 0, seed)
    judged: Run = {}
    if report or policy in ("denoised", "pseudo"):
        select_device(use_cuda)
        best = judged = {query_id: hits[query_id] for query_id in hits if query_id in asked}
        if reranker:
            best = {query_id: found[:scored] for query_id, found in best.items()}
            if short := sum(len(found) < scored for found in best.values()):
                print(f"the run has fewer than {scored} hits for {short} of {len(best)} queries")
            judged = _score(reranker, best, corpus, Split(asked, labels), batch_size)
        if calibrate:
            if not labels.keys() & judged.keys():
                raise ValueError("--calibrate needs labelled queries among those of --queries and --run")
            miner.calibration = fit(judged, labels, seed)
        if miner.calibration.slope <= 0:
            raise ValueError(
                "the re-ranker scores other candidates above labelled positives: train it longer"
            )
        if policy in ("denoised", "pseudo"):
            print(check_scores(judged, labels, miner.calibration, negative_below))
        if report:
            print(ScoreReport(judged, labels, miner.calibration, found=best))
    if not policy:
        return
    thresholds = {"below": negative_below, "deeper": hits, "hardest": choose == "hardest"}
    policies: dict[Policy, Callable[[], Iterator[Group]]] = {
        "random": lambda: miner.undenoised(chosen, {}, easy=negatives),
        "hard": lambda: miner.undenoised(chosen, hits, skip=skip),
        "denoised": lambda: miner.denoised(chosen, judged, **thresholds),
        "pseudo": lambda: miner.pseudo(chosen, judged, above=positive_above, **thresholds),
    }
    groups = list(policies[policy]())
    print(f"{policy}: {miner.report}")
    if not groups:
        raise ValueError(f"{policy}: no training data. {describe_scores(judged, miner.calibration)}")
    formats.write_training_groups(output, groups, format)
    print(f"{len(groups)} groups of {1 + negatives} passages in {output}")


def _check(
    policy: Policy | None, qrels: str | None, run: str | None, output: str | None, report: bool
) -> None:
    """Refuse flags that do not go together."""
    if not policy and not report:
        raise ValueError("mine needs --policy random|hard|denoised|pseudo, or --report, or both")
    if bool(policy) != bool(output):
        raise ValueError("--policy needs --output, the file to write, and --output a --policy")
    if (policy != "pseudo" or report) and not qrels:
        raise ValueError("--qrels is missing: the labelled positives")
    if (policy != "random" or report) and not run:
        raise ValueError("--run is missing: candidates, as `rocketqa search` writes them")


def _check_ids(
    labels: Qrels, hits: Run, asked: Mapping[str, Query], corpus: Mapping[str, Passage], passages: str
) -> None:
    """Every passage of the files must be in the corpus."""
    judged = {i for judgements in labels.values() for i in judgements}
    found = {hit.passage_id for query_id in hits.keys() & asked.keys() for hit in hits[query_id]}
    if unknown := (judged | found) - corpus.keys():
        raise ValueError(
            f"{passages}: {len(unknown)} passages of the judgements or the run are not there, for example "
            f"{min(unknown)!r}"
        )


def _choose(policy: Policy, asked: Mapping[str, Query], labels: Qrels, hits: Run) -> list[Query]:
    """The queries that the policy is for; tells how many are not."""
    labelled = {i for i, judged in labels.items() if any(relevance > 0 for relevance in judged.values())}
    if policy == "pseudo":
        keys = {asked[i].key for i in labelled & asked.keys()}
        chosen = [query for query in asked.values() if query.key not in keys]
        wrong, empty = "are labelled", "every query is labelled, but pseudo labels are for those that are not"
    else:
        chosen = [query for query in asked.values() if query.id in labelled]
        wrong, empty = "have no label", "no query has a label: do --queries and --qrels belong together?"
    if len(chosen) < len(asked):
        print(f"{len(asked) - len(chosen)} of {len(asked)} queries {wrong}: left out")
    if not chosen:
        raise ValueError(empty)
    if policy != "random" and (missing := sum(query.id not in hits for query in chosen)):
        if missing == len(chosen):
            raise ValueError(
                f"the run has hits for none of {missing} queries: do --queries and --run belong together?"
            )
        print(f"the run has no hits for {missing} of {len(chosen)} queries")
    return chosen


def _score(reranker: str, hits: Run, corpus: Mapping[str, Passage], split: Split, batch_size: int) -> Run:
    """The re-ranker's scores of the candidates and of labelled positives."""
    from rocketqa_paddle.checkpoints import convert
    from rocketqa_paddle.search import retrieval

    model = convert.read(reranker, kind="cross_encoder")
    queries = {query_id: split.queries[query_id] for query_id in hits}
    wanted = with_positives(hits, split, queries)
    depth = max(map(len, wanted.values()), default=0)
    return retrieval.rerank(model, wanted, corpus, queries, depth, batch_size=batch_size, progress="score")
