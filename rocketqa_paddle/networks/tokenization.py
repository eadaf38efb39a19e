"""Text to token ids, and ids to the sequences that the encoders read.

The word pieces are those of the reference's `tokenization.py`, made by the Rust `tokenizers`
library; a SentencePiece model takes their place where a checkpoint has `spm.model`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer as WordPieceTokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from rocketqa_paddle.runtime.storage import read_json

_SURROGATES = re.compile("[\ud800-\udfff]")  # no characters: the reference drops them, Rust cannot hold them
_LATE_CJK = re.compile("([\U0002b820-\U0002b91f])")  # ideographs that the Rust tokenizer leaves in words
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class Packed(NamedTuple):
    """A packed input: token ids and the sentence type (0 or 1) of each."""

    token_ids: list[int]
    type_ids: list[int]


class Tokenizer:
    """Word pieces (`vocab.txt`, `tokenizer.json`) or SentencePiece (`spm.model`), told apart by the ending.

    Args:
        path: the vocabulary. A line of `vocab.txt` is a token, or a token, TAB and its id. Of a
            `tokenizer.json` the vocabulary alone is read.
        lower_case: lower-case and strip accents (WordPiece only; a SentencePiece model holds its
            own normalisation).
        for_cn: remove spaces from the text first, as the reference does for Chinese.
        one_segment: read title and text of a passage as one text, as sentence-transformers does.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the vocabulary lacks `[PAD]`, `[UNK]`, `[CLS]` or `[SEP]`.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        lower_case: bool = True,
        for_cn: bool = False,
        one_segment: bool = False,
    ) -> None:
        self.path, self.lower_case, self.for_cn, self.one_segment = (
            Path(path),
            lower_case,
            for_cn,
            one_segment,
        )
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no vocabulary here; expected a vocab.txt or an spm.model")
        self._file = self.path.read_bytes()  # kept, so that `save` needs no file
        pieces = _SentencePieces if self.path.suffix == ".model" else _WordPieces
        self._pieces = pieces(self.path, lower_case)
        self.pad_id, self.cls_id, self.sep_id = (self._special(t) for t in ("[PAD]", "[CLS]", "[SEP]"))
        self._special("[UNK]")

    def _special(self, token: str) -> int:
        token_id = self._pieces.id_of(token)
        if token_id is None:
            raise ValueError(
                f"{self.path}: the vocabulary has no {token}; it needs {', '.join(SPECIAL_TOKENS[:4])}"
            )
        return token_id

    def __len__(self) -> int:
        return len(self._pieces)

    @property
    def settings(self) -> dict[str, bool]:
        """What `Tokenizer` takes beside the path."""
        return {"lower_case": self.lower_case, "for_cn": self.for_cn, "one_segment": self.one_segment}

    @property
    def fingerprint(self) -> bytes:
        """A hash of the tokens and their ids."""
        if isinstance(self._pieces, _SentencePieces):
            return hashlib.sha256(self._file).digest()
        return hashlib.sha256(json.dumps(sorted(self.vocabulary.items())).encode()).digest()

    @property
    def vocabulary(self) -> dict[str, int]:
        """Token -> id.

        Raises:
            ValueError: the pieces are a SentencePiece model's, which a list of tokens does not describe.
        """
        if isinstance(self._pieces, _SentencePieces):
            raise ValueError(f"{self.path} is a SentencePiece model, expected a vocabulary of word pieces")
        return dict(self._pieces.vocabulary)

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text, without special ones."""
        return self._pieces.tokens(self._clean([text]))[0]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of every text, without special ones."""
        return self._pieces.ids(self._clean(texts))

    def _clean(self, texts: Iterable[str]) -> list[str]:
        texts = (_SURROGATES.sub("", text) for text in texts)
        return [text.replace(" ", "") for text in texts] if self.for_cn else list(texts)

    # Packing, as the reference's readers do it ------------------------------------------------

    def pack_queries(self, queries: Sequence[str], max_length: int) -> list[Packed]:
        """`[CLS] query [SEP]`, types 0, at most `max_length` tokens."""
        return [self._pack_one(ids, max_length) for ids in self.encode(queries)]

    def pack_passages(self, titles: Sequence[str], texts: Sequence[str], max_length: int) -> list[Packed]:
        """`[CLS] title [SEP] text [SEP]`, types 0 then 1; an empty title keeps its `[SEP]`.

        With `one_segment`: `[CLS] title text [SEP]`, types 0.
        """
        pairs = zip(self.encode(titles), self.encode(texts), strict=True)
        if self.one_segment:
            return [self._pack_one(title + text, max_length) for title, text in pairs]
        return [self._pack_pair(title, text, max_length) for title, text in pairs]

    def pack_pairs(
        self, queries: Sequence[str], titles: Sequence[str], texts: Sequence[str], max_length: int
    ) -> list[Packed]:
        """`[CLS] query [SEP] title text [SEP]`, types 0 then 1."""
        triples = zip(self.encode(queries), self.encode(titles), self.encode(texts), strict=True)
        return [self._pack_pair(query, title + text, max_length) for query, title, text in triples]

    def _pack_one(self, ids: list[int], max_length: int) -> Packed:
        ids = [self.cls_id, *ids[: max_length - 2], self.sep_id]
        return Packed(ids, [0] * len(ids))

    def _pack_pair(self, first: list[int], second: list[int], max_length: int) -> Packed:
        first, second = truncate_pair(first, second, max_length - 3)
        return Packed(
            [self.cls_id, *first, self.sep_id, *second, self.sep_id],
            [0] * (len(first) + 2) + [1] * (len(second) + 1),
        )

    def save(self, folder: str | Path) -> str:
        """Write the vocabulary into `folder` and return the file's name."""
        name = "spm.model" if self.path.suffix == ".model" else "vocab.txt"
        if self.path.suffix == ".json":
            write_vocab(Path(folder) / name, self.vocabulary)
        else:
            (Path(folder) / name).write_bytes(self._file)
        return name


