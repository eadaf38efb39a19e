"""Hugging Face folders of `bert` and `ernie`, those of sentence-transformers, and cross encoders.

Neither transformers nor PyTorch is needed: `config.json`, safetensors and the vocabulary hold everything.
"""

import json
import reprlib
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer
from tokenizers import normalizers
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from rocketqa_paddle.checkpoints.fields import field
from rocketqa_paddle.checkpoints.formats.config import config_values, encoder_config, first_file
from rocketqa_paddle.checkpoints.formats.names import HUGGINGFACE
from rocketqa_paddle.checkpoints.formats.weights import ModelFiles, with_pooler
from rocketqa_paddle.networks.encoders import CROSS, Checkpoint, DualEncoder
from rocketqa_paddle.networks.tokenization import Tokenizer
from rocketqa_paddle.networks.vocabulary import SPECIAL_TOKENS, read_vocab, write_vocab
from rocketqa_paddle.runtime.storage import read_arrays, read_json, save_arrays, write_json

CONFIG, WEIGHTS, MODULES = "config.json", "model.safetensors", "modules.json"
TOKENIZER, TRANSFORMERS = "tokenizer_config.json", "config_sentence_transformers.json"
WRITTEN = (
    *(CONFIG, WEIGHTS, MODULES, "vocab.txt", "tokenizer.json", TOKENIZER),
    *("1_Pooling/config.json", "2_Normalize"),
    *("sentence_bert_config.json", TRANSFORMERS),
)
"""The names that `write` gives."""
_LONGEST = 255  # characters of a name of a module or its folder


def read(folder: Path) -> ModelFiles:
    """Read a folder of transformers or sentence-transformers.

    With `modules.json` it is a dual encoder of one tower with the pooling that is listed there, which reads a
    passage as one text as sentence-transformers does.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: it is another architecture, or has other modules or another tokenizer.
    """
    encoder, pooling = _read_modules(folder) if (folder / MODULES).is_file() else (folder, {})
    values = read_json(_existing(encoder, CONFIG))
    sizes = encoder_config(values, encoder / CONFIG)
    weights = _existing(encoder, WEIGHTS)
    arrays = HUGGINGFACE.to_native(read_arrays(weights), sizes.num_layers, weights)
    vocabulary = first_file(encoder, ("vocab.txt", "spm.model", "tokenizer.json"), "save the tokenizer there")
    if vocabulary.suffix == ".json":
        read_vocab(vocabulary)  # refuses other kinds of tokenizers by their names
    return ModelFiles(
        folder, values, sizes, arrays, vocabulary, _lower_case(encoder), _max_length(encoder), pooling
    )


