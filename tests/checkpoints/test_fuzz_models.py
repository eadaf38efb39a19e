"""Damaged, edited and hostile model folders of all formats: each loads, or is refused in a message of use.

A few folders are made whole. Each input is a copy of one of them with one to three faults: a value of a JSON
file is replaced, moved or removed, or a file is cut off, gets other bytes, or is gone.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import toy
from foreign import KINDS

from rocketqa_paddle.checkpoints import convert

PARTS = 60  # inputs of the test that always runs
MANY = 3000

NESTED = json.loads("[" * 200 + "]" * 200)
VALUES = [
    *(None, True, False, 0, -1, 1, 2, 3, 7, 10**10, 10**400, 2**31, -(2**63), 0.5, 1e-300, 1e308),
    *(
        float("nan"),
        float("inf"),
        "",
        "no",
        "1",
        "cls",
        "x" * 5000,
        "\ud800",
        "..",
        "\0",
        "/etc",
        "vocab.txt",
    ),
    *([], [1], [None], {}, {"a": 1}, {"": None}, NESTED, ["cls", "mean"], [[]] * 50, {"x" * 5000: 1}),
]
"""What an edited JSON file may have in the place of anything else."""
SOURCES = ("native", "native-cross", "reference", "paddlenlp", "huggingface", "cross", "towers", "pieces")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, words: list[str]) -> dict[str, Path]:
    """A whole folder of every kind, by its name in `SOURCES`."""
    folder = tmp_path_factory.mktemp("whole")
    dual, cross = KINDS["cls"](folder / "a", words), KINDS["pooled-logit"](folder / "b", words)
    reranker, mean = KINDS["classes"](folder / "c", words), KINDS["one-segment"](folder / "d", words)
    written = {
        "native": (mean, "native"),
        "native-cross": (reranker, "native"),
        "paddlenlp": (dual, "paddlenlp"),
        "huggingface": (mean, "huggingface"),
        "cross": (cross, "huggingface"),
        "towers": (KINDS["two-towers"](folder / "e", words), "huggingface"),
    }
    for name, (checkpoint, to) in written.items():
        convert.write(checkpoint, folder / name, to)
    tokens = toy.tokenizer(folder / "f")
    convert.write(KINDS["two-towers"](folder / "g", words), folder / "other", "native")
    reference = toy.dual(tokens)
    object.__setattr__(reference.network.config, "layer_norm_eps", 1e-5)
    convert.write(reference, folder / "reference", "reference")
    texts = [f"the {a} moon shines on {b} water" for a in ("old", "new") for b in ("hot", "red")]
    spm = toy.sentence_pieces(folder, texts, 50, **toy.PADDED, control_symbols=["[CLS]", "[SEP]", "[MASK]"])
    convert.write(toy.dual(type(tokens)(spm)), folder / "pieces", "native")
    return {name: folder / name for name in SOURCES}


# Faults -----------------------------------------------------------------------------------------


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a JSON value with a key or an index of it."""
    for key in (
        list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    ):
        yield value, key
        if not isinstance(value, dict) or len(value) < 40:  # of a vocabulary the outermost is enough
            yield from places(value[key])


def edited(draw: random.Random, path: Path) -> bytes:
    """A JSON file of which one value is replaced, removed, copied to another key or multiplied."""
    values = json.loads(path.read_text(encoding="utf-8"))
    holder, key = draw.choice([*places(values)] or [([0], 0)])
    change = draw.randrange(6)
    if change == 0:
        del holder[key]
    elif change == 1 and isinstance(holder, dict):
        holder[draw.choice(["x", "lower_case", "init_args", "section", *holder])] = holder[key]
    elif change == 2 and isinstance(holder[key], int):
        holder[key] *= draw.choice([-1, 2, 10**7, 10**12])
    else:
        holder[key] = draw.choice(VALUES)
    return json.dumps(values, ensure_ascii=draw.random() < 0.9).encode("utf-8", "surrogatepass")


def bitten(draw: random.Random, path: Path) -> bytes:
    """A file of which some bytes are others, most often near its beginning, where descriptions are."""
    data = bytearray(path.read_bytes())
    for _ in range(draw.choice([1, 1, 2, 8, 64])):
        if data:
            data[draw.randrange(draw.choice([min(len(data), 400), len(data)]))] = draw.choice(
                [0, 255, draw.randrange(256)]
            )
    return bytes(data)


def cut(draw: random.Random, path: Path) -> bytes:
    data = path.read_bytes()
    return (
        data[: draw.randrange(len(data) + 1)] if draw.random() < 0.8 else data + bytes(draw.randrange(1, 9))
    )


def replaced(draw: random.Random, path: Path) -> bytes:
    nested = draw.choice(['{"a":' * 10**5, "[" * 10**5, '{"init_args":[' * 400 + "{}" + "]}" * 400])
    return draw.choice([b"", b"{}", b"[]", b"null", b"\xff\xfe{\0}\0", b"\x80\x04.", nested.encode()])


def damage(draw: random.Random, folder: Path) -> None:
    """Do one fault to a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = draw.choice([draw.choice(files), *(file for file in files if file.suffix == ".json")])
    if draw.random() < 0.05:
        path.unlink()
        return
    ways: list[Callable[[random.Random, Path], bytes]] = [bitten, cut, replaced]
    if path.suffix == ".json":
        try:
            json.loads(path.read_text(encoding="utf-8"))
            ways += [edited] * 12
        except (ValueError, RecursionError):  # by an earlier fault
            pass
    path.write_bytes(draw.choice(ways)(draw, path))


# Loading ----------------------------------------------------------------------------------------


def check(number: int, whole: dict[str, Path], folder: Path) -> str:
    """Load input `number`, and return `loaded` or the message with which it was refused."""
    draw = random.Random(number)
    folder = folder / f"model-{number}"
    shutil.copytree(whole[SOURCES[number % len(SOURCES)]], folder)
    for _ in range(draw.choice([1, 1, 2, 3])):
        damage(draw, folder)
    read = convert.read_encoder if draw.random() < 0.2 else convert.read
    try:
        read(folder)
    except (ValueError, OSError) as error:
        message = str(error)
        assert folder.name in message, f"input {number} is not named: {message[:300]}"
        assert len(message) < 2000, f"input {number}: a message of {len(message)} characters"
        return message
    finally:
        shutil.rmtree(folder)
    return "loaded"


def test_a_damaged_model_loads_or_is_refused_by_name(whole, tmp_path):
    tracemalloc.start()
    try:
        outcomes = [check(number, whole, tmp_path) for number in range(PARTS)]
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()
    assert len(outcomes) > outcomes.count("loaded") > 0


@pytest.mark.fuzz
def test_thousands_of_damaged_models_load_or_are_refused_by_name(whole, tmp_path, capsys):
    before, longest, loaded, failures = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0.0, 0, []
    for number in range(PARTS, PARTS + MANY):
        start = time.perf_counter()
        try:
            loaded += check(number, whole, tmp_path) == "loaded"
        except Exception as error:  # counted, so that one does not hide the others
            failures.append(f"{number}: {type(error).__name__}: {str(error)[:200]}")
        longest = max(longest, time.perf_counter() - start)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    with capsys.disabled():
        print(
            f"\n{MANY} models: {loaded} loaded, {len(failures)} tracebacks or messages without a name, "
            f"the longest {longest:.2f} s, {grown:.0f} MB more memory"
        )
    assert not failures, "\n".join(failures)
    assert longest < 10 and grown < 1024
