"""The oracle: what the reference implementation computes, again, in plain Python and NumPy (float64).

Written from the conventions in `shared/parity/README.md`; nothing here comes from the package. Sequences are
`(token ids, type ids)` and are encoded one by one, so there is no padding and no mask. `variables` holds
arrays under the reference's variable names.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import erf

Variables = Mapping[str, np.ndarray]
Sequence2 = tuple[Sequence[int], Sequence[int]]

HAN = [
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0x2F800, 0x2FA1F),
]


# Text -------------------------------------------------------------------------------------------


def basic_tokens(text: str, lower_case: bool = True) -> list[str]:
    """Clean, set Han characters apart, split at white space, lower-case, strip accents, split punctuation."""
    tokens = []
    for word in "".join(map(_cleaned, text)).split():
        if lower_case:
            decomposed = unicodedata.normalize("NFD", word.lower())
            word = "".join(c for c in decomposed if unicodedata.category(c) != "Mn")
        spaced = "".join(f" {c} " if _is_punctuation(c) else c for c in word)
        tokens += spaced.split()
    return tokens


def _cleaned(character: str) -> str:
    if character in " \t\n\r" or unicodedata.category(character) == "Zs":
        return " "
    if character in "\0\ufffd" or unicodedata.category(character).startswith("C"):
        return ""
    return f" {character} " if any(low <= ord(character) <= high for low, high in HAN) else character


def _is_punctuation(character: str) -> bool:
    printable_ascii = "!" <= character <= "~"
    return not character.isalnum() if printable_ascii else unicodedata.category(character).startswith("P")


def word_pieces(text: str, vocab: Iterable[str], lower_case: bool = True) -> list[str]:
    """Greedy longest match from the left; a word without a match, or of over 100 characters, is [UNK]."""
    known = set(vocab)
    return [piece for word in basic_tokens(text, lower_case) for piece in _pieces_of(word, known)]


def _pieces_of(word: str, known: set[str]) -> list[str]:
    if len(word) > 100:
        return ["[UNK]"]
    pieces: list[str] = []
    while word:
        prefix = "##" if pieces else ""
        size = next((n for n in range(len(word), 0, -1) if prefix + word[:n] in known), 0)
        if not size:
            return ["[UNK]"]
        pieces.append(prefix + word[:size])
        word = word[size:]
    return pieces


def truncate(first: Sequence[int], second: Sequence[int], limit: int) -> tuple[list[int], list[int]]:
    """The longer list loses its last item until both fit; of equal lists the second does."""
    first, second = list(first), list(second)
    while len(first) + len(second) > limit:
        (first if len(first) > len(second) else second).pop()
    return first, second


# Networks ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """A network's sizes, as `ernie_config.json` gives them."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    ffn: int
    positions: int
    sentence_types: int
    task_types: int = 0
    activation: str = "gelu"
    epsilon: float = 1e-5


def shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """The encoder's variables (without prefix) and their shapes."""
    h, f = sizes.hidden, sizes.ffn
    found: dict[str, tuple[int, ...]] = {
        "word_embedding": (sizes.vocab, h),
        "pos_embedding": (sizes.positions, h),
        "sent_embedding": (sizes.sentence_types, h),
        "pre_encoder_layer_norm_scale": (h,),
        "pre_encoder_layer_norm_bias": (h,),
    }
    if sizes.task_types:
        found["task_embedding"] = (sizes.task_types, h)
    for i in range(sizes.layers):
        layer = f"encoder_layer_{i}"
        linear = {f"multi_head_att_{part}_fc": (h, h) for part in ("query", "key", "value", "output")}
        for name, shape in {**linear, "ffn_fc_0": (h, f), "ffn_fc_1": (f, h)}.items():
            found |= {f"{layer}_{name}.w_0": shape, f"{layer}_{name}.b_0": shape[1:]}
        for part in ("att", "ffn"):
            found |= {f"{layer}_post_{part}_layer_norm_{kind}": (h,) for kind in ("scale", "bias")}
    return found