def _existing(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        others = ("pytorch_model.bin", "model.safetensors.index.json") if name == WEIGHTS else ()
        found = [f"there is {other}" for other in others if (folder / other).is_file()]
        raise FileNotFoundError(
            f"{folder / name}: not there; needed: {CONFIG}, {WEIGHTS} and vocab.txt or tokenizer.json"
            + (f"; {found[0]}: save the model as one safetensors file first" if found else "")
        )
    return folder / name


def _read_modules(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return where the encoder is, and how its states become a vector; a cross encoder has no pooling."""
    modules, values = _module_list(folder / MODULES), _optional(folder, TRANSFORMERS)
    kinds, encoder = [kind for kind, _ in modules], folder / modules[0][1] if modules else folder
    if kinds == ["Transformer"] and values.get("model_type") == "CrossEncoder":
        return encoder, {}
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        expected = "expected Transformer, Pooling and perhaps Normalize"
        raise ValueError(f"{folder / MODULES}: modules {kinds}, {expected}")
    settings = folder / TRANSFORMERS
    if any((prompts := field(values, "prompts", dict, settings, default={})).values()):
        given = reprlib.repr(prompts)
        raise ValueError(f"{folder}: prompts {given} before the text, which this project does not write")
    normalize = "Normalize" in kinds or _is_cosine(values, settings)
    return encoder, {"pooling": _pooling(folder / modules[1][1]), "normalize": normalize}


def _is_cosine(values: dict[str, Any], source: Path) -> bool:
    """Tell whether the vectors are to be compared by their cosine, as `similarity_fn_name` says.

    Where it is missing or null, sentence-transformers' `similarity` takes the cosine. But nothing was chosen
    there: files from before version 3 have no such key, and many of their models were trained for the inner
    product of what `encode` returns. So the vectors stay as `encode` returns them.
    """
    name = field(values, "similarity_fn_name", str, source, default="dot")
    if name not in ("cosine", "dot", "dot_product"):
        given = f"similarity_fn_name is {reprlib.repr(name)}"
        raise ValueError(f"{source}: {given}, expected 'cosine' or 'dot': an index searches by inner product")
    return name == "cosine"


def _module_list(path: Path) -> list[tuple[str, str]]:
    """Read the class of every module, without its Python package, and its folder."""
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
        found = [(module["type"].rpartition(".")[2], module["path"]) for module in modules]
        if any(not isinstance(part, str) or len(part) > _LONGEST for module in found for part in module):
            raise ValueError
        return found
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ValueError(f"{path}: expected a list of modules, each with type and path") from None


def _pooling(folder: Path) -> str:
    values = read_json(_existing(folder, CONFIG))
    prefix, short = "pooling_mode_", {"cls_token": "cls", "mean_tokens": "mean"}
    modes = [key.removeprefix(prefix) for key, on in values.items() if key.startswith(prefix) and on]
    switched_on = "+".join(short.get(mode, mode) for mode in modes)  # older files have a switch for each
    pooling = values.get("pooling_mode", switched_on)
    if pooling not in ("cls", "mean"):
        raise ValueError(f"{folder}: pooling {reprlib.repr(pooling)}, expected cls or mean alone")
    return pooling


def _lower_case(folder: Path) -> bool:
    """Tell whether text is lower-cased, as `tokenizer_config.json` or `tokenizer.json` says, else yes.

    Raises:
        ValueError: accents or Han characters are treated in a way that `Tokenizer` does not know.
    """
    values, normalizer = _optional(folder, TOKENIZER), _normalizer(folder / "tokenizer.json")
    own = _optional(folder, "sentence_bert_config.json")
    for key in ("tokenize_chinese_chars", "do_lower_case", "strip_accents"):
        field(values, key, bool, folder / TOKENIZER, default=None)
    if not values.get("tokenize_chinese_chars", normalizer.get("handle_chinese_chars", True)):
        raise ValueError(f"{folder}: Han characters are not set apart, which this project always does")
    given = values.get("do_lower_case", normalizer.get("lowercase"))
    if given is None and (folder / "tokenizer.json").is_file():
        raise ValueError(f"{folder}: the normalizer of tokenizer.json is not BERT's: it has no lowercase")
    given = True if given is None else given
    accents = values.get("strip_accents", normalizer.get("strip_accents"))
    if accents not in (None, given):
        problem = f"strip_accents={accents} with lower case {given}"
        raise ValueError(f"{folder}: {problem}, expected the same for both")
    return given or field(own, "do_lower_case", bool, folder / "sentence_bert_config.json", default=False)


def _normalizer(path: Path) -> dict[str, Any]:
    """Return the normalizer in a `tokenizer.json`, whose switches are true, false or null."""
    values = read_json(path) if path.is_file() else {}
    normalizer = field(values, "normalizer", dict, path, default={})
    for key in ("handle_chinese_chars", "lowercase", "strip_accents"):
        field(normalizer, key, bool, path, default=None)
    return normalizer


def _optional(folder: Path, name: str) -> dict[str, Any]:
    return read_json(folder / name) if (folder / name).is_file() else {}


def _max_length(folder: Path) -> int:
    """Return the largest number of tokens: sentence-transformers' setting, else the tokenizer's, else 512."""
    own = _optional(folder, "sentence_bert_config.json").get("max_seq_length")
    given = (own, _optional(folder, TOKENIZER).get("model_max_length"))
    return next((length for length in given if type(length) is int and 0 < length <= 512), 512)


# Writing ----------------------------------------------------------------------------------------


def write(checkpoint: Checkpoint, folder: Path) -> None:
    """Write one encoder into an empty folder, for transformers and sentence-transformers to load.

    A dual encoder's folder has the modules of sentence-transformers. Give it queries as they are, and
    passages as pairs `(title, text)` unless the model reads a passage as one text. A cross encoder's folder
    is a sequence classifier whose activation is the identity.

    Raises:
        ValueError: the vocabulary is a SentencePiece model, which these libraries do not read for BERT.
    """
    write_settings(checkpoint, folder)
    base = f"{_architecture(checkpoint)}." if checkpoint.kind == CROSS else ""
    layers = checkpoint.network.config.num_layers
    save_arrays(folder / WEIGHTS, HUGGINGFACE.to_foreign(with_pooler(checkpoint), layers, base), format="pt")


def _architecture(checkpoint: Checkpoint) -> str:
    return "ernie" if checkpoint.network.config.task_types else "bert"


def write_settings(checkpoint: Checkpoint, folder: Path) -> None:
    """Write all that `write` writes but the weights."""
    network, cross = checkpoint.network, checkpoint.kind == CROSS
    values = config_values(checkpoint, _architecture(checkpoint)) | {"position_embedding_type": "absolute"}
    if cross:
        values["sentence_transformers"] = {"activation_fn": "torch.nn.modules.linear.Identity"}
    longest = max(checkpoint.lengths.values())
    write_json(folder / CONFIG, values)
    _write_tokenizer(checkpoint.tokenizer, longest, folder)
    if not cross:
        _write_modules(network, longest, folder)


def _write_tokenizer(tokenizer: Tokenizer, length: int, folder: Path) -> None:
    _fast_tokenizer(tokenizer).save(str(folder / "tokenizer.json"))
    write_vocab(folder / "vocab.txt", tokenizer.vocabulary)
    special = [token for token in SPECIAL_TOKENS if token in tokenizer.vocabulary]
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "do_lower_case": tokenizer.lower_case,
        "model_max_length": length,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "split_special_tokens": True,  # so that "[MASK]" in a text is text, as in the reference
        **{f"{token.strip('[]').lower()}_token": token for token in special},
    }
    write_json(folder / TOKENIZER, settings)


def _fast_tokenizer(tokenizer: Tokenizer) -> FastTokenizer:
    """Return the tokenizer in the form of the library `tokenizers`, with its packing."""
    lower = tokenizer.lower_case
    fast = FastTokenizer(WordPiece(tokenizer.vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    without_spaces = [normalizers.Replace(" ", "")] if tokenizer.for_cn else []
    bert = normalizers.BertNormalizer(strip_accents=lower, lowercase=lower)
    fast.normalizer = normalizers.Sequence([*without_spaces, bert]) if without_spaces else bert
    fast.pre_tokenizer = BertPreTokenizer()
    fast.post_processor = TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", tokenizer.cls_id), ("[SEP]", tokenizer.sep_id)],
    )
    return fast


def _write_modules(network: DualEncoder, length: int, folder: Path) -> None:
    """Write what sentence-transformers needs beside the encoder."""
    kinds = ["Transformer", "Pooling", *["Normalize"] * network.normalize]
    paths = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds) if i)]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    (folder / MODULES).write_text(json.dumps(modules, indent=2) + "\n", encoding="utf-8")
    for path in paths[1:]:
        (folder / path).mkdir()
    pooling = {
        "word_embedding_dimension": network.config.hidden_size,
        "pooling_mode_cls_token": network.pooling == "cls",
        "pooling_mode_mean_tokens": network.pooling == "mean",
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
    write_json(folder / paths[1] / CONFIG, pooling)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": False})
    values = {"prompts": {}, "similarity_fn_name": "cosine" if network.normalize else "dot"}
    write_json(folder / TRANSFORMERS, values)
