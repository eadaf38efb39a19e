"""Hugging Face folders of `bert` and `ernie`, those of sentence-transformers and of cross encoders.

Reading and writing need neither transformers nor PyTorch: `config.json`, safetensors and the vocabulary
say everything.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import normalizers
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from rocketqa_paddle.checkpoints.formats.weights import (
    EncoderWeights,
    Names,
    assemble,
    classifier,
    config_values,
    encoder_config,
    encoder_only,
    head_arrays,
    our_section,
)
from rocketqa_paddle.networks.encoders import CROSS, DUAL, Checkpoint
from rocketqa_paddle.networks.ernie import ErnieConfig
from rocketqa_paddle.networks.tokenization import SPECIAL_TOKENS, Tokenizer, read_vocab, write_vocab
from rocketqa_paddle.runtime.storage import read_arrays, read_json, replacing, write_json

CONFIG, WEIGHTS, MODULES = "config.json", "model.safetensors", "modules.json"
NAMES = Names(
    norm="LayerNorm",
    prefix="encoder.layer.{i}",
    layer={
        "attention.query": "attention.self.query",
        "attention.key": "attention.self.key",
        "attention.value": "attention.self.value",
        "attention.output": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "ffn_in": "intermediate.dense",
        "ffn_out": "output.dense",
        "ffn_norm": "output.LayerNorm",
    },
    transposed=True,
)


# Reading ----------------------------------------------------------------------------------------


def read(folder: str | Path) -> Checkpoint:
    """A folder of transformers or sentence-transformers.

    With `modules.json` it is a dual encoder of one tower with that pooling, which reads a passage as one
    text as sentence-transformers does. Without, it is a cross encoder if it has a classifier of one or two
    labels, else a dual encoder that pools `[CLS]`.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: another architecture or module, or a parameter is missing, left over or of another shape.
    """
    folder = Path(folder)
    encoder, pooling, values, sizes, arrays = _parts(folder)
    vocabulary, lower_case = _vocabulary(encoder), _lower_case(encoder)
    ours = our_section(values, encoder / CONFIG)
    settings = ours.get("tokenizer", {"lower_case": lower_case, "one_segment": bool(pooling)})
    lengths = ours.get("lengths", {"longest": min(_max_length(encoder), sizes.max_positions)})
    description = ours or (
        {"model_type": DUAL, "shared": True, "temperature": 1.0, **pooling} if pooling else None
    )
    return assemble(arrays, sizes, description, Tokenizer(vocabulary, **settings), lengths, folder)


def read_encoder(folder: str | Path) -> EncoderWeights:
    """The encoder of such a folder, without pooling and head."""
    encoder, _, _, sizes, arrays = _parts(Path(folder))
    texts = _vocabulary(encoder), _lower_case(encoder)
    return EncoderWeights(sizes, encoder_only(arrays), *texts, *classifier(arrays))


def _parts(
    folder: Path,
) -> tuple[Path, dict[str, Any], dict[str, Any], ErnieConfig, dict[str, np.ndarray]]:
    """Where the encoder is, its pooling if that is told, its `config.json`, sizes and arrays."""
    encoder, pooling = _sentence_transformer(folder) if (folder / MODULES).is_file() else (folder, {})
    values = read_json(_file(encoder, CONFIG))
    sizes = encoder_config(values, encoder / CONFIG)
    arrays = NAMES.ours(read_arrays(_file(encoder, WEIGHTS)), sizes.num_layers)
    return encoder, pooling, values, sizes, arrays


def _file(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        found = f"; there is {other}" if (other := _other_weights(folder)) and name == WEIGHTS else ""
        raise FileNotFoundError(
            f"{folder / name}: not there; needed: {CONFIG}, {WEIGHTS} and vocab.txt or tokenizer.json{found}"
        )
    return folder / name


def _other_weights(folder: Path) -> str | None:
    """What PyTorch's own files are called: pickles, which are not read here."""
    names = ("pytorch_model.bin", "model.safetensors.index.json")
    return next(
        (f"{n}: save the model as one safetensors file first" for n in names if (folder / n).is_file()), None
    )


