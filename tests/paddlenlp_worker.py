"""Run by test_paddlenlp.py with the interpreter of an environment that has the extra `paddlenlp`.

Every case compares PaddleNLP with this package on random weights. For each, it prints a line of JSON: the
case's name and the largest difference, relative to the largest number.
"""

from __future__ import annotations

import json
import sys
import traceback
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import paddle
import reference
import toy
from paddlenlp import transformers
from paddlenlp.transformers.semantic_search.modeling import ErnieCrossEncoder, ErnieDualEncoder, ErnieEncoder
from reference import Sizes

from rocketqa_paddle.checkpoints import convert
from rocketqa_paddle.checkpoints.formats import paddlenlp
from rocketqa_paddle.networks import forward
from rocketqa_paddle.networks.encoders import Checkpoint, CrossEncoder, DualEncoder
from rocketqa_paddle.networks.parameters import load_arrays
from rocketqa_paddle.networks.tokenization import Tokenizer

QUERIES = ["what is the moon ?", "Paris: capital " * 9, "  TIDES   café 检索", "x" * 101, ""]
TITLES = ["", "Paris", "the moon", "北京", "a"]
TEXTS = ["a satellite of the earth .", "the louvre, " * 30, "tides\tfollow its pull", "", "Üb naïve e\u0301"]
AWKWARD = [  # no symbols: PaddleNLP sets them apart as punctuation, the toolkit does not
    "Café NAÏVE Ünïcödé e\u0301 o\u0308",
    "北京Paris检索,稠密。㐀豈",
    "a.b,c!d?e(f)g-h_i$j%k^l`m~n|o—p…q“r”s",
    "a\x00b\x07c\u200bd\ufeffe",
    "tab\tnew\nline\r\nend\u3000wide\u00a0hard",
    "한국어 ญี่ปุ่น हिन्दी العَرَبِية",
    "x" * 100,
    "MiXeD CaSe  ##a",
]
LENGTH = 33


def vocabulary() -> list[str]:
    """Every character of the texts, so that hardly a word is unknown."""
    joined = "".join([*QUERIES, *TITLES, *TEXTS, *AWKWARD])
    forms = joined + joined.lower()
    forms += unicodedata.normalize("NFD", forms)
    letters = sorted({c for c in forms if c.isprintable() and not c.isspace()})
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]


WORDS = vocabulary()


def write_words(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS), encoding="utf-8")
    return folder / "vocab.txt"


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    assert np.ptp(expected) > 1e-2
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def tokens(tokenizer: Any, first: Sequence[str], second: Sequence[str] | None = None) -> dict:
    """A padded batch, by PaddleNLP's tokenizer; without mask, as its own models take it."""
    rows = [
        tokenizer(one, two, max_length=LENGTH, truncation=True)
        for one, two in zip(first, second or [None] * len(first), strict=True)
    ]
    lengths = {len(row["input_ids"]) for row in rows}
    assert len(lengths) > 1 and max(lengths) == LENGTH  # some are padded, some are cut
    return {
        name: paddle.to_tensor([row[name] + [0] * (LENGTH - len(row[name])) for row in rows])
        for name in ("input_ids", "token_type_ids")
    }


def pair_texts() -> list[str]:
    return [f"{title} {text}" for title, text in zip(TITLES, TEXTS, strict=True)]


def native_outputs(checkpoint: Checkpoint) -> np.ndarray:
    """Vectors of queries and passages, or scores, at the length of this file."""
    checkpoint.lengths.update(dict.fromkeys(checkpoint.lengths, LENGTH))
    if checkpoint.kind == "cross_encoder":
        return forward.score_pairs(checkpoint, QUERIES, TITLES, TEXTS)
    queries = forward.encode_queries(checkpoint, QUERIES)
    passages = forward.encode_passages(checkpoint, TITLES, TEXTS) * checkpoint.network.temperature
    return np.concatenate([queries, passages])


def foreign_states(model: Any, tokenizer: Any, sides: Sequence[str] = ("query", "passage")) -> list[Any]:
    """States and masks of the queries, and of the passages as pairs."""
    found = []
    with paddle.no_grad():
        for side in sides:
            batch = tokens(tokenizer, QUERIES) if side == "query" else tokens(tokenizer, TITLES, TEXTS)
            states = model(batch["input_ids"], batch["token_type_ids"])[0].numpy()
            found.append((states, (batch["input_ids"] != 0).numpy()))
    return found


