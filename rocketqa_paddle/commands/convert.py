"""The command `rocketqa convert`: a model in another maker's format."""

from pathlib import Path
from typing import Literal

from rocketqa_paddle.data.tables import refuse_stream
from rocketqa_paddle.runtime.storage import locked


def convert_model(
    source: str, target: str, to: Literal["native", "paddlenlp", "huggingface", "reference"] = "native"
) -> None:
    """Write a model in another format, and compare the two on sample text.

    Args:
        source: a published name, a toolkit's JSON, or a folder of any of these formats
        target: folder to write
        to: format of the target
    """
    from rocketqa_paddle.checkpoints import convert

    refuse_stream(target, "a folder")
    found = convert.find(source)
    with locked(target):
        check_places(source, found.path, target)
        model = convert.read_found(found)
        difference = convert.write(model, target, to, card=f"Converted from {source}.")
    print(f"{target}: {model.kind.replace('_', ' ')}, written as {to}")
    print(f"largest difference on {len(convert.SAMPLE)} sample texts: {difference:.2g}")
    for note in convert.notes(model, to):
        print(f"note: {note}")


def check_places(source: str, found: Path, target: str) -> None:
    """Refuse to write a model where it was read, or over another.

    Raises:
        ValueError: one of the places is inside the other, or the target holds anything.
    """
    from rocketqa_paddle.checkpoints import convert

    folder, new = found.resolve(), Path(target).resolve()
    folder = folder.parent if folder.is_file() else folder
    if new in (folder, *folder.parents) or folder in new.parents:
        raise ValueError(f"{target} is where {source} is, or one is inside the other: choose another target")
    convert.CONTENTS.check(target)
    if new.is_dir() and any(new.iterdir()):
        raise ValueError(f"{target} holds a model already: remove it, or choose another target")