def truncate_pair(first: list[int], second: list[int], limit: int) -> tuple[list[int], list[int]]:
    """Shorten two lists to `limit` items in all, as if the longer lost its last item again and again.

    Of two equal lists the second loses first.
    """
    over = len(first) + len(second) - limit
    if over <= 0:
        return first, second
    to_equal = min(over, abs(len(first) - len(second)))
    first_keeps = len(first) - (to_equal if len(first) > len(second) else 0)
    second_keeps = len(second) - (to_equal if len(second) > len(first) else 0)
    over -= to_equal
    return first[: first_keeps - over // 2], second[: second_keeps - (over + 1) // 2]


def read_vocab(path: str | Path) -> dict[str, int]:
    """Token -> id, from a `vocab.txt` or a `tokenizer.json`.

    A line of a `vocab.txt` is a token (its id the line's number), or a token, TAB and its id.

    Raises:
        ValueError: not such a file; names file and line.
    """
    if Path(path).suffix == ".json":
        return _read_tokenizer_json(Path(path))
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
    vocab: dict[str, int] = {}
    for number, line in enumerate(lines):
        token, *index = line.strip().split("\t")
        if index and not (index[0].isdecimal() and int(index[0]) < 2**31):
            raise ValueError(
                f"{path}:{number + 1}: {index[0]!r} is no id; a line is a token, or token TAB id"
            )
        vocab[token.strip()] = int(index[0]) if index else number
    return vocab


def _read_tokenizer_json(path: Path) -> dict[str, int]:
    values = read_json(path)
    model = values.get("model") or {}
    if not isinstance(model.get("vocab"), dict) or model.get("type", "WordPiece") != "WordPiece":
        raise ValueError(
            f"{path}: the tokenizer is {model.get('type')!r}, expected 'WordPiece' with a vocabulary"
        )
    added = {token["content"]: token["id"] for token in values.get("added_tokens", [])}
    return model["vocab"] | added


def write_vocab(path: str | Path, vocabulary: Mapping[str, int]) -> None:
    """Write a `vocab.txt` whose line numbers are the ids; an id that no token has gets `[unusedID]`."""
    tokens = {index: token for token, index in vocabulary.items()}
    lines = (tokens.get(index, f"[unused{index}]") for index in range(max(tokens) + 1))
    Path(path).write_text("".join(f"{token}\n" for token in lines), encoding="utf-8")


def train_vocab(texts: Iterable[str], path: str | Path, size: int = 8000) -> None:
    """Train a lower-cased WordPiece vocabulary on `texts` and write it to `path`.

    The same texts give the same vocabulary: every character is a piece from the start, in order, where
    the trainer by itself would number them by chance.
    """
    from tokenizers.trainers import WordPieceTrainer

    tokenizer = WordPieceTokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(strip_accents=True, lowercase=False)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    texts = [_SURROGATES.sub("", text).lower() for text in texts]
    words = {
        word
        for text in texts
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
    }
    inner = sorted({f"##{character}" for word in words for character in word[1:]})
    trainer = WordPieceTrainer(vocab_size=size, special_tokens=[*SPECIAL_TOKENS, *inner], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    new = Path(path).with_suffix(".new")
    write_vocab(new, tokenizer.get_vocab())
    new.replace(path)


class _WordPieces:
    """Basic tokenisation and greedy longest-match word pieces."""

    def __init__(self, path: Path, lower_case: bool) -> None:
        self.vocabulary, self._lower_case = read_vocab(path), lower_case
        model = WordPiece(self.vocabulary, unk_token="[UNK]", max_input_chars_per_word=100)
        self._tokenizer = WordPieceTokenizer(model)
        # Lower-casing is left to Python: Rust's differs for a few letters, such as a final sigma.
        self._tokenizer.normalizer = BertNormalizer(
            clean_text=True, handle_chinese_chars=True, strip_accents=lower_case, lowercase=False
        )
        self._tokenizer.pre_tokenizer = BertPreTokenizer()

    def __len__(self) -> int:
        return max(self.vocabulary.values()) + 1

    def id_of(self, token: str) -> int | None:
        return self.vocabulary.get(token)

    def tokens(self, texts: list[str]) -> list[list[str]]:
        return [[self._tokenizer.id_to_token(i) for i in ids] for ids in self.ids(texts)]

    def ids(self, texts: list[str]) -> list[list[int]]:
        texts = [_LATE_CJK.sub(r" \1 ", text.lower() if self._lower_case else text) for text in texts]
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]


class _SentencePieces:
    """A SentencePiece model with BERT's special tokens among its pieces."""

    _ALIASES = {"[PAD]": "<pad>", "[UNK]": "<unk>", "[CLS]": "<s>", "[SEP]": "</s>"}

    def __init__(self, path: Path, lower_case: bool) -> None:
        from sentencepiece import SentencePieceProcessor

        self._model = SentencePieceProcessor(model_file=str(path))

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
