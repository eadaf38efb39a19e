"""The command `rocketqa new`: settings for one's own data."""

import sys
from contextlib import redirect_stdout

from rocketqa_paddle.systems import SYSTEMS


def new(system: str, data: str, output: str | None = None) -> None:
    """Write settings for your data, as YAML with the reasons, after a look at them and at this machine.

    `rocketqa new SYSTEM --data FOLDER > my.yaml` makes a file for `rocketqa train SYSTEM --config my.yaml`.

    Args:
        system: to train
        data: folder of a collection, as training reads it
        output: run folder, `runs/FOLDER` by default
    """
    from rocketqa_paddle.commands.advice.machine import this_machine
    from rocketqa_paddle.commands.advice.settings import settings_for

    with redirect_stdout(sys.stderr):
        text = settings_for(SYSTEMS[system], data, output, this_machine())
    print(text, end="")
