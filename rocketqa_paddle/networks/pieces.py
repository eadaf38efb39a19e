"""The two ways to make pieces of words: WordPiece (`vocab.txt`) and SentencePiece (`spm.model`).

Both need many bytes for every character that they work on. So texts are given to them in blocks, and of a
long text only as much as is needed for the tokens that are asked for. A text is cut where the result cannot
depend on what follows, so that the tokens are those of the whole text.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as WordPieceTokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from rocketqa_paddle.networks.vocabulary import read_vocab

_BLOCK = 1 << 20  # characters that are tokenized together
_PART = 1 << 16  # characters of a text that are tokenized at once
_A_TOKEN = 8  # characters that are taken for each token that is asked for: most tokens have fewer
_LATE_CJK = re.compile("([\U0002b820-\U0002b91f])")  # ideographs that the Rust tokenizer leaves in words


class WordPieces:
    """Basic tokenisation, then word pieces by the greedy longest match."""

    def __init__(self, path: Path, lower_case: bool) -> None:
        self.vocabulary, self._lower_case = read_vocab(path), lower_case
        model = WordPiece(self.vocabulary, unk_token="[UNK]", max_input_chars_per_word=100)
        self._tokenizer = WordPieceTokenizer(model)
        # Python lower-cases, because Rust's result differs for a few letters, such as a final sigma.
        self._tokenizer.normalizer = BertNormalizer(strip_accents=lower_case, lowercase=False)
        self._tokenizer.pre_tokenizer = BertPreTokenizer()

    def __len__(self) -> int:
        return max(self.vocabulary.values()) + 1

    def id_of(self, token: str) -> int | None:
        """Return the id of a token, or None if there is no such token."""
        return self.vocabulary.get(token)

    def tokens(self, texts: Sequence[str]) -> list[list[str]]:
        """Return the tokens of every text."""
        return [[self._tokenizer.id_to_token(i) for i in ids.tolist()] for ids in self.ids(texts)]

    def ids(self, texts: Sequence[str], limit: int | None = None) -> list[np.ndarray]:
        """Return the token ids of every text, int32, or the first `limit` of them.

        A text is tokenized part by part until there are enough.
        """
        parts: list[list[np.ndarray]] = [[] for _ in texts]
        size = _PART if limit is None else min(_PART, limit * _A_TOKEN + 1)
        waiting = [(row, 0) for row in range(len(texts))]  # which text goes on where
        while waiting:
            ends = [_end_of_words(texts[row], start + size) for row, start in waiting]
            cut = [texts[row][start:end] for (row, start), end in zip(waiting, ends, strict=True)]
            for (row, _), ids in zip(waiting, _in_blocks(cut, self._encode), strict=True):
                parts[row].append(ids)
            waiting = [
                (row, end)
                for (row, _), end in zip(waiting, ends, strict=True)
                if end < len(texts[row]) and (limit is None or sum(map(len, parts[row])) < limit)
            ]
            size = _PART
        return [np.concatenate(ids)[:limit].copy() for ids in parts]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        texts = [_ENDLESS.sub(r"\1\2", text) if len(text) > 2 * _PART else text for text in texts]
        texts = [_LATE_CJK.sub(r" \1 ", text.lower() if self._lower_case else text) for text in texts]
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]


_BETWEEN_WORDS = re.compile(r"""[ \t\n\r\u3000\u4e00-\u9fff、。!"#$%&()*+,\-/;<=>?@\[\\\]_{|}~]""")
"""Characters before which a text can be cut.

Each is white space or a word by itself, whatever surrounds it. Cleaning keeps it, and accents are not sorted
across it. Python, which lower-cases a sigma by the letters around it, looks at none beyond it.
"""
_ENDLESS = re.compile("([0-9A-Za-z]{100})[0-9A-Za-z]+([0-9A-Za-z])")
"""Letters and digits without end: an unknown word, as are the 101 characters that are left of it."""


def _end_of_words(text: str, position: int) -> int:
    """Return the first position from this one on where a text can be cut, or its end."""
    found = _BETWEEN_WORDS.search(text, position) if position < len(text) else None
    return found.start() if found else len(text)


class SentencePieces:
    """A SentencePiece model with BERT's special tokens among its pieces."""

    _ALIASES = {"[PAD]": "<pad>", "[UNK]": "<unk>", "[CLS]": "<s>", "[SEP]": "</s>"}

    def __init__(self, path: Path, lower_case: bool) -> None:
        from sentencepiece import SentencePieceProcessor

        try:
            if not (model := path.read_bytes()):
                raise RuntimeError("it is empty")
            self._model = SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError(f"{path}: not a whole SentencePiece model ({error})") from None

    def __len__(self) -> int:
        return self._model.get_piece_size()

    @cached_property
    def _vocab(self) -> dict[str, int]:
        return {self._model.id_to_piece(i): i for i in range(len(self))}

    @cached_property
    def _keeps_to_words(self) -> bool:
        """Whether no piece reaches from one word into the next one."""
        return not any("▁" in piece[1:] for piece in self._vocab)

    def id_of(self, token: str) -> int | None:
        """Return the id of a token, or None if there is no such token."""
        return self._vocab.get(token, self._vocab.get(self._ALIASES[token]))

    def tokens(self, texts: Sequence[str]) -> list[list[str]]:
        """Return the tokens of every text."""
        return self._model.encode(list(texts), out_type=str)

    def ids(self, texts: Sequence[str], limit: int | None = None) -> list[np.ndarray]:
        """Return the token ids of every text, int32, or the first `limit` of them.

        Where the beginning of a text gives too few, a longer one is taken.
        """
        found: list[np.ndarray] = [np.zeros(0, np.int32)] * len(texts)
        waiting, size = list(range(len(texts))), (limit or 0) * _A_TOKEN
        while waiting:
            ends = [len(texts[row]) if limit is None else self._end(texts[row], size) for row in waiting]
            cut = [texts[row][:end] for row, end in zip(waiting, ends, strict=True)]
            for row, ids in zip(waiting, _in_blocks(cut, self._model.encode), strict=True):
                found[row] = ids[:limit].copy()
            waiting = [
                row
                for row, end in zip(waiting, ends, strict=True)
                if end < len(texts[row]) and len(found[row]) < limit
            ]
            size *= 4
        return found

    def _end(self, text: str, position: int) -> int:
        """Return where a text can be cut: before a single space between two letters or digits of ASCII.

        The normalisation joins nothing there, and no piece goes on beyond it, so that the best pieces of the
        whole text begin with the best pieces of what is before.
        """
        can_be_cut = position < len(text) and self._keeps_to_words
        found = _ONE_SPACE.search(text, position) if can_be_cut else None
        return found.start() + 1 if found else len(text)


_ONE_SPACE = re.compile("[0-9A-Za-z] (?=[0-9A-Za-z])")


def _in_blocks(texts: Sequence[str], encode: Callable[[list[str]], list[list[int]]]) -> Iterator[np.ndarray]:
    """Encode texts a block at a time, and yield the ids of every text."""
    starts, characters = [0], 0
    for row, text in enumerate(texts):
        if characters > _BLOCK:
            starts.append(row)
            characters = 0
        characters += len(text)
    for start, end in pairwise([*starts, len(texts)]):
        for ids in encode(list(texts[start:end])):
            yield np.array(ids, np.int32)
