"""Names that MLflow gives to the artifacts of logged images, by which an image that is already there is recognised."""

import re
from collections.abc import Iterable


def is_image_logged(key: str, step: int, paths: Iterable[str]) -> bool:
    """Return whether the image of `key` at `step` is among the artifact `paths` of a run, by the name that MLflow gives it."""
    marker = image_marker(key, step).removeprefix("images")
    return any(marker in f"/{path.replace('+', '%').split('/', 1)[-1]}" for path in paths)


def image_marker(key: str, step: int) -> str:
    """Return how the artifact path of an image begins, with `%` where MLflow writes `%` or `+`."""
    return f"images/{key.replace('/', '~')}%step%{step}%"


def step_of_image(path: str, key: str) -> int | None:
    """Return the step of an MLflow image artifact from its path, or None if it is not a PNG of `key`."""
    name = re.escape(key.replace("/", "~"))
    match = re.search(rf"(?:^|/){name}[+%]step[+%](\d+)[+%].*\.png$", path)
    return int(match[1]) if match else None
