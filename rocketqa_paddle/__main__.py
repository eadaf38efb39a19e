"""`python -m rocketqa_paddle` is the command `rocketqa`."""

from rocketqa_paddle.commands.cli import main

if __name__ == "__main__":
    main()
