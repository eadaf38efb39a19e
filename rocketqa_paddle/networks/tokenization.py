"""Texts to token ids, and ids to the sequences that the encoders read.

The word pieces are those of the reference's `tokenization.py`, made by the Rust library `tokenizers`. A
checkpoint with an `spm.model` has a SentencePiece tokenizer instead.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rocketqa_paddle.networks.pieces import SentencePieces, WordPieces
from rocketqa_paddle.networks.vocabulary import SPECIAL_TOKENS, without_surrogates, write_vocab

REMEMBERED_TEXTS, REMEMBERED_CHARACTERS = 65_536, 1 << 25


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
        pieces = SentencePieces if self.path.suffix == ".model" else WordPieces
        self._pieces = pieces(self.path, lower_case)
        self._memory = TokenMemory(REMEMBERED_TEXTS, REMEMBERED_CHARACTERS)
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
        if isinstance(self._pieces, SentencePieces):
            return hashlib.sha256(self._file).digest()
        return hashlib.sha256(json.dumps(sorted(self.vocabulary.items())).encode()).digest()

    @property
    def vocabulary(self) -> dict[str, int]:
        """The ids of all tokens.

        Raises:
            ValueError: the tokenizer is a SentencePiece model, which a list of tokens does not describe.
        """
        if isinstance(self._pieces, SentencePieces):
            raise ValueError(f"{self.path} is a SentencePiece model, expected a vocabulary of word pieces")
        return dict(self._pieces.vocabulary)

    def tokenize(self, text: str) -> list[str]:
        """Return the tokens of a text, without special tokens."""
        return self._pieces.tokens(self._clean([text]))[0]

    def encode(self, texts: Sequence[str], limit: int | None = None) -> list[list[int]]:
        """Return the token ids of every text, without special tokens, or the first `limit` of them.

        With a limit, no more of a long text is tokenized than is needed. The ids of the texts that were met
        last are kept, because training meets its texts again.
        """
        return self._memory.encode(texts, limit, lambda new: self._pieces.ids(self._clean(new), limit))

    def _clean(self, texts: Iterable[str]) -> list[str]:
        texts = (without_surrogates(text) for text in texts)
        return [text.replace(" ", "") for text in texts] if self.for_cn else list(texts)

    def pack_queries(self, queries: Sequence[str], max_length: int) -> list[Packed]:
        """Return `[CLS] query [SEP]` of every query: types 0, at most `max_length` tokens."""
        return [self.pack_query_ids(ids, max_length) for ids in self.encode(queries, max_length)]

    def pack_passages(self, titles: Sequence[str], texts: Sequence[str], max_length: int) -> list[Packed]:
        """Return `[CLS] title [SEP] text [SEP]` of every passage: types 0 then 1, at most `max_length`.

        An empty title keeps its `[SEP]`. With `one_segment` it is `[CLS] title text [SEP]`, types 0.
        """
        pairs = zip(*(self.encode(column, max_length) for column in (titles, texts)), strict=True)
        return [self.pack_passage_ids(title, text, max_length) for title, text in pairs]

    def pack_pairs(
        self, queries: Sequence[str], titles: Sequence[str], texts: Sequence[str], max_length: int
    ) -> list[Packed]:
        """Return `[CLS] query [SEP] title text [SEP]` of every pair: types 0 then 1, at most `max_length`."""
        columns = (queries, titles, texts)
        triples = zip(*(self.encode(column, max_length) for column in columns), strict=True)
        return [self.pack_pair_ids(query, title + text, max_length) for query, title, text in triples]

    def pack_query_ids(self, ids: list[int], max_length: int) -> Packed:
        """Pack the ids of one query; see `pack_queries`."""
        ids = [self.cls_id, *ids[: max_length - 2], self.sep_id]
        return Packed(ids, [0] * len(ids))

    def pack_passage_ids(self, title: list[int], text: list[int], max_length: int) -> Packed:
        """Pack the ids of one passage; see `pack_passages`."""
        if self.one_segment:
            return self.pack_query_ids(title + text, max_length)
        return self.pack_pair_ids(title, text, max_length)

    def pack_pair_ids(self, first: list[int], second: list[int], max_length: int) -> Packed:
        """Pack the ids of two segments, such as a query and a passage; see `pack_pairs`."""
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

    If both are equally long, the second one loses an item first. Of a list that is longer than the limit, the
    first `limit` items are enough.
    """
    first_keeps = max(limit - len(second), (limit + 1) // 2)
    return first[:first_keeps], second[: max(limit - len(first), limit // 2)]


class TokenMemory:
    """The token ids of the texts that were encoded last; the oldest text is dropped first.

    At most `texts` texts with `characters` characters in all are kept.
    """

    def __init__(self, texts: int, characters: int) -> None:
        self._texts, self._characters, self._held = texts, characters, 0
        # A text's ids, int32, which takes a seventh of a list's room, and the limit that they were cut at.
        self._ids: dict[str, tuple[np.ndarray, int | None]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._ids)

    def encode(
        self, texts: Sequence[str], limit: int | None, encode: Callable[[list[str]], list[np.ndarray]]
    ) -> list[list[int]]:
        """Return the first `limit` ids of every text; `encode` gets the texts that are not remembered."""
        with self._lock:
            kept = ((text, self._ids.get(text)) for text in texts)
            found = {text: entry[0] for text, entry in kept if entry and _is_enough(*entry, limit)}
        if new := [text for text in dict.fromkeys(texts) if text not in found]:
            encoded = dict(zip(new, encode(new), strict=True))
            self._remember(encoded, limit)
            found |= encoded
        return [found[text][:limit].tolist() for text in texts]

    def _remember(self, encoded: Mapping[str, np.ndarray], limit: int | None) -> None:
        with self._lock:
            for text, ids in encoded.items():
                self._forget(text)
                self._ids[text] = ids, limit
                self._held += len(text)
            texts, characters, oldest = len(self._ids) - self._texts, self._held - self._characters, []
            for text in self._ids:
                if texts <= 0 and characters <= 0:
                    break
                texts, characters = texts - 1, characters - len(text)
                oldest.append(text)
            for text in oldest:
                self._forget(text)

    def _forget(self, text: str) -> None:
        if self._ids.pop(text, None) is not None:
            self._held -= len(text)


def _is_enough(ids: np.ndarray, cut_at: int | None, limit: int | None) -> bool:
    """Tell whether these ids are all of a text, or as many as are asked for."""
    return cut_at is None or len(ids) < cut_at or (limit is not None and limit <= len(ids))
