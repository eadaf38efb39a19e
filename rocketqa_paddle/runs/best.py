"""The folder `best/` of a run: the search engine made of the models that are best on dev."""

import shutil
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from typing import TypedDict

from rocketqa_paddle import checkpoints
from rocketqa_paddle.records import Model
from rocketqa_paddle.runs.artefacts import ModelHandle, TrainedModel
from rocketqa_paddle.runtime import distributed
from rocketqa_paddle.runtime.folders import Contents, remove, replacing, sync
from rocketqa_paddle.runtime.storage import write_json
from rocketqa_paddle.runtime.typed import read_typed
from rocketqa_paddle.search import engine, index
from rocketqa_paddle.search.retrieval import CorpusIndex
from rocketqa_paddle.settings import RunSettings

RECORD, INDEX = "steps.json", "index"
_PARTS: dict[str, Contents] = {
    **{kind.value: checkpoints.CONTENTS for kind in Model},
    INDEX: index.CONTENTS,
}


class Kept(TypedDict):
    """Which model the folder has."""

    step: str
    fingerprint: str
    digest: str


class Best:
    """What the folder `best/` has, and which step of the run folder it came from (`best/steps.json`).

    The settings say which kind of index it has, and whether with BM25.

    Raises:
        ValueError: the folder holds something that we did not write, where a model or the index goes.
    """

    def __init__(self, run: Path, folder: Path, settings: RunSettings) -> None:
        self.run, self.folder, path = run, folder, folder / RECORD
        self._kind, self._bm25 = settings.index, settings.evaluation.bm25
        for part, contents in _PARTS.items():
            contents.check(folder / part)
        remedy = f"remove {path}, and the folder is made again"
        kept = read_typed(path, dict[str, Kept], remedy) if path.is_file() else {}
        self._models = {name: kept[name] for name in (kind.value for kind in Model) if name in kept}
        self._whole: set[str] = set()  # the models that were written, or looked through, by this process

    def has(self, model: ModelHandle) -> bool:
        """Whether this very model is there, whole, and a retriever with an index as the settings say."""
        name = model.kind.value
        if not self.names(model):
            return False
        if name not in self._whole and self._is_whole(model.kind):
            self._whole.add(name)
        return name in self._whole

    def names(self, model: ModelHandle) -> bool:
        """Whether the record speaks of this very model; nothing else is read."""
        return self._models.get(model.kind.value, {}).get("fingerprint") == model.fingerprint

    def _is_whole(self, kind: Model) -> bool:
        kept = self.folder / INDEX
        indexed = kind is Model.RERANKER or index.is_whole(kept, self._kind, with_bm25=self._bm25)
        return indexed and checkpoints.is_whole(self.folder / kind.value, self._models[kind.value]["digest"])

    def keep(self, model: ModelHandle, why: str, digest: str, corpus: CorpusIndex | None = None) -> None:
        """Copy a model into the folder, a retriever together with its index.

        The two take the places of older ones one right after the other, when both are written. The model's
        card says why it was chosen; `digest` is the model's.
        """
        name = model.kind.value
        self._forget(name)
        with ExitStack() as stack:
            if distributed.is_main():
                new = stack.enter_context(replacing(self.folder / name, checkpoints.CONTENTS))
                if isinstance(model, TrainedModel):
                    shutil.copytree(self.run / model.place, new, dirs_exist_ok=True)
                else:
                    checkpoints.write(model.value(), new, "The initial checkpoint, not trained.")
                checkpoints.set_in_card(new, "Chosen:", why)
                sync(new)  # the long part, so that the two renames follow each other at once
            if corpus is not None:
                corpus.save(self.folder / INDEX, digest, self._kind, bm25=self._bm25)
        self._models[name] = {"step": model.step, "fingerprint": model.fingerprint, "digest": digest}
        self._whole.add(name)
        self._write()

    def rerank_to(self, depth: int) -> None:
        """Write how many passages a search re-ranks unless it says otherwise; 0 if there is no re-ranker."""
        if distributed.is_main():
            engine.write_depth(self.folder, depth)
        distributed.barrier()

    def discard_others(self, models: Collection[ModelHandle]) -> None:
        """Take away what is none of these models: it was made of other values, or is not wanted."""
        fingerprints = {(model.kind.value, model.fingerprint) for model in models}
        for name, known in list(self._models.items()):
            if (name, known["fingerprint"]) not in fingerprints:
                self._forget(name)
                if distributed.is_main():
                    for part in (name, INDEX) if name == Model.RETRIEVER.value else (name,):
                        remove(self.folder / part, _PARTS[part])
        distributed.barrier()

    def _forget(self, name: str) -> None:
        self._whole.discard(name)
        if self._models.pop(name, None):
            self._write()

    def _write(self) -> None:
        if distributed.is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / RECORD, self._models)
        distributed.barrier()
