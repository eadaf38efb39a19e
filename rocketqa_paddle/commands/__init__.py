"""The command line `rocketqa`, one command a file.

`rocketqa COMMAND --help` imports no Paddle: what needs it is imported inside functions. It is not imported
under `TYPE_CHECKING` either, because jsonargparse runs such imports to learn the types of flags.
"""
