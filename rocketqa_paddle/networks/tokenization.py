"""Texts to token ids, and ids to the sequences that the encoders read.

The word pieces are those of the reference's `tokenization.py`, made by the Rust library `tokenizers`. A
checkpoint with an `spm.model` has a SentencePiece tokenizer instead.
"""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer as WordPieceTokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from rocketqa_paddle.networks.vocabulary import SPECIAL_TOKENS, read_vocab, without_surrogates, write_vocab

REMEMBERED_TEXTS = 65_536
_LATE_CJK = re.compile("([\U0002b820-\U0002b91f])")  # ideographs that the Rust tokenizer leaves in words


class Packed(NamedTuple):
    """A packed input: token ids and the sentence type (0 or 1) of each."""

    token_ids: list[int]
    type_ids: list[int]


class Tokenizer:
    """Word pieces (`vocab.txt`, `tokenizer.json`) or SentencePiece (`spm.model`), by the file's ending.

    It packs texts as the reference's readers do. It may be used from several threads at once.

    Args:
        path: the vocabulary. A line of `vocab.txt` is a token, or a token, TAB and its id. Of a
            `tokenizer.json` only the vocabulary is read.
        lower_case: lower-case the text and strip accents. A SentencePiece model ignores it, because it has
            a normalisation of its own.
        for_cn: remove spaces from the text first, as the reference does for Chinese.
        one_segment: read title and text of a passage as one text, as sentence-transformers does.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the vocabulary lacks `[PAD]`, `[UNK]`, `[CLS]` or `[SEP]`.
    """

    def __init__(
        self, path: str | Path, *, lower_case: bool = True, for_cn: bool = False, one_segment: bool = False
    ) -> None:
        self.path = Path(path)
        self.lower_case, self.for_cn, self.one_segment = lower_case, for_cn, one_segment
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no vocabulary here; expected a vocab.txt or an spm.model")
        self._file = self.path.read_bytes()  # kept, so that `save` needs no file
        pieces = _SentencePieces if self.path.suffix == ".model" else _WordPieces
        self._pieces = pieces(self.path, lower_case)
        self._memory = TokenMemory(REMEMBERED_TEXTS)
        self.pad_id, self.cls_id, self.sep_id = (self._special(t) for t in ("[PAD]", "[CLS]", "[SEP]"))
        self._special("[UNK]")

    def _special(self, token: str) -> int:
        if (token_id := self._pieces.id_of(token)) is None:
            needed = ", ".join(SPECIAL_TOKENS[:4])
            raise ValueError(f"{self.path}: the vocabulary has no {token}; it needs {needed}")
        return token_id

    def __len__(self) -> int:
        return len(self._pieces)

    @property
    def settings(self) -> dict[str, bool]:
        """The arguments of `Tokenizer` beside the path."""
        return {"lower_case": self.lower_case, "for_cn": self.for_cn, "one_segment": self.one_segment}

    @cached_property
    def fingerprint(self) -> bytes:
        """The SHA-256 digest of the tokens and their ids, 32 bytes."""
        if isinstance(self._pieces, _SentencePieces):
            return hashlib.sha256(self._file).digest()
        return hashlib.sha256(json.dumps(sorted(self.vocabulary.items())).encode()).digest()

    @property
    def vocabulary(self) -> dict[str, int]:
        """The ids of all tokens.

        Raises:
            ValueError: the tokenizer is a SentencePiece model, which a list of tokens does not describe.
        """
        if isinstance(self._pieces, _SentencePieces):
            raise ValueError(f"{self.path} is a SentencePiece model, expected a vocabulary of word pieces")
        return dict(self._pieces.vocabulary)

    def tokenize(self, text: str) -> list[str]:
        """Return the tokens of a text, without special tokens."""
        return self._pieces.tokens(self._clean([text]))[0]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of every text, without special tokens.

        The ids of the last `REMEMBERED_TEXTS` texts are kept, because training meets its texts again.
        """
        return self._memory.encode(texts, lambda new: self._pieces.ids(self._clean(new)))

    def _clean(self, texts: Iterable[str]) -> list[str]:
        texts = (without_surrogates(text) for text in texts)
        return [text.replace(" ", "") for text in texts] if self.for_cn else list(texts)

    def pack_queries(self, queries: Sequence[str], max_length: int) -> list[Packed]:
        """Return `[CLS] query [SEP]` of every query: types 0, at most `max_length` tokens."""
        return [self._pack_one(ids, max_length) for ids in self.encode(queries)]

    def pack_passages(self, titles: Sequence[str], texts: Sequence[str], max_length: int) -> list[Packed]:
        """Return `[CLS] title [SEP] text [SEP]` of every passage: types 0 then 1, at most `max_length`.

        An empty title keeps its `[SEP]`. With `one_segment` it is `[CLS] title text [SEP]`, types 0.
        """
        pairs = zip(self.encode(titles), self.encode(texts), strict=True)
        if self.one_segment:
            return [self._pack_one(title + text, max_length) for title, text in pairs]
        return [self._pack_pair(title, text, max_length) for title, text in pairs]

    def pack_pairs(
        self, queries: Sequence[str], titles: Sequence[str], texts: Sequence[str], max_length: int
    ) -> list[Packed]:
        """Return `[CLS] query [SEP] title text [SEP]` of every pair: types 0 then 1, at most `max_length`."""
        triples = zip(self.encode(queries), self.encode(titles), self.encode(texts), strict=True)
        return [self._pack_pair(query, title + text, max_length) for query, title, text in triples]

    def _pack_one(self, ids: list[int], max_length: int) -> Packed:
        ids = [self.cls_id, *ids[: max_length - 2], self.sep_id]
        return Packed(ids, [0] * len(ids))

    def _pack_pair(self, first: list[int], second: list[int], max_length: int) -> Packed:
        first, second = truncate_pair(first, second, max_length - 3)
        ids = [self.cls_id, *first, self.sep_id, *second, self.sep_id]
        return Packed(ids, [0] * (len(first) + 2) + [1] * (len(second) + 1))

    def save(self, folder: str | Path) -> str:
        """Write the vocabulary to `folder` and return the file's name."""
        name = "spm.model" if self.path.suffix == ".model" else "vocab.txt"
        if self.path.suffix == ".json":
            write_vocab(Path(folder) / name, self.vocabulary)
        else:
            (Path(folder) / name).write_bytes(self._file)
        return name