def foreign_scores(model: Any, tokenizer: Any) -> np.ndarray:
    batch = tokens(tokenizer, QUERIES, pair_texts())
    with paddle.no_grad():
        logits = model(batch["input_ids"], batch["token_type_ids"]).numpy()
    return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits[:, 0]


# From PaddleNLP ---------------------------------------------------------------------------------


def randomise(model: Any) -> None:
    """Every parameter; embeddings so small that the epsilon of the first norm shows."""
    with paddle.no_grad():
        for name, parameter in model.named_parameters():
            moved = parameter + 0.3 * paddle.randn(parameter.shape)
            parameter.set_value(0.01 * moved if "_embeddings" in name else moved)
    model.eval()


def made(kind: str, folder: Path, lower: bool = True, safe: bool = False, **config: Any) -> tuple[Any, Any]:
    """A random model of PaddleNLP and its tokenizer, saved in a folder."""
    family = "Ernie" if kind.startswith("Ernie") else "Bert"
    sizes = {
        "vocab_size": len(WORDS),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "type_vocab_size": 4,
    }
    model = getattr(transformers, kind)(getattr(transformers, f"{family}Config")(**(sizes | config)))
    randomise(model)
    model.save_pretrained(str(folder), safe_serialization=safe)
    vocab = write_words(folder)
    tokenizer = getattr(transformers, f"{family}Tokenizer")(str(vocab), do_lower_case=lower)
    tokenizer.save_pretrained(str(folder))
    return model, tokenizer


def encoder_from(kind: str, folder: Path, **settings: Any) -> float:
    made(kind, folder, **settings)
    model = transformers.AutoModel.from_pretrained(str(folder))
    model.eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    expected = np.concatenate([states[:, 0] for states, _ in foreign_states(model, tokenizer)])
    return relative(native_outputs(convert.read(folder)), expected)


def classifier_from(kind: str, folder: Path, **settings: Any) -> float:
    model, tokenizer = made(kind, folder, **settings)
    return relative(native_outputs(convert.read(folder)), foreign_scores(model, tokenizer))


# To PaddleNLP -----------------------------------------------------------------------------------


def variables(seed: int, **changes: Any) -> tuple[Sizes, dict[str, np.ndarray]]:
    sizes = Sizes(
        **(
            {
                "vocab": len(WORDS),
                "hidden": 32,
                "layers": 2,
                "heads": 4,
                "ffn": 48,
                "positions": 64,
                "sentence_types": 2,
                "epsilon": 1e-12,
            }
            | changes
        )
    )
    found = reference.random_variables(sizes, np.random.default_rng(seed))
    return sizes, {n: a * np.float32(0.01) if "embedding" in n else a for n, a in found.items()}


def dual_to(
    folder: Path, shared: bool = True, pooling: str = "cls", lower: bool = True, **sizes: Any
) -> float:
    chosen, _ = variables(0, **sizes)
    network = DualEncoder(
        toy.ernie_config(chosen, initializer_range=0.3), shared=shared, pooling=pooling, temperature=0.5
    )
    for seed, tower in enumerate((network.query, network.passage)):
        load_arrays(tower, reference.for_package(variables(seed, **sizes)[1], chosen), "oracle")
    network.eval()
    tokenizer = Tokenizer(write_words(folder / "own"), lower_case=lower)
    checkpoint = Checkpoint(network, tokenizer, {"query": LENGTH, "passage": LENGTH})
    convert.write(checkpoint, folder / "nlp", "paddlenlp")
    expected = []
    for side in ("query", "passage"):
        written = str(folder / "nlp" if shared else folder / "nlp" / side)
        model = transformers.AutoModel.from_pretrained(written)
        assert type(model).__name__ == ("BertModel" if chosen.epsilon != 1e-12 else "ErnieModel")
        model.eval()
        words = transformers.AutoTokenizer.from_pretrained(written)
        [(states, mask)] = foreign_states(model, words, [side])
        mean = (states * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
        expected.append(states[:, 0] if pooling == "cls" else mean)
    return relative(native_outputs(checkpoint), np.concatenate(expected))


def cross_to(folder: Path, head: str, **sizes: Any) -> float:
    chosen, held = variables(0, **sizes)
    network = CrossEncoder(toy.ernie_config(chosen, initializer_range=0.3), head=head, dropout=0.0)
    load_arrays(network.ernie, reference.for_package(held, chosen), "oracle")
    for layer in (network.pooler, network.output):
        if layer is not None:
            layer.bias.set_value(paddle.randn(layer.bias.shape))
    network.eval()
    checkpoint = Checkpoint(network, Tokenizer(write_words(folder / "own")), {"pair": LENGTH})
    convert.write(checkpoint, folder / "nlp", "paddlenlp")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(str(folder / "nlp"))
    model.eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder / "nlp"))
    return relative(native_outputs(checkpoint), foreign_scores(model, tokenizer))


