"""`python -m rocketqa_paddle` is the command `rocketqa`."""

import os
import signal
from typing import Any


def main() -> None:
    """Run the command. Ctrl-C and SIGTERM end it without a traceback even while its modules are imported."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    from rocketqa_paddle.commands import cli

    cli.main()


def _stop(*_: Any) -> None:
    os.write(2, b"rocketqa: stopped\n")
    os._exit(130)


if __name__ == "__main__":
    main()
