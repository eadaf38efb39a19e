"""Run by test_paddlenlp.py with the interpreter of an environment that has the extra `paddlenlp`."""

import sys
from pathlib import Path

import numpy as np
import paddle
from paddlenlp.transformers import ErnieConfig, ErnieModel, ErnieTokenizer

from rocketqa_paddle.checkpoints import load_arrays
from rocketqa_paddle.convert.paddlenlp import read_encoder
from rocketqa_paddle.ernie import Ernie


def difference(folder: Path, use_task_id: bool) -> float:
    """Largest difference between PaddleNLP's states and ours, for random weights."""
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(45))]
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    config = ErnieConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=40,
        type_vocab_size=4,
        task_type_vocab_size=3,
        use_task_id=use_task_id,
    )
    theirs = ErnieModel(config)
    theirs.eval()
    with paddle.no_grad():
        for parameter in theirs.parameters():
            parameter.set_value(paddle.randn(parameter.shape) * 0.01)  # small: the epsilon shows
    theirs.save_pretrained(str(folder))
    ErnieTokenizer(str(folder / "vocab.txt")).save_pretrained(str(folder))
    weights = read_encoder(str(folder))
    ours = Ernie(weights.config)
    ours.eval()
    load_arrays(ours, weights.arrays, folder)
    token_ids = paddle.to_tensor([[2, 7, 8, 9, 3], [2, 10, 3, 0, 0]])
    type_ids = paddle.to_tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]])
    with paddle.no_grad():
        expected = theirs(token_ids, type_ids)[0].numpy()
        actual = ours(token_ids, type_ids, token_ids != 0).numpy()
    assert np.abs(expected[0]).max() > 1e-3
    return float(np.abs(expected - actual)[[0, 0, 1], [0, 4, 0]].max() / np.abs(expected[0]).max())


for use_task_id in (False, True):
    largest = difference(Path(sys.argv[1]) / f"task-{use_task_id}", use_task_id)
    assert largest < 1e-5, largest
    print(f"task types {use_task_id}: relative difference {largest:.1e}")
