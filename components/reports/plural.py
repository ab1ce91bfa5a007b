"""A number with its noun."""


def plural(count: int, noun: str, nouns: str | None = None) -> str:
    """Return `1 image` or `2 images`; `nouns` is the plural where it is not the noun with an s."""
    return f"{count} {noun if count == 1 else nouns or noun + 's'}"