def _sentence_transformer(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Where the encoder is, and how its states become a vector."""
    modules = _read_list(folder / MODULES)
    kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    values = _optional(folder, "config_sentence_transformers.json")
    if kinds == ["Transformer"] and values.get("model_type") == "CrossEncoder":
        return folder / modules[0]["path"], {}
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ValueError(
            f"{folder / MODULES}: modules {kinds}, expected Transformer, Pooling and perhaps Normalize"
        )
    prompts = values.get("prompts") or {}
    if any(prompts.values()):
        raise ValueError(f"{folder}: prompts {prompts} before the text, which this project does not write")
    pooling = _pooling(read_json(_file(folder / modules[1]["path"], CONFIG)))
    if pooling not in ("cls", "mean"):
        raise ValueError(f"{folder / modules[1]['path']}: pooling {pooling!r}, expected cls or mean alone")
    return folder / modules[0]["path"], {"pooling": pooling, "normalize": "Normalize" in kinds}


def _pooling(values: dict[str, Any]) -> str:
    """`pooling_mode` in newer files; in older ones a switch for each of several."""
    if "pooling_mode" in values:
        return str(values["pooling_mode"])
    chosen = (
        key.removeprefix("pooling_mode_")
        for key, on in values.items()
        if key.startswith("pooling_mode_") and on
    )
    return "+".join({"cls_token": "cls", "mean_tokens": "mean"}.get(mode, mode) for mode in chosen)


def _read_list(path: Path) -> list[dict[str, Any]]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return [{"type": str(value["type"]), "path": str(value["path"])} for value in values]
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{path}: expected a list of modules, each with type and path") from None


def _vocabulary(folder: Path) -> Path:
    for name in ("vocab.txt", "spm.model", "tokenizer.json"):
        if (folder / name).is_file():
            if name == "tokenizer.json":
                read_vocab(folder / name)  # complains before its normalizer does
            return folder / name
    raise FileNotFoundError(f"{folder}: no vocab.txt, tokenizer.json or spm.model")


def _lower_case(folder: Path) -> bool:
    """From `tokenizer_config.json`, or the normalizer in `tokenizer.json`; true where neither says.

    Raises:
        ValueError: accents or Han characters are treated in a way that `Tokenizer` does not know.
    """
    values = _optional(folder, "tokenizer_config.json")
    normalizer = _optional(folder, "tokenizer.json").get("normalizer") or {}
    if not values.get("tokenize_chinese_chars", normalizer.get("handle_chinese_chars", True)):
        raise ValueError(f"{folder}: Han characters are not set apart, which this project always does")
    given = values.get("do_lower_case", normalizer.get("lowercase"))
    if given is None and (folder / "tokenizer.json").is_file():
        raise ValueError(f"{folder}: the normalizer of tokenizer.json is not BERT's: it has no lowercase")
    given = True if given is None else given
    accents = values.get("strip_accents", normalizer.get("strip_accents"))
    if accents not in (None, given):
        raise ValueError(
            f"{folder}: strip_accents={accents} with lower case {given}, expected the same for both"
        )
    return bool(given or _optional(folder, "sentence_bert_config.json").get("do_lower_case"))


def _optional(folder: Path, name: str) -> dict[str, Any]:
    return read_json(folder / name) if (folder / name).is_file() else {}


def _max_length(folder: Path) -> int:
    """The longest text, in tokens: sentence-transformers' own setting, else the tokenizer's, else 512."""
    for name, key in (
        ("sentence_bert_config.json", "max_seq_length"),
        ("tokenizer_config.json", "model_max_length"),
    ):
        value = _optional(folder, name).get(key)
        if isinstance(value, int) and 0 < value <= 512:
            return value
    return 512


# Writing ----------------------------------------------------------------------------------------


def write(checkpoint: Checkpoint, folder: str | Path) -> None:
    """Write a folder of one encoder that transformers and sentence-transformers load.

    A dual encoder's folder has the modules of sentence-transformers; give it queries as they are, and
    passages as pairs `(title, text)`, unless the model reads a passage as one text. A cross encoder's is a
    sequence classifier whose activation is the identity.

    Raises:
        ValueError: the vocabulary is a SentencePiece model, which these two do not read for BERT.
    """
    network, cross = checkpoint.network, checkpoint.kind == CROSS
    kind = "ernie" if network.config.task_types else "bert"
    with replacing(folder, marker=CONFIG) as new:
        values = config_values(checkpoint, kind) | {"position_embedding_type": "absolute"}
        if cross:
            values["sentence_transformers"] = {"activation_fn": "torch.nn.modules.linear.Identity"}
        write_json(new / CONFIG, values)
        arrays = NAMES.theirs(head_arrays(checkpoint), network.config.num_layers, f"{kind}." if cross else "")
        save_file(arrays, new / WEIGHTS, metadata={"format": "pt"})
        _write_tokenizer(checkpoint.tokenizer, max(checkpoint.lengths.values()), new)
        if not cross:
            _write_modules(checkpoint, new)


def _write_tokenizer(tokenizer: Tokenizer, length: int, folder: Path) -> None:
    vocabulary = tokenizer.vocabulary
    fast = FastTokenizer(WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    steps = [normalizers.Replace(" ", "")] if tokenizer.for_cn else []
    lower = tokenizer.lower_case
    bert = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=lower, lowercase=lower
    )
    fast.normalizer = normalizers.Sequence([*steps, bert]) if steps else bert
    fast.pre_tokenizer = BertPreTokenizer()
    fast.post_processor = TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", tokenizer.cls_id), ("[SEP]", tokenizer.sep_id)],
    )
    fast.save(str(folder / "tokenizer.json"))
    write_vocab(folder / "vocab.txt", vocabulary)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "do_lower_case": lower,
        "model_max_length": length,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "split_special_tokens": True,  # a text that says [MASK] means no mask, as in the reference
        **{f"{token.strip('[]').lower()}_token": token for token in SPECIAL_TOKENS if token in vocabulary},
    }
    write_json(folder / "tokenizer_config.json", settings)


def _write_modules(checkpoint: Checkpoint, folder: Path) -> None:
    network, kinds = checkpoint.network, ["Transformer", "Pooling"]
    kinds += ["Normalize"] if network.normalize else []
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{kind}" if i else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(kinds)
    ]
    (folder / MODULES).write_text(json.dumps(modules, indent=2) + "\n", encoding="utf-8")
    for module in modules[1:]:
        (folder / module["path"]).mkdir()
    pooling = {
        "word_embedding_dimension": network.config.hidden_size,
        "pooling_mode_cls_token": network.pooling == "cls",
        "pooling_mode_mean_tokens": network.pooling == "mean",
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
    write_json(folder / modules[1]["path"] / CONFIG, pooling)
    longest = max(checkpoint.lengths.values())
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": longest, "do_lower_case": False})
    similarity = "cosine" if network.normalize else "dot"
    write_json(
        folder / "config_sentence_transformers.json", {"prompts": {}, "similarity_fn_name": similarity}
    )
