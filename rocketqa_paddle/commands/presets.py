"""The command `rocketqa presets`: the settings that come with the package."""

from rocketqa_paddle import presets


def list_presets(name: str | None = None) -> None:
    """List the presets, which `--config` takes by their names, or print one of them.

    Args:
        name: the preset to print
    """
    if name:
        print(presets.text(name), end="")
        return
    width = max(map(len, presets.names()))
    for preset in presets.names():
        print(f"{preset:<{width}}  {presets.description(preset)}")