# Tokenizers and names ---------------------------------------------------------------------------


def ids(folder: Path, kind: str, lower: bool) -> float:
    """The share of texts whose ids differ."""
    _, tokenizer = made(f"{kind}Model", folder, lower=lower)
    native = convert.read(folder).tokenizer
    assert native.lower_case == lower
    different = 0
    for first, second in zip(AWKWARD, reversed(AWKWARD), strict=True):
        expected = tokenizer(first)["input_ids"]
        [packed] = native.pack_queries([first], 999)
        different += packed.token_ids != expected
        expected = tokenizer(first, second)
        [packed] = native.pack_passages([first], [second], 999)
        different += packed != (expected["input_ids"], expected["token_type_ids"])
    return different / len(AWKWARD)


def listed(folder: Path) -> float:
    wanted = {"ernie-1.0", "ernie-2.0-base-en", "ernie-3.0-base-zh", "bert-base-uncased"}
    for stem in ("rocketqa-zh-dureader", "rocketqa-v1-marco", "rocketqa-zh-base", "rocketqav2-en-marco"):
        wanted |= {f"{stem}-query-encoder", f"{stem}-para-encoder"}
    wanted |= {"rocketqa-zh-dureader-cross-encoder", "rocketqav2-en-marco-cross-encoder"}
    assert not wanted - paddlenlp.names(), wanted - paddlenlp.names()
    assert convert.find("rocketqa-zh-nano-query-encoder").format is None
    return 0.0


@contextmanager
def fetched_from(folder: Path) -> Iterator[None]:
    """Let `from_pretrained` take a folder `folder/NAME` in place of what it would download."""

    def local(plain: Callable, name: str, **settings: Any) -> Any:
        return plain(str(folder / name), **settings)

    with ExitStack() as stack:
        for cls in (transformers.AutoModel, transformers.AutoTokenizer, ErnieEncoder):
            replaced = partial(local, cls.from_pretrained)
            stack.enter_context(patch.object(cls, "from_pretrained", replaced))
        yield


def towers_by_name(folder: Path, stem: str, reinitialize: bool = False, **config: Any) -> float:
    """As `ErnieDualEncoder` computes them, whose states of `[CLS]` are the vectors."""
    sides = {"query": f"{stem}-query-encoder", "passage": f"{stem}-para-encoder"}
    for name in sides.values():
        _, tokenizer = made("ErnieModel", folder / name, **config)
    model = ErnieDualEncoder(*(str(folder / name) for name in sides.values()), reinitialize=reinitialize)
    model.eval()
    with paddle.no_grad():
        query = model.get_pooled_embedding(**tokens(tokenizer, QUERIES))
        passage = model.get_pooled_embedding(**tokens(tokenizer, TITLES, TEXTS), is_query=False)
    with fetched_from(folder):
        one, other = (convert.read(name, kind="dual_encoder") for name in sides.values())
    assert one.digest() == other.digest()
    assert not one.network.shared
    return relative(native_outputs(one), np.concatenate([query.numpy(), passage.numpy()]))


def reranker_by_name(folder: Path, name: str, head: str, matching: str, v2: bool) -> float:
    """As PaddleNLP's `TextSimilarityTask` builds and calls `ErnieCrossEncoder`."""
    labels = 1 if v2 else 2
    _, tokenizer = made("ErnieForSequenceClassification", folder / name, num_labels=labels)
    model = ErnieCrossEncoder(str(folder / name), num_classes=labels, reinitialize=v2)
    model.eval()
    with paddle.no_grad():
        found = getattr(model, matching)(**tokens(tokenizer, QUERIES, pair_texts())).numpy().reshape(-1)
    expected = np.log(found / (1 - found)) if matching == "matching" else found
    with fetched_from(folder):
        checkpoint = convert.read(name, kind="cross_encoder")
    assert checkpoint.network.head == head, checkpoint.network.head
    return relative(native_outputs(checkpoint), expected)


