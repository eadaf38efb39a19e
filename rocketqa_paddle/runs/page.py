"""The web page of a run: its data and models, tables, curves, scores, and queries that it won and lost."""

import re
from collections.abc import Mapping
from datetime import datetime
from html import escape
from typing import Any

import numpy as np

from rocketqa_paddle import __version__
from rocketqa_paddle.evaluation import charts, curves, html, tables
from rocketqa_paddle.records import Model
from rocketqa_paddle.runs.archive import Archive, facts, label, positive_rows
from rocketqa_paddle.runs.wins import check_baseline, wins_and_losses

_TRAINED = re.compile(r"Trained in step .+? on (\d+ groups \(.*?\))\.")


def write_page(run: Archive, system: str, defaults: Mapping[str, Any], baseline: str | None = None) -> str:
    """Return the page of a run as HTML that needs no other file.

    Args:
        run: the run, finished or not; what it does not have yet is left out, and the page says so.
        system: the name of the system.
        defaults: the settings that it has by default, as `config.yaml` writes them.
        baseline: what to compare queries with, see `wins.wins_and_losses`.

    Raises:
        ValueError: no such baseline, or damaged files of the run.
    """
    check_baseline(run, baseline)
    title = f"{system}: {run.folder.resolve().name}"
    body = [f"<h1>{escape(title)}</h1>", f'<p class="soft">{escape(_when(run))}</p>']
    if not run.tables:
        at = f" It was saved in {run.state}." if run.state else ""
        body.append(html.notice(f"This run is not finished. The page shows what there is.{at}"))
    body += [_setup(run, defaults), _results(run), _training(run)]
    try:
        body += [_scores(run), wins_and_losses(run, baseline)]
    except FileNotFoundError as error:
        body.append(html.notice(f"Scores and queries are left out, because a file is gone: {error}"))
    written = f"Written by rocketqa_paddle {__version__}, {datetime.now():%Y-%m-%d %H:%M}."
    return html.page(title, [*body, f"<footer>{written}</footer>"])


def _when(run: Archive) -> str:
    """When the run began and ended, as far as the log tells."""
    if not (times := [line["time"] for line in run.log]):
        return "nothing was logged yet"
    first, last = (datetime.fromtimestamp(time) for time in (min(times), max(times)))
    took = tables.duration(max(times) - min(times))
    return f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} ({took})"


def _setup(run: Archive, defaults: Mapping[str, Any]) -> str:
    """What was run: data, models, and settings that are not the defaults."""
    rows = [["folder", str(run.folder.resolve())], ["collection", run.data.folder]]
    try:
        sizes = {piece.queries: len(run.hits(piece)) for piece in run.pieces}
        rows += [["passages", f"{len(run.corpus):,}"]]
        rows += [[f"queries of {name}", f"{size:,}"] for name, size in sizes.items()]
    except FileNotFoundError as error:
        rows.append(["passages", f"gone: {error}"])
    initial = {kind: run.config.get(kind.value) for kind in Model}
    rows += [
        [f"initial {kind.title}", str(s.get("init"))] for kind, s in initial.items() if isinstance(s, dict)
    ]
    rows += [[f"{kind.title} in best/", f"that of step {step}"] for kind, step in run.best().items()]
    trained = [(place, _TRAINED.search(card)) for place, card in run.cards()]
    groups = [[place, found[1]] for place, found in trained if found]
    usual, here = facts(dict(defaults)), facts(run.config)
    differ = [n for n, value in here.items() if value != usual.get(n) and n not in ("output", "data.folder")]
    changed = [[name, str(here[name]), str(usual.get(name, ""))] for name in differ]
    parts = [html.table(rows, "facts")]
    if groups:
        shown = html.table(groups, "facts", ["model", "training groups"])
        parts.append(html.details(f"Training groups of {len(groups)} models", shown))
    if changed:
        shown = html.table(changed, "facts", ["setting", "here", "default"])
        parts.append(html.details(f"{len(changed)} settings that differ from the defaults", shown))
    return html.section("What was run", *parts)


def _results(run: Archive) -> str:
    parts = [html.from_markdown(text) for text in (run.tables, run.dev_table) if text]
    return html.section("Results", *(parts or ["<p>No model has been measured yet.</p>"]))


def _training(run: Archive) -> str:
    """A chart a model of the measures on dev, and two a training."""
    (steps, dev), drawn = curves.of_dev(run.log), []
    for kind in Model:
        names = {name: name.partition("/")[2] for name in dev if name.startswith(f"{kind.value}/")}
        if own := {shown: dev[name] for name, shown in names.items()}:
            drawn.append(charts.line_chart(f"{kind.title} on {run.data.dev}", own, "step", steps))
    losses, rates = (curves.of_trainings(run.log, name) for name in ("loss", "learning_rate"))
    for stage, points in losses.items():
        drawn.append(charts.line_chart(f"{stage}: loss", {"loss": points}, "step"))
        drawn.append(charts.line_chart(f"{stage}: learning rate", {"rate": rates.get(stage, [])}, "step"))
    return html.section("Training", _charts(drawn) if drawn else "<p>Nothing was logged yet.</p>")


def _scores(run: Archive) -> str:
    """Histograms of the scores of positives and of other candidates, of every model on dev."""
    pieces = [piece for piece in run.pieces if piece.queries == run.data.dev]
    if not pieces:
        return ""
    queries, drawn = run.queries(run.data.dev), []
    wanted = positive_rows(run.corpus, queries)
    for piece in pieces:
        found = run.hits(piece).first(piece.depth)
        rows, scores = found.hits["row"], found.hits["score"]
        positive = np.zeros(rows.shape, bool)
        for place, id in enumerate(found.queries):
            positive[place] = np.isin(rows[place], list(wanted.get(id, ())))
        there = (rows >= 0) & np.isfinite(scores)
        groups = {"positives": scores[there & positive], "other candidates": scores[there & ~positive]}
        drawn.append(charts.histogram(label(piece), groups, "score"))
    told = (
        f"Scores of what was found for the {len(queries)} queries of {run.data.dev}, as shares of each group."
    )
    return html.section("Scores", f'<p class="soft">{escape(told)}</p>', _charts(drawn))


def _charts(drawn: list[str]) -> str:
    return f'<div class="charts">{"".join(drawn)}</div>'
