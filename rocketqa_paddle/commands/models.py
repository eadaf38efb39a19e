"""The command `rocketqa models`: the published models."""

HEAD = ("name", "kind", "language", "trained on", "system", "lengths", "fetched", "md5", "url")


def list_models() -> None:
    """List the published models."""
    from rocketqa_paddle.checkpoints import published

    rows = [HEAD]
    for name, model in published.MODELS.items():
        lengths = ", ".join(f"{text} {length}" for text, length in model.lengths.items())
        about = (name, model.kind.replace("_", " "), model.language, model.trained_on, model.system, lengths)
        rows.append((*about, "yes" if published.is_fetched(name) else "no", model.md5, model.url))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{value:<{width}}" for value, width in zip(row, widths, strict=True)).rstrip())
    print(f"\nkept in {published.home()}")