def random_variables(sizes: Sizes, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Weights large enough that attention is far from uniform; norms near 1."""
    return {
        name: ((1.0 if name.endswith("norm_scale") else 0.0) + 0.3 * rng.standard_normal(shape)).astype(
            np.float32
        )
        for name, shape in shapes(sizes).items()
    }


def ernie(variables: Variables, sizes: Sizes, sequence: Sequence2, prefix: str = "") -> np.ndarray:
    """States of the last layer for one sequence, `[length, hidden]`."""
    ids, types = (np.asarray(values) for values in sequence)

    def get(name: str) -> np.ndarray:
        return np.asarray(variables[prefix + name], dtype=np.float64)

    def fc(x: np.ndarray, name: str) -> np.ndarray:
        return x @ get(f"{name}.w_0") + get(f"{name}.b_0")

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + sizes.epsilon)
        return centred / deviation * get(f"{name}_layer_norm_scale") + get(f"{name}_layer_norm_bias")

    def heads(x: np.ndarray) -> np.ndarray:
        return x.reshape(len(ids), sizes.heads, -1).transpose(1, 0, 2)  # [heads, length, head size]

    x = get("word_embedding")[ids] + get("pos_embedding")[: len(ids)] + get("sent_embedding")[types]
    if sizes.task_types:
        x = x + get("task_embedding")[0]
    x = norm(x, "pre_encoder")
    for i in range(sizes.layers):
        layer = f"encoder_layer_{i}"
        q, k, v = (heads(fc(x, f"{layer}_multi_head_att_{part}_fc")) for part in ("query", "key", "value"))
        weights = softmax(q @ k.transpose(0, 2, 1) / np.sqrt(sizes.hidden / sizes.heads))
        attended = (weights @ v).transpose(1, 0, 2).reshape(len(ids), -1)
        x = norm(x + fc(attended, f"{layer}_multi_head_att_output_fc"), f"{layer}_post_att")
        inner = activate(fc(x, f"{layer}_ffn_fc_0"), sizes.activation)
        x = norm(x + fc(inner, f"{layer}_ffn_fc_1"), f"{layer}_post_ffn")
    return x


def activate(x: np.ndarray, name: str) -> np.ndarray:
    return x * (1 + erf(x / np.sqrt(2))) / 2 if name == "gelu" else np.maximum(x, 0)


def classes_logits(variables: Variables, state: np.ndarray) -> np.ndarray:
    """The v1 re-ranker's head on the state of [CLS]: tanh pooler, two classes."""
    pooled = np.tanh(state @ variables["pooled_fc.w_0"] + variables["pooled_fc.b_0"])
    return pooled @ variables["_cls_out_w"] + variables["_cls_out_b"]


def joint_logit(variables: Variables, state: np.ndarray) -> float:
    """The joint re-ranker's head on the state of [CLS]: one logit."""
    return float((state @ variables["qtp__cls_out_w"] + variables["qtp__cls_out_b"])[0])


# Losses -----------------------------------------------------------------------------------------


def softmax(x: np.ndarray) -> np.ndarray:
    exponents = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)


def cross_entropy(scores: np.ndarray, labels: Sequence[int]) -> float:
    """Mean over rows of minus the log-probability of the row's label."""
    return float(np.mean([-np.log(softmax(row)[label]) for row, label in zip(scores, labels, strict=True)]))


def kl(target: np.ndarray, other: np.ndarray) -> float:
    """Sum over a list of p log(p / q), summed over lists; p and q are the softmaxes of two score arrays."""
    p, q = softmax(target), softmax(other)
    return float((p * (np.log(p) - np.log(q))).sum())


# The package's names ----------------------------------------------------------------------------


def package_name(variable: str) -> str:
    """What `rocketqa_paddle.networks.ernie.Ernie` calls an encoder variable (given without prefix)."""
    for known, native in {
        "word_embedding": "word_embedding.weight",
        "pos_embedding": "position_embedding.weight",
        "sent_embedding": "sentence_embedding.weight",
        "task_embedding": "task_embedding.weight",
        "pre_encoder_layer_norm_scale": "norm.weight",
        "pre_encoder_layer_norm_bias": "norm.bias",
    }.items():
        if variable == known:
            return native
    layer, _, rest = variable.removeprefix("encoder_layer_").partition("_")
    for known, native in {
        "multi_head_att_query_fc.": "attention.query.",
        "multi_head_att_key_fc.": "attention.key.",
        "multi_head_att_value_fc.": "attention.value.",
        "multi_head_att_output_fc.": "attention.output.",
        "ffn_fc_0.": "ffn_in.",
        "ffn_fc_1.": "ffn_out.",
        "post_att_layer_norm_": "attention_norm.",
        "post_ffn_layer_norm_": "ffn_norm.",
    }.items():
        if rest.startswith(known):
            kind = {"w_0": "weight", "b_0": "bias", "scale": "weight", "bias": "bias"}[rest[len(known) :]]
            return f"layers.{layer}.{native}{kind}"
    raise KeyError(variable)


def for_package(variables: Variables, sizes: Sizes, prefix: str = "") -> dict[str, np.ndarray]:
    """An encoder's variables under the package's names."""
    return {package_name(name): np.asarray(variables[prefix + name]) for name in shapes(sizes)}
