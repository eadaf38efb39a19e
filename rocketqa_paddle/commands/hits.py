"""The command `rocketqa hits`: what a run keeps of its searches, as a run file."""

from pathlib import Path
from typing import Literal

from rocketqa_paddle.data.runs import write_run


def export_hits(hits: str, output: str, format: Literal["tsv", "trec"] = "tsv", k: int | None = None) -> None:
    """Write hits or scores that a run keeps (STEP/NAME.npy) as a run file for other programs.

    Args:
        hits: a file STEP/NAME.npy of a run folder
        output: run file to write
        format: of the run file: `qid TAB pid TAB rank TAB score`, or TREC's six columns
        k: hits a query at most; all of them when empty
    """
    from rocketqa_paddle.data.candidates import Candidates
    from rocketqa_paddle.data.store import Ids
    from rocketqa_paddle.settings import at_least

    at_least(1, k=k)
    path = Path(hits)
    if not path.is_file():
        raise FileNotFoundError(f"{hits}: no such file; expected one such as RUN/step1/hits.dev.npy")
    found = Candidates.load(path, Ids(_corpus(path))).first(k)
    write_run(output, found, format)
    print(f"{sum(map(len, found.values()))} hits of {len(found)} queries in {output}")


def _corpus(hits: Path) -> Path:
    """The folder of the corpus of the run that a file is in.

    Raises:
        ValueError: it is in no run folder.
    """
    from rocketqa_paddle.runs.folder import CONFIG, CORPUS
    from rocketqa_paddle.runtime.yaml_files import read_yaml

    for folder in hits.resolve().parents:
        if (folder / CONFIG).is_file():
            store = read_yaml(folder / CONFIG).get("data", {}).get("store")
            return Path(store) if store else folder / CORPUS
    raise ValueError(f"{hits}: not in a run folder (with {CONFIG}), which has the ids of the passages")