def encoder_by_name(folder: Path) -> float:
    made("ErnieModel", folder / "ernie-2.0-base-en", use_task_id=True)
    model = transformers.ErnieModel.from_pretrained(str(folder / "ernie-2.0-base-en"))
    model.eval()
    tokenizer = transformers.ErnieTokenizer.from_pretrained(str(folder / "ernie-2.0-base-en"))
    with fetched_from(folder):
        checkpoint = convert.read("ernie-2.0-base-en")
        assert convert.read_encoder("ernie-2.0-base-en").config.task_types == 3
    expected = np.concatenate([states[:, 0] for states, _ in foreign_states(model, tokenizer)])
    return relative(native_outputs(checkpoint), expected)


TASKS = {"task_types": 3, "sentence_types": 4}
CLASSIFIERS = ("ErnieForSequenceClassification", "BertForSequenceClassification")
CASES: dict[str, Callable[[Path], float]] = {
    "from ErnieModel": partial(encoder_from, "ErnieModel"),
    "from ErnieModel, task types": partial(encoder_from, "ErnieModel", use_task_id=True),
    "from ErnieModel, relu": partial(encoder_from, "ErnieModel", hidden_act="relu"),
    "from ErnieModel, epsilon in vain": partial(encoder_from, "ErnieModel", layer_norm_eps=1e-5),
    "from ErnieModel, safetensors": partial(encoder_from, "ErnieModel", safe=True, use_task_id=True),
    "from ErnieModel, cased": partial(encoder_from, "ErnieModel", lower=False),
    "from ErnieForMaskedLM": partial(encoder_from, "ErnieForMaskedLM", use_task_id=True),
    "from BertModel": partial(encoder_from, "BertModel"),
    "from BertModel, epsilon 1e-5": partial(encoder_from, "BertModel", layer_norm_eps=1e-5),
    **{
        f"from {kind}, labels {labels}": partial(classifier_from, kind, num_labels=labels)
        for kind in CLASSIFIERS
        for labels in (1, 2)
    },
    "from ErnieForSequenceClassification, task types": partial(
        classifier_from, CLASSIFIERS[0], num_labels=2, use_task_id=True
    ),
    "to ErnieModel": dual_to,
    "to ErnieModel, task types": partial(dual_to, **TASKS),
    "to ErnieModel, two towers, cased": partial(dual_to, shared=False, lower=False, **TASKS),
    "to BertModel": partial(dual_to, epsilon=1e-5),
    "to BertModel, mean": partial(dual_to, epsilon=1e-3, pooling="mean", activation="relu"),
    **{
        f"to {'Bert' if epsilon else 'Ernie'}ForSequenceClassification, {head}": partial(
            cross_to, head=head, **epsilon
        )
        for head in ("logit", "classes", "pooled_logit")
        for epsilon in ({}, {"epsilon": 1e-5})
    },
    "to ErnieForSequenceClassification, logit, task types": partial(cross_to, head="logit", **TASKS),
    **{
        f"ids of {kind}Tokenizer, {'un' if lower else ''}cased": partial(ids, kind=kind, lower=lower)
        for kind in ("Ernie", "Bert")
        for lower in (True, False)
    },
    "names": listed,
    "ernie-2.0-base-en": encoder_by_name,
    "rocketqa-zh-base": partial(towers_by_name, stem="rocketqa-zh-base", use_task_id=True),
    "rocketqav2-en-marco": partial(towers_by_name, stem="rocketqav2-en-marco", reinitialize=True),
    "rocketqa-base-cross-encoder": partial(
        reranker_by_name, name="rocketqa-base-cross-encoder", head="classes", matching="matching", v2=False
    ),
    "rocketqav2-en-marco-cross-encoder": partial(
        reranker_by_name,
        name="rocketqav2-en-marco-cross-encoder",
        head="logit",
        matching="matching_v2",
        v2=True,
    ),
    "ernie-search-large-cross-encoder-marco-en": partial(
        reranker_by_name,
        name="ernie-search-large-cross-encoder-marco-en",
        head="pooled_logit",
        matching="matching_v3",
        v2=True,
    ),
}


def run(name: str, folder: Path) -> dict[str, Any]:
    paddle.seed(7)
    try:
        return {"case": name, "difference": CASES[name](folder)}
    except Exception:
        return {"case": name, "error": traceback.format_exc()}


if __name__ == "__main__":
    for number, name in enumerate(CASES):
        print(json.dumps(run(name, Path(sys.argv[1]) / str(number))), flush=True)
