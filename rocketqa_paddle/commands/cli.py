"""The command `rocketqa`: a table of commands, each a function whose parameters are its flags."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, set_parsing_settings

from rocketqa_paddle import __version__, settings
from rocketqa_paddle.commands.mine import mine
from rocketqa_paddle.data import formats
from rocketqa_paddle.records import Passage, Query
from rocketqa_paddle.runs.stages import Selection
from rocketqa_paddle.runtime.device import import_paddle, select_device, tune_cpu

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def train(system: str, settings: settings.RunSettings, selection: Selection) -> None:
    """Train a system, on this process or on all that `fleetrun` started."""
    _join_ranks(settings)
    import_module(f"rocketqa_paddle.systems.{system}.run").train(settings, selection)


def compare(settings: settings.CompareSettings) -> None:
    """Train systems side by side, from one warm-up and with as many steps, and compare them."""
    _join_ranks(settings)
    import_module("rocketqa_paddle.commands.compare").compare(settings)


def _join_ranks(settings: settings.RunSettings) -> None:
    from rocketqa_paddle.runtime import distributed

    select_device(settings.use_cuda, distributed.local_gpu())
    distributed.init(settings.use_cuda)


def encode(
    checkpoint: str,
    input: str,
    output: str,
    kind: Literal["passages", "queries"] = "passages",
    titles: str | None = None,
    batch_size: int = 64,
    use_cuda: bool = False,
) -> None:
    """Write the vectors of passages or queries as a NumPy file.

    Args:
        checkpoint: a retriever: folder, toolkit's JSON or published name
        input: file of `id TAB text` lines
        output: where to write: OUTPUT.npy, float32 [n, hidden], and OUTPUT.ids.txt
        kind: what the input holds
        titles: file of `id TAB title` lines, for passages
        batch_size: rows computed together
        use_cuda: compute on a GPU
    """
    import numpy as np

    from rocketqa_paddle.checkpoints import convert
    from rocketqa_paddle.search import retrieval

    select_device(use_cuda)
    model = convert.read(checkpoint, kind=DUAL)

    if kind == "queries":
        queries = formats.keyed(input, "query", formats.read_queries(input))
        ids = list(queries)
        vectors = retrieval.encode_queries(model, [q.text for q in queries.values()], batch_size=batch_size)
    else:
        passages = formats.keyed(input, "passage", formats.read_passages(input, titles))
        ids = list(passages)
        columns = [p.title for p in passages.values()], [p.text for p in passages.values()]
        vectors = retrieval.encode_passages(model, *columns, batch_size=batch_size, progress="encode")
    stem = output.removesuffix(".npy")
    Path(stem).parent.mkdir(parents=True, exist_ok=True)
    np.save(f"{stem}.npy", vectors)
    Path(f"{stem}.ids.txt").write_text("".join(f"{i}\n" for i in ids), encoding="utf-8")
    print(f"{len(ids)} vectors of {vectors.shape[1]} dimensions in {stem}.npy")


def index(
    checkpoint: str,
    passages: str,
    output: str,
    titles: str | None = None,
    batch_size: int = 64,
    use_cuda: bool = False,
) -> None:
    """Encode a corpus and save it as a searchable index.

    Args:
        checkpoint: a retriever: folder, toolkit's JSON or published name
        passages: file of `id TAB text` lines (para.txt)
        output: index folder to write
        titles: file of `id TAB title` lines (para.title.txt)
        batch_size: rows computed together
        use_cuda: compute on a GPU
    """
    from rocketqa_paddle.checkpoints import convert
    from rocketqa_paddle.search.retrieval import CorpusIndex

    corpus = formats.keyed(passages, "passage", formats.read_passages(passages, titles))
    select_device(use_cuda)
    model = convert.read(checkpoint, kind=DUAL)
    CorpusIndex(model, corpus, batch_size=batch_size, progress="encode").save(output, model.digest())
    print(f"{len(corpus)} passages indexed in {output}")


def search(
    checkpoint: str,
    query: list[str],
    index: str | None = None,
    reranker: str | None = None,
    queries: str | None = None,
    output: str | None = None,
    format: Literal["tsv", "trec"] = "tsv",
    k: int = 5,
    depth: int = 20,
    use_cuda: bool = False,
) -> None:
    """Search an index, for people (a readable list) or for a file of queries (a run).

    Args:
        checkpoint: a run's `best` folder, or the folder of the retriever that made the index
        query: what to search for
        index: index folder; by default the one in the `best` folder
        reranker: a re-ranker that orders the best passages; by default the one in the `best` folder
        queries: file of `id TAB text` lines to search for
        output: run file to write for `queries`
        format: of the run file: `qid TAB pid TAB rank TAB score`, or TREC's six columns
        k: passages a query
        depth: passages that the re-ranker reads; 0 leaves the retriever's order
        use_cuda: compute on a GPU
    """
    from rocketqa_paddle.checkpoints import convert
    from rocketqa_paddle.search import retrieval
    from rocketqa_paddle.search.index import VectorIndex, read_texts

    if k < 1 or depth < 0:
        raise ValueError(f"k={k}, depth={depth}, expected k of at least 1, and a depth of at least 0")
    wanted = _queries(query, queries, output)
    folder = Path(checkpoint)
    if (folder / "retriever").is_dir():
        retriever = folder / "retriever"
        index = index or str(folder / "index")
        if (folder / "reranker").is_dir():
            reranker = reranker or str(folder / "reranker")
    else:
        retriever = folder
    if index is None:
        raise ValueError(f"{folder} has no retriever/ and index/ inside: name the index with --index")
    if depth == 0:
        reranker = None
    select_device(use_cuda)
    model = convert.read(retriever, kind=DUAL)
    vectors = VectorIndex.load(index, model.digest())
    encoded = retrieval.encode_queries(model, [q.text for q in wanted.values()])
    run = retrieval.search(vectors, encoded, list(wanted), max(k, depth) if reranker else k)
    found = {hit.passage_id for hits in run.values() for hit in hits}
    passages = read_texts(index, found)
    if reranker:
        cross = convert.read(reranker, kind=CROSS)
        bar = "re-rank" if output else ""  # a person's few queries are answered at once
        run = retrieval.rerank(cross, run, passages, wanted, depth, progress=bar)
    run = {query_id: hits[:k] for query_id, hits in run.items()}
    if output:
        RUN_WRITERS[format](output, run)
        print(f"{len(run)} queries answered in {output}")
        return
    for query_id, hits in run.items():
        print(f"\n{wanted[query_id].text}")
        for hit in hits:
            passage = passages[hit.passage_id]
            print(f"{hit.rank:3d}. {_heading(passage)}  ({hit.score:.2f})")
            print(f"     {_short(passage.text)}")


def rerank(
    checkpoint: str,
    run: str,
    queries: str,
    passages: str,
    output: str,
    titles: str | None = None,
    format: Literal["tsv", "trec"] = "tsv",
    depth: int = 50,
    batch_size: int = 64,
    use_cuda: bool = False,
) -> None:
    """Order the best passages of a run by a re-ranker and write the new run.

    Args:
        checkpoint: a re-ranker: folder, toolkit's JSON or published name
        run: run to re-rank (TREC, or `qid pid rank score`)
        queries: file of `id TAB text` lines
        passages: file of `id TAB text` lines (para.txt)
        output: run file to write
        titles: file of `id TAB title` lines (para.title.txt)
        format: of the new run: `qid TAB pid TAB rank TAB score`, or TREC's six columns
        depth: passages a query that are scored; the others are left out
        batch_size: rows computed together
        use_cuda: compute on a GPU
    """
    from rocketqa_paddle.checkpoints import convert
    from rocketqa_paddle.search import retrieval

    hits = {query_id: found[:depth] for query_id, found in formats.read_run(run).items()}
    asked = {query.id: query for query in formats.read_queries(queries)}
    found = {hit.passage_id for query_hits in hits.values() for hit in query_hits}
    corpus = {p.id: p for p in formats.read_passages(passages, titles) if p.id in found}
    for name, missing in {queries: hits.keys() - asked.keys(), passages: found - corpus.keys()}.items():
        if missing:
            raise ValueError(f"{run}: {len(missing)} ids are not in {name}, for example {min(missing)!r}")
    select_device(use_cuda)
    model = convert.read(checkpoint, kind=CROSS)
    RUN_WRITERS[format](output, retrieval.rerank(model, hits, corpus, asked, depth, batch_size=batch_size))
    print(f"{len(hits)} queries re-ranked in {output}")


def evaluate(
    qrels: str,
    run: str,
    baseline: str | None = None,
    measures: list[str] = settings.EvaluationSettings().measures,  # noqa: B008
) -> None:
    """Measure a run, and compare it with another by a paired t-test.

    Args:
        qrels: judgements: `qid pid`, or four TREC columns
        run: run file (TREC, or `qid pid rank score`)
        baseline: run file to compare with
        measures: names of ir_measures, such as RR@10, Success@50, nDCG@10
    """
    from rocketqa_paddle.evaluation import tables
    from rocketqa_paddle.evaluation.tables import Row

    judged = formats.load_qrels(qrels)
    rows = [Row(name, formats.read_run(name)) for name in (baseline, run) if name]
    for row in rows:
        missing = judged.keys() - row.run.keys()
        if missing == judged.keys():
            raise ValueError(f"{row.name} has hits for none of the {len(judged)} queries of {qrels}")
        if missing:
            print(f"{row.name} has no hits for {len(missing)} of {len(judged)} queries; they count as 0")
    print(tables.table(f"{len(judged)} queries of {qrels}", rows, judged, measures))
    if baseline:
        print("\n" + tables.significance(rows[1], rows[0], judged, measures[0]))


def convert_model(
    source: str,
    target: str,
    to: Literal["native", "paddlenlp", "huggingface", "reference"] = "native",
) -> None:
    """Write a model in another format, and compare the two on sample text.

    Args:
        source: a published name, a toolkit's JSON, or a folder of any of these formats
        target: folder to write
        to: format of the target
    """
    from rocketqa_paddle.checkpoints import convert

    found = convert.find(source)
    path = found.path.resolve()
    folder = path.parent if path.is_file() else path
    if Path(target).resolve() in (folder, *folder.parents) or folder in Path(target).resolve().parents:
        raise ValueError(f"{target} is where {source} is, or one is inside the other: choose another target")
    model = convert.read_found(found)
    convert.write(model, target, to, card=f"Converted from {source}.")
    again = convert.read(target)
    difference = convert.largest_difference(model, again)
    if not difference <= LARGEST_DIFFERENCE:
        raise ValueError(
            f"{target}: read back, its outputs differ by {difference:.2g} from those of {source}"
        )
    print(f"{target}: {model.kind.replace('_', ' ')}, written as {to}")
    print(f"largest difference on {len(convert.SAMPLE)} sample texts: {difference:.2g}")
    for note in convert.notes(model, to):
        print(f"note: {note}")


def inspect_model(checkpoint: str) -> None:
    """Tell what a model is: kind, sizes, tokenizer, lengths, digest.

    Args:
        checkpoint: a published name, a toolkit's JSON, or a folder of any format that `convert` reads
    """
    from rocketqa_paddle.checkpoints import convert

    found = convert.find(checkpoint)
    for name, value in convert.table(found):
        print(f"{name:<12} {value}")


def list_models() -> None:
    """List the published models."""
    from rocketqa_paddle.checkpoints import published

    rows = [("name", "kind", "language", "trained on", "system", "lengths", "fetched", "md5", "url")]
    for model in published.MODELS.values():
        lengths = ", ".join(f"{name} {length}" for name, length in model.lengths.items())
        fetched = "yes" if published.is_fetched(model.name) else "no"
        kind = model.kind.replace("_", " ")
        about = (model.name, kind, model.language, model.trained_on, model.system, lengths, fetched)
        rows.append((*about, model.md5, model.url))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{value:<{width}}" for value, width in zip(row, widths, strict=True)).rstrip())
    print(f"\nkept in {published.home()}")


# ------------------------------------------------------------------------------------------------

COMMANDS: dict[str, Callable[..., None]] = {
    "encode": encode,
    "index": index,
    "search": search,
    "rerank": rerank,
    "evaluate": evaluate,
    "mine": mine,
    "convert": convert_model,
    "inspect": inspect_model,
    "models": list_models,
}
DESCRIPTIONS = {
    "rocketqa": "Cross-batch negatives, denoised hard negatives, data augmentation.",
    "pair": "Passage-centric similarity, pre-trained on pseudo labels (PAIR).",
    "rocketqav2": "Train retriever and re-ranker jointly (RocketQAv2).",
    "ar2": "Train retriever and re-ranker as adversaries, in turns (AR2).",
}
CONFIG = "YAML file of settings; flags after it override it"
FROM_STAGE = "begin with this stage; take those before as they are, even if their settings have changed"
DRY_RUN = "tell the stages, their sizes, and estimates of time and disk; do nothing"
LARGEST_DIFFERENCE = 1e-4  # of a converted model's outputs from the original's
USAGES = {"convert": "SOURCE TARGET [--to FORMAT]", "inspect": "CHECKPOINT", "models": ""}
DUAL, CROSS = "dual_encoder", "cross_encoder"
RUN_WRITERS: dict[str, Callable[..., None]] = {"tsv": formats.write_run_tsv, "trec": formats.write_trec_run}


def parse(arguments: list[str]) -> Callable[[], None]:
    """Read a command line and return the call that it asks for. A mistake in it exits 2."""
    # jsonargparse loses its way in the errors of nested subcommands, so each level has a parser of its own.
    if arguments[:1] == ["train"]:
        parser = _train_parser()
        parsed = parser.instantiate_classes(parser.parse_args(arguments[1:]))
        fields = {key: value for key, value in vars(parsed[parsed.system]).items() if key != "config"}
        selection = Selection(*(fields.pop(name) for name in ("from_stage", "until_stage", "dry_run")))
        return partial(train, parsed.system, settings.SYSTEMS[parsed.system](**fields), selection)
    if arguments[:1] == ["compare"]:
        parser = _compare_parser()
        parsed = parser.instantiate_classes(parser.parse_args(arguments[1:]))
        fields = {key: value for key, value in vars(parsed).items() if key != "config"}
        return partial(compare, settings.CompareSettings(**fields))
    parser = _parser()
    parsed = parser.parse_args(arguments)
    return partial(COMMANDS[parsed.command], **vars(parsed[parsed.command]))


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="rocketqa", description="Dense retrieval and re-ranking on PaddlePaddle.")
    parser.add_argument("--version", action="version", version=f"rocketqa_paddle {__version__}")
    commands = parser.add_subcommands(required=True, dest="command")
    commands.add_subcommand("train", ArgumentParser(), help="train a system from raw text")
    commands.add_subcommand("compare", ArgumentParser(), help=_first_line(compare))
    for name, function in COMMANDS.items():
        command = ArgumentParser(
            usage=f"rocketqa {name} {USAGES.get(name, '[--KEY VALUE ...]')}".rstrip(),
            description=function.__doc__.split("\n\n")[0],
        )
        positional = name in USAGES
        command.add_function_arguments(function, as_group=False, as_positional=positional, skip={"query"})
        _let_switches_stand_alone(command)
        if name == "search":
            command.add_argument("query", nargs="*", type=str, help="what to search for")
        commands.add_subcommand(name, command, help=_first_line(function))
    return parser


def _let_switches_stand_alone(parser: ArgumentParser) -> None:
    """`--report` is `--report true`."""
    for action in parser._actions:
        if action.default is False:
            action.nargs, action.const = "?", True


def _train_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="rocketqa train", description="Train a system from raw text; a stopped run goes on."
    )
    systems = parser.add_subcommands(required=True, dest="system")
    for name, description in DESCRIPTIONS.items():
        usage = f"rocketqa train {name} [--config FILE] [--KEY VALUE ...] [--dry-run]"
        system = ArgumentParser(usage=usage, description=description)
        system.add_argument("--config", action="config", help=CONFIG)
        system.add_argument("--from-stage", "--from_stage", type=str, metavar="STAGE", help=FROM_STAGE)
        system.add_argument(
            "--until-stage", "--until_stage", type=str, metavar="STAGE", help="end after this stage"
        )
        system.add_argument("--dry-run", "--dry_run", action="store_true", help=DRY_RUN)
        system.add_class_arguments(settings.SYSTEMS[name], as_group=False)
        _let_switches_stand_alone(system)
        systems.add_subcommand(name, system, help=description[0].lower() + description[1:].rstrip("."))
    return parser


def _compare_parser() -> ArgumentParser:
    usage = "rocketqa compare --config FILE [--KEY VALUE ...]"
    parser = ArgumentParser(prog="rocketqa compare", usage=usage, description=compare.__doc__)
    parser.add_argument("--config", action="config", help=CONFIG)
    parser.add_class_arguments(settings.CompareSettings, as_group=False)
    _let_switches_stand_alone(parser)
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run a command. A mistake of the user's exits 2 with a message, a request to stop 130."""
    tune_cpu()
    try:
        call = parse(sys.argv[1:] if arguments is None else arguments)
        import_paddle()
        for library in ("faiss", "bm25s", "httpx"):  # they tell how they go about their work
            logging.getLogger(library).setLevel(logging.WARNING)
        logging.getLogger("bm25s").addFilter(_warns)  # which sets its own level when it is imported
        call()
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("ROCKETQA_DEBUG"):
            raise
        sys.exit(_fail(f"rocketqa: {error}", 2))
    except KeyboardInterrupt:
        sys.exit(_fail("rocketqa: stopped; the same command goes on from the last finished piece", 130))
    except RuntimeError as error:
        from rocketqa_paddle.training.trainer import Stopped

        if not isinstance(error, Stopped):
            raise
        sys.exit(_fail(f"rocketqa: stopped after {error}, saved; the same command goes on", 130))


def _warns(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


def _fail(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code


def _first_line(function: Callable[..., None]) -> str:
    return (function.__doc__ or "").split("\n")[0].rstrip(".").lower()


def _queries(words: list[str], file: str | None, output: str | None) -> dict[str, Query]:
    if bool(words) == bool(file):
        raise ValueError("search needs either queries as words or --queries FILE")
    if file:
        if not output:
            raise ValueError("--queries needs --output, the run file to write")
        return formats.keyed(file, "query", formats.read_queries(file))
    if not all(text.strip() for text in words):
        raise ValueError("an empty query: give some words to search for")
    return {str(number): Query(str(number), text) for number, text in enumerate(words, 1)}


def _heading(passage: Passage) -> str:
    return passage.id if passage.title in ("", formats.NO_TITLE) else passage.title


def _short(text: str, width: int = 160) -> str:
    return text if len(text) <= width else text[: width - 1].rsplit(" ", 1)[0] + "…"
