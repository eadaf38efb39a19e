"""`python -m rocketqa_paddle` is the command `rocketqa`."""

from rocketqa_paddle.cli import main

if __name__ == "__main__":
    main()
