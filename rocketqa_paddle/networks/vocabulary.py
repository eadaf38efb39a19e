"""Vocabularies of word pieces: read, written, and trained on texts."""

import re
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from tokenizers import Tokenizer as WordPieceTokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from rocketqa_paddle.runtime.storage import atomic, read_json

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_LARGEST_ID = 2**31 - 1
_SURROGATES = re.compile("[\ud800-\udfff]")


def without_surrogates(text: str) -> str:
    """Remove surrogates, which are no characters: the reference drops them, and Rust cannot hold them."""
    return _SURROGATES.sub("", text)


def read_vocab(path: str | Path) -> dict[str, int]:
    """Read the ids of all tokens from a `vocab.txt` or a `tokenizer.json`.

    A line of a `vocab.txt` is a token, whose id is the number of the line, or a token, TAB and its id.

    Raises:
        ValueError: the file is not of this form; the message names the file and the line.
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
        if index and not (index[0].isdecimal() and len(index[0]) <= 10 and int(index[0]) <= _LARGEST_ID):
            where = f"{path}:{number + 1}"
            given = reprlib.repr(index[0])
            raise ValueError(f"{where}: {given} is not an id; a line is a token, or token TAB id")
        vocab[token.strip()] = int(index[0]) if index else number
    return vocab


def _read_tokenizer_json(path: Path) -> dict[str, int]:
    values = read_json(path)
    model, added = values.get("model"), values.get("added_tokens") or []
    model = model if isinstance(model, dict) else {}
    if not isinstance(model.get("vocab"), dict) or model.get("type", "WordPiece") != "WordPiece":
        kind = reprlib.repr(model.get("type"))
        raise ValueError(f"{path}: the tokenizer is {kind}, expected 'WordPiece' with a vocabulary")
    try:
        vocab = model["vocab"] | {"" + token["content"]: token["id"] for token in added}
    except (TypeError, KeyError):
        given, expected = reprlib.repr(added), "expected a list of objects with content and id"
        raise ValueError(f"{path}: added_tokens is {given}, {expected}") from None
    for token, index in vocab.items():
        if type(index) is not int or not 0 <= index <= _LARGEST_ID:
            given = f"{reprlib.repr(token)} has the id {reprlib.repr(index)}"
            raise ValueError(f"{path}: the token {given}, expected a whole number from 0 to {_LARGEST_ID}")
    return vocab


def write_vocab(path: str | Path, vocabulary: Mapping[str, int]) -> None:
    """Write a `vocab.txt` whose line numbers are the ids; an id without a token becomes `[unusedID]`."""
    tokens = {index: token for token, index in vocabulary.items()}
    lines = (tokens.get(index, f"[unused{index}]") for index in range(max(tokens) + 1))
    Path(path).write_text("".join(f"{token}\n" for token in lines), encoding="utf-8")


def train_vocab(texts: Iterable[str], path: str | Path, size: int = 8000) -> None:
    """Train a lower-cased WordPiece vocabulary of at most `size` tokens on texts, and write it to `path`.

    The same texts give the same vocabulary. The trainer alone would number the characters in a random order,
    so they are given to it as special tokens in alphabetical order.
    """
    from tokenizers.trainers import WordPieceTrainer

    tokenizer = WordPieceTokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(strip_accents=True, lowercase=False)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    texts = [without_surrogates(text).lower() for text in texts]
    special = [*SPECIAL_TOKENS, *_inner_characters(tokenizer, texts)]
    trainer = WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    with atomic(path) as new:
        write_vocab(new, tokenizer.get_vocab())


def _inner_characters(tokenizer: WordPieceTokenizer, texts: Iterable[str]) -> list[str]:
    """Return the pieces of one character that continue a word, in alphabetical order."""
    split, normalize = tokenizer.pre_tokenizer.pre_tokenize_str, tokenizer.normalizer.normalize_str
    words = {word for text in texts for word, _ in split(normalize(text))}
    return sorted({f"##{character}" for word in words for character in word[1:]})
