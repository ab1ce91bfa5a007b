"""Advice for a training whose processes need more memory than there is, in the words of every error that gives it."""

_SETTING = "training.microbatch_images"
LESS_MEMORY = f"lower {_SETTING}"


def smaller_passes(images: int, passes: int) -> str:
    """Return the setting with which a batch is trained in `passes` of so many images."""
    return f"{_SETTING}={images} (the same batch in {passes} passes)"
