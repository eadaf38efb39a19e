"""The models that a run begins with."""

from pathlib import Path
from typing import Any

import paddle

from rocketqa_paddle.checkpoints import initial
from rocketqa_paddle.data.dataset import Corpus
from rocketqa_paddle.networks.encoders import Checkpoint, describe
from rocketqa_paddle.records import Model
from rocketqa_paddle.runs.artefacts import InitialModel, with_effect
from rocketqa_paddle.runtime import distributed
from rocketqa_paddle.search.index import check_factory, check_size
from rocketqa_paddle.settings import RunSettings


class Initials:
    """Reads initial checkpoints, each once, and makes the networks of a run from them.

    The vocabulary of a network from scratch is trained on the corpus and written into the folder `work`.
    """

    def __init__(self, settings: RunSettings, corpus: Corpus, work: Path) -> None:
        self.settings, self.corpus, self.work = settings, corpus, work
        self._read: dict[str, initial.Initial] = {}

    def retriever(self, init: str | None = None) -> InitialModel:
        """The dual encoder before any training, from the run's initial checkpoint or from another.

        Raises:
            ValueError: its vectors cannot be searched as the settings say.
        """
        s = self.settings.retriever
        self._check_index(init or s.init)
        names = ("for_cn", "shared", "pooling", "normalize", "temperature", "dropout")
        network = {name: getattr(s, name) for name in names} | {"use_recompute": s.recompute}
        lengths = {"query_length": s.query_length, "passage_length": s.passage_length}
        return self._model(Model.RETRIEVER, init or s.init, **lengths, **network)

    def reranker(self) -> InitialModel:
        """The cross encoder before any training."""
        s = self.settings.reranker
        network = {name: getattr(s, name) for name in ("length", "for_cn", "head", "dropout")}
        return self._model(Model.RERANKER, s.init, use_recompute=s.recompute, **network)

    def _model(self, kind: Model, init: str, **network: Any) -> InitialModel:
        def build() -> Checkpoint:
            weights = self._weights(init)
            paddle.seed(self.settings.seed)
            return getattr(initial, kind.value)(weights, **network)

        settings = getattr(self.settings, kind.value)
        return InitialModel(kind, {**with_effect(settings), **self._content(init)}, build)

    def _check_index(self, init: str) -> None:
        """Refuse an index that cannot be made of a retriever's vectors, or of the smallest part of a rank."""
        if (kind := self.settings.index).is_exact:
            return
        dimension, ranks = self._dimension(init), distributed.world_size()
        try:
            check_factory(kind, dimension)
            check_size(kind, dimension, len(self.corpus) // ranks)
        except ValueError as error:
            parts = f"; each of {ranks} processes searches its part of the corpus" if ranks > 1 else ""
            raise ValueError(f"index.{error}{parts}") from None

    def _dimension(self, init: str) -> int:
        """The length of a vector."""
        if self._is_size(init):
            return initial.SIZES[init]["hidden_size"]
        weights = self._weights(init)
        config = weights.network.config if isinstance(weights, Checkpoint) else weights.config
        return config.hidden_size

    def check_as_it_is(self, init: str, setting: str) -> None:
        """Refuse a finished retriever that the run's settings would turn into another.

        Raises:
            ValueError: tells what differs.
        """
        given = None if init in initial.SIZES else self._weights(init)
        if not isinstance(given, Checkpoint):
            return
        models = given, self.retriever(init).value()
        is_now, would_be = ({**describe(model.network), **model.lengths} for model in models)
        differ = [
            f"{k} {is_now.get(k)}, not {value}" for k, value in would_be.items() if is_now.get(k) != value
        ]
        if differ:
            raise ValueError(
                f"{setting}: {init} is to serve as it is, but has {'; '.join(differ)}: change the settings "
                "of retriever, or train it further (queries)"
            )

    def indexes(self) -> list[Path]:
        """The indexes that lie beside the initial checkpoints."""
        beside = (Path(init).parent / "index" for init in self._read)
        return [index for index in beside if (index / "meta.json").is_file()]

    def _content(self, init: str) -> dict[str, Any]:
        """An initial checkpoint by its content; that of a size from scratch follows from the corpus."""
        if self._is_size(init):
            return {"size": init, "vocabulary": self.corpus}
        return {"checkpoint": f"initial checkpoint {initial.fingerprint(self._weights(init))}"}

    def _is_size(self, init: str) -> bool:
        """Whether a network is to begin from scratch."""
        return init in initial.SIZES and not Path(init).is_dir()

    def _weights(self, init: str) -> initial.Initial:
        if init not in self._read:
            run = Path(self.settings.output).resolve()
            if Path(init).exists() and run in (Path(init).resolve(), *Path(init).resolve().parents):
                raise ValueError(
                    f"init: {init} lies in the run folder {run}, where this run would replace it: "
                    "copy it elsewhere, or choose another --output"
                )
            texts = (f"{passage.title} {passage.text}" for passage in self.corpus.rows)
            with distributed.main_first():
                self._read[init] = initial.read(init, texts, self.work)
        return self._read[init]