def truncate_pair(first: list[int], second: list[int], limit: int) -> tuple[list[int], list[int]]:
    """Shorten two lists to `limit` items in all, as if the longer one lost its last item until they fit.

    If both are equally long, the second one loses an item first.
    """
    first_keeps = max(limit - len(second), (limit + 1) // 2)
    return first[:first_keeps], second[: max(limit - len(first), limit // 2)]


class TokenMemory:
    """The token ids of the `size` texts that were encoded last; the oldest text is dropped first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._ids: dict[str, np.ndarray] = {}  # int32 takes a seventh of a list's room
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._ids)

    def encode(self, texts: Sequence[str], encode: Callable[[list[str]], list[list[int]]]) -> list[list[int]]:
        """Return the ids of every text; `encode` is called with the texts that are not remembered."""
        with self._lock:
            found = {text: self._ids[text] for text in texts if text in self._ids}
        if new := [text for text in dict.fromkeys(texts) if text not in found]:
            encoded = {text: np.array(ids, np.int32) for text, ids in zip(new, encode(new), strict=True)}
            self._remember(encoded)
            found |= encoded
        return [found[text].tolist() for text in texts]

    def _remember(self, encoded: Mapping[str, np.ndarray]) -> None:
        with self._lock:
            self._ids |= encoded
            for text in list(islice(self._ids, max(0, len(self._ids) - self._size))):
                del self._ids[text]


class _WordPieces:
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
        return self.vocabulary.get(token)

    def tokens(self, texts: list[str]) -> list[list[str]]:
        return [[self._tokenizer.id_to_token(i) for i in ids] for ids in self.ids(texts)]

    def ids(self, texts: list[str]) -> list[list[int]]:
        texts = [_LATE_CJK.sub(r" \1 ", text.lower() if self._lower_case else text) for text in texts]
        return [
            encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        ]


class _SentencePieces:
    """A SentencePiece model with BERT's special tokens among its pieces."""

    _ALIASES = {"[PAD]": "<pad>", "[UNK]": "<unk>", "[CLS]": "<s>", "[SEP]": "</s>"}

    def __init__(self, path: Path, lower_case: bool) -> None:
        from sentencepiece import SentencePieceProcessor

        try:
            self._model = SentencePieceProcessor(model_proto=path.read_bytes())
        except RuntimeError as error:
            raise ValueError(f"{path}: not a whole SentencePiece model ({error})") from None

    def __len__(self) -> int:
        return self._model.get_piece_size()

    @cached_property
    def _vocab(self) -> dict[str, int]:
        return {self._model.id_to_piece(i): i for i in range(len(self))}

    def id_of(self, token: str) -> int | None:
        return self._vocab.get(token, self._vocab.get(self._ALIASES[token]))

    def tokens(self, texts: list[str]) -> list[list[str]]:
        return self._model.encode(texts, out_type=str)

    def ids(self, texts: list[str]) -> list[list[int]]:
        return self._model.encode(texts)
