"""The command `rocketqa inspect`: what a model is."""


def inspect_model(checkpoint: str) -> None:
    """Tell what a model is: kind, sizes, tokenizer, lengths, digest.

    Args:
        checkpoint: a published name, a toolkit's JSON, or a folder of any format that `convert` reads
    """
    from rocketqa_paddle.checkpoints import convert

    for name, value in convert.table(convert.find(checkpoint)):
        print(f"{name:<12} {value}")
